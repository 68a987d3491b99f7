// SPDX-License-Identifier: Apache-2.0
/*
 * uring_qp_state.c - beginning and end of a queue over io_uring: set-up, tables of files and
 * buffers, quarantine. The data path is in uring_qp.c.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uring_qp_priv.h"

/* The core's copy is in another extension module; the calibration is the same. */
struct udrv_clock udrv_clock;

uint32_t udrv_uring_fork_generation;

static void fork_child(void)
{
	udrv_uring_fork_generation++;
}

static int init_result;

static void init_once(void)
{
	init_result = -pthread_atfork(NULL, NULL, fork_child);
}

int udrv_uring_core_init(const struct udrv_clock *clock)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	udrv_clock = *clock;
	pthread_once(&once, init_once);
	return init_result;
}

uint64_t udrv_uring_thread(void)
{
	/* eight bytes of static TLS: the general model needs the dynamic linker by name */
	static __thread __attribute__((tls_model("initial-exec"))) uint64_t mine;
	static uint64_t last;

	if (unlikely(!mine))	/* relaxed: only that no two get the same matters */
		mine = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
	return mine;
}

/* --- set-up ------------------------------------------------------------------------------- */

void udrv_uring_qp_exit(struct udrv_uring_qp *qp)
{
	if (qp->fork_generation != udrv_uring_fork_generation)
		return;
	udrv_uring_qp_close(qp);
	if (qp->has_ring)
		io_uring_queue_exit(&qp->ring);
	qp->has_ring = 0;
	free(qp->trackers);
	free(qp->free);
	free(qp->streamed);
	qp->streamed = NULL;
	qp->stream = NULL;
	qp->trackers = NULL;
	qp->free = NULL;
	qp->depth = 0;
}

/* Flags that only save time, the newest first: what the kernel does not know is left out. */
static const unsigned savings[] = {
	IORING_SETUP_DEFER_TASKRUN,		/* 6.1 */
	IORING_SETUP_SINGLE_ISSUER,		/* 6.0 */
	IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,	/* 5.19 */
	IORING_SETUP_SUBMIT_ALL,		/* 5.18 */
};

static int make_ring(struct udrv_uring_qp *qp)
{
	struct io_uring_params p;
	unsigned must = IORING_SETUP_CLAMP, may = IORING_SETUP_SUBMIT_ALL;
	size_t i = 0;
	int ret;

	if (!(qp->flags & UDRV_URING_BLOCK))
		must |= IORING_SETUP_SQE128 | IORING_SETUP_CQE32;
	if (qp->flags & UDRV_URING_IOPOLL)
		must |= IORING_SETUP_IOPOLL;
	if (qp->flags & UDRV_URING_ONE_THREAD)
		may |= IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
		       IORING_SETUP_TASKRUN_FLAG;
	else
		may |= IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	for (;;) {
		memset(&p, 0, sizeof(p));
		p.flags = must | may;
		if (may & IORING_SETUP_SINGLE_ISSUER)
			p.flags |= IORING_SETUP_R_DISABLED;
		ret = io_uring_queue_init_params(qp->depth, &qp->ring, &p);
		if (ret != -EINVAL || !may)
			break;
		while (i < sizeof(savings) / sizeof(savings[0]) && !(may & savings[i]))
			i++;
		if (i == sizeof(savings) / sizeof(savings[0]))
			break;
		may &= ~savings[i];
		if (savings[i] == IORING_SETUP_DEFER_TASKRUN)	/* the next best */
			may |= IORING_SETUP_COOP_TASKRUN;
	}
	if (ret)
		return ret;
	qp->has_ring = 1;
	qp->setup_flags = p.flags;
	qp->disabled = !!(p.flags & IORING_SETUP_R_DISABLED);
	/* a timeout of a wait is an argument of the call: 5.11 */
	return p.features & IORING_FEAT_EXT_ARG ? 0 : -EOPNOTSUPP;
}

/* Fill in what is the same in all SQEs of the ring, and the identity that its index array is. */
static void prepare_sqes(struct udrv_uring_qp *qp)
{
	struct io_uring_sq *sq = &qp->ring.sq;
	uint32_t i;

	for (i = 0; i <= qp->sq_mask; i++) {
		struct io_uring_sqe *sqe = udrv_uring_sqe(qp, i);

		memset(sqe, 0, (size_t)1 << qp->sqe_shift);
		sqe->flags = IOSQE_FIXED_FILE;
		if (!(qp->flags & UDRV_URING_BLOCK)) {
			sqe->opcode = IORING_OP_URING_CMD;
			sqe->cmd_op = (uint32_t)UDRV_NVME_URING_CMD_IO;
		}
		sq->array[i] = i;
	}
}

/* Zeroed memory on cache lines that no other queue's thread writes; NULL if there is none. */
static void *whole_lines(size_t size)
{
	void *p;

	size = (size + UDRV_CACHELINE - 1) & ~(size_t)(UDRV_CACHELINE - 1);
	p = aligned_alloc(UDRV_CACHELINE, size);
	return p ? memset(p, 0, size) : NULL;
}

int udrv_uring_qp_init(struct udrv_uring_qp *qp, const struct udrv_uring_config *config)
{
	const int block = config->flags & UDRV_URING_BLOCK;
	uint32_t i;
	int ret;

	if (!config->depth || config->depth > UDRV_URING_MAX_DEPTH || (config->align_mask & 3) != 3)
		return -UDRV_EINVAL;
	qp->fork_generation = udrv_uring_fork_generation;
	qp->flags = config->flags;
	qp->depth = config->depth;
	qp->qid = config->qid;
	qp->max_transfer = config->max_transfer;
	qp->align_mask = config->align_mask;
	qp->timeout_ms = config->timeout_ms;
	qp->eventfd = config->eventfd;
	qp->trackers = whole_lines(config->depth * sizeof(*qp->trackers));
	qp->free = whole_lines(config->depth * sizeof(*qp->free));
	if (!qp->trackers || !qp->free)
		return -ENOMEM;
	for (i = 0; i < qp->depth; i++)	/* the top of the stack is 0 */
		qp->free[i] = (uint16_t)(qp->depth - 1 - i);
	qp->nr_free = qp->depth;

	ret = make_ring(qp);
	if (ret)
		return ret;
	io_uring_ring_dontfork(&qp->ring);
	qp->sqe_shift = block ? 6 : 7;
	qp->cqe_shift = block ? 4 : 5;
	qp->sqes = (uint8_t *)qp->ring.sq.sqes;
	qp->ktail = qp->ring.sq.ktail;
	qp->kflags = qp->ring.sq.kflags;
	qp->sq_mask = qp->ring.sq.ring_mask;
	qp->sq_tail = *qp->ktail;
	qp->cqes = (uint8_t *)qp->ring.cq.cqes;
	qp->khead = qp->ring.cq.khead;
	qp->kcqtail = qp->ring.cq.ktail;
	qp->cq_mask = qp->ring.cq.ring_mask;
	qp->registered = -1;
	if (qp->sq_mask + 1 < qp->depth)	/* clamped */
		return -UDRV_EINVAL;
	prepare_sqes(qp);
	ret = io_uring_register_files_sparse(&qp->ring, UDRV_URING_FILES);
	if (ret)
		return ret;
	qp->nr_files = UDRV_URING_FILES;
	if (qp->eventfd >= 0)
		ret = io_uring_register_eventfd(&qp->ring, qp->eventfd);
	return ret;
}

int udrv_uring_qp_enable(struct udrv_uring_qp *qp)
{
	/* io_uring_enable_rings(), which liburing.so 2.3 forgets to export */
	if (syscall(__NR_io_uring_register, qp->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
		    0) < 0)
		return -errno;
	qp->disabled = 0;
	/* an index instead of a descriptor: this thread's, as all calls are; without it all works */
	if (io_uring_register_ring_fd(&qp->ring) == 1) {
		qp->registered = qp->ring.enter_ring_fd;
		qp->thread = udrv_uring_thread();
	}
	return 0;
}

/* --- tables ------------------------------------------------------------------------------- */

int udrv_uring_qp_file(struct udrv_uring_qp *qp, uint32_t index, int fd)
{
	int ret;

	if (qp->fork_generation != udrv_uring_fork_generation)
		return -UDRV_EFORKED;
	if (index >= UDRV_URING_FILES)
		return -UDRV_EINVAL;
	ret = io_uring_register_files_update(&qp->ring, index, &fd, 1);
	return ret < 0 ? ret : 0;
}

int udrv_uring_qp_buffer(struct udrv_uring_qp *qp, uint32_t index, void *address, size_t len)
{
	struct iovec iov = { .iov_base = len ? address : NULL, .iov_len = len };
	__u64 tag = 0;
	int ret;

	if (qp->fork_generation != udrv_uring_fork_generation)
		return -UDRV_EFORKED;
	if (index >= UDRV_URING_BUFFERS)
		return -UDRV_EINVAL;
	if (!qp->has_buffers) {
		ret = io_uring_register_buffers_sparse(&qp->ring, UDRV_URING_BUFFERS);
		if (ret)
			return ret;
		qp->has_buffers = 1;
	}
	ret = io_uring_register_buffers_update_tag(&qp->ring, index, &iov, &tag, 1);
	return ret < 0 ? ret : 0;
}

/* --- who has what ------------------------------------------------------------------------- */

uint32_t udrv_uring_qp_slot_inflight(const struct udrv_uring_qp *qp, uint16_t slot)
{
	return slot < UDRV_QP_SLOTS ? qp->slot_inflight[slot] : 0;
}

uint32_t udrv_uring_qp_inflight(const struct udrv_uring_qp *qp)
{
	return qp->inflight;
}

int __udrv_uring_qp_quarantine(struct udrv_uring_qp *qp, uint32_t slot)
{
	uint32_t i;
	int n = 0;

	for (i = 0; i < qp->depth; i++) {
		struct udrv_uring_tracker *t = &qp->trackers[i];

		if (t->state == UDRV_TRACKER_INFLIGHT &&
		    (slot >= UDRV_QP_SLOTS || t->slot == slot)) {
			t->state = UDRV_TRACKER_QUARANTINE;
			n++;
		}
	}
	return n;
}

int udrv_uring_qp_quarantine(struct udrv_uring_qp *qp, uint32_t slot)
{
	int n;

	if (qp->fork_generation != udrv_uring_fork_generation)
		return -UDRV_EFORKED;
	/* acquire: as udrv_uring_qp_enter(), but a closed pair may still be put into quarantine */
	if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
		return -UDRV_EBUSY;
	n = __udrv_uring_qp_quarantine(qp, slot);
	udrv_uring_qp_leave(qp);
	return n;
}

int udrv_uring_qp_set_stream(struct udrv_uring_qp *qp, struct udrv_stream *stream)
{
	int ret;

	if (!stream) {
		if (qp->fork_generation != udrv_uring_fork_generation)
			return -UDRV_EFORKED;
		/* acquire: as enter(), but a closed queue may be taken off its stream, too */
		if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
			return -UDRV_EBUSY;
		qp->stream = NULL;
		udrv_uring_qp_leave(qp);
		return 0;
	}
	ret = udrv_uring_qp_enter(qp);
	if (ret)
		return ret;
	if (!qp->streamed)
		qp->streamed = whole_lines(UDRV_STREAM_PASS * sizeof(*qp->streamed));
	if (qp->streamed) {
		stream->trackers = qp->streamed;
		stream->polled = udrv_ticks();
		qp->stream = stream;
	} else {
		ret = -ENOMEM;
	}
	udrv_uring_qp_leave(qp);
	return ret;
}

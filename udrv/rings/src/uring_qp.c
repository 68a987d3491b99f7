// SPDX-License-Identifier: Apache-2.0
/*
 * uring_qp.c - the data path of a queue over io_uring: posting and handing over. Completion is in
 * uring_qp_reap.c, set-up and the end are in uring_qp_state.c, waiting is in uring_qp_wait.c.
 */
#include <errno.h>
#include <string.h>

#include <udrv/batch.h>

#include "uring_qp_priv.h"

/* NVMe Base 2.0, "Common Command Format": FUSE is 9:8, PSDT is 15:14 */
#define CDW0_FUSE 0x0300u
#define CDW0_PSDT 0xc000u
/* "Opcodes": bits 1:0 tell the way of the data; controller to host */
#define DATA_IN 2u

/* --- ownership: as in qp.c ---------------------------------------------------------------- */

int udrv_uring_qp_enter(struct udrv_uring_qp *qp)
{
	if (unlikely(qp->fork_generation != udrv_uring_fork_generation))
		return -UDRV_EFORKED;
	/* acquire: pairs with the release in udrv_uring_qp_leave() of the previous owner */
	if (unlikely(__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE)))	/* who drains it? */
		return __atomic_load_n(&qp->closed, __ATOMIC_RELAXED) ? -UDRV_ECLOSED : -UDRV_EBUSY;
	/* relaxed: a close that races with this call takes effect on the next one */
	if (unlikely(__atomic_load_n(&qp->closed, __ATOMIC_RELAXED))) {
		udrv_uring_qp_leave(qp);
		return -UDRV_ECLOSED;
	}
	return 0;
}

void udrv_uring_qp_leave(struct udrv_uring_qp *qp)
{
	/* release: all that this owner wrote is seen by the next one's acquire */
	__atomic_store_n(&qp->owner, 0, __ATOMIC_RELEASE);
}

void udrv_uring_qp_close(struct udrv_uring_qp *qp)
{
	__atomic_store_n(&qp->closed, 1, __ATOMIC_RELAXED);
}

/* --- submission --------------------------------------------------------------------------- */

/*
 * Fields that are the same in every SQE were filled in once (uring_qp_state.c), and the kernel
 * does not write to SQEs.
 */
static inline void fill_command(struct udrv_uring_qp *qp, struct io_uring_sqe *sqe,
				const struct udrv_batch *b, uint32_t opcode, uint64_t address,
				uint32_t len, int fixed)
{
	struct udrv_nvme_uring_cmd *c = udrv_uring_command(sqe);

	sqe->fd = b->file;
	sqe->rw_flags = fixed ? IORING_URING_CMD_FIXED : 0;
	sqe->buf_index = fixed ? b->buf_index : 0;
	c->opcode = (uint8_t)opcode;
	c->nsid = b->nsid;
	c->cdw2 = 0;
	c->cdw3 = 0;
	c->addr = len ? address : 0;
	c->data_len = len;
	c->cdw13 = 0;
	c->cdw14 = 0;
	c->cdw15 = 0;
	c->timeout_ms = qp->timeout_ms;
}

static inline void fill_block(struct io_uring_sqe *sqe, const struct udrv_batch *b,
			      uint32_t opcode, uint64_t address, uint64_t slba, uint32_t len,
			      uint32_t control, int fixed)
{
	sqe->fd = b->file;
	sqe->rw_flags = 0;
	sqe->buf_index = 0;
	if (opcode == NVME_CMD_FLUSH) {
		sqe->opcode = IORING_OP_FSYNC;
		sqe->off = sqe->addr = sqe->len = 0;	/* all of it */
		return;
	}
	if (fixed) {
		sqe->opcode = opcode == NVME_CMD_READ ? IORING_OP_READ_FIXED :
							IORING_OP_WRITE_FIXED;
		sqe->buf_index = b->buf_index;
	} else {
		sqe->opcode = opcode == NVME_CMD_READ ? IORING_OP_READ : IORING_OP_WRITE;
	}
	if (control)	/* FUA, see udrv_uring_post() */
		sqe->rw_flags = RWF_DSYNC;
	sqe->off = slba << b->lba_shift;
	sqe->addr = address;
	sqe->len = len;
}

static inline struct udrv_uring_tracker *take_tracker(struct udrv_uring_qp *qp, uint32_t nth,
						      struct io_uring_sqe *sqe)
{
	uint16_t id = qp->free[qp->nr_free - 1 - nth];

	sqe->user_data = id;
	return &qp->trackers[id];
}

/* When a batch goes out: a time that no other batch of the queue has. */
static inline uint64_t submit_time(struct udrv_uring_qp *qp)
{
	uint64_t now = udrv_ticks();

	if (unlikely(now <= qp->last_ticks))
		now = qp->last_ticks + 1;
	return qp->last_ticks = now;
}

/* FUA is CDW12 bit 30, bit 14 of `control`; a block device has nothing for the others. */
#define CONTROL_FUA (1u << 14)

/* Post rows first .. first + n - 1; n trackers are free. Return: 0, or -UDRV_E* and the row. */
static int post(struct udrv_uring_qp *qp, const struct udrv_batch *b, uint32_t first, uint32_t n,
		uint16_t slot, uint32_t *bad)
{
	const int block = qp->flags & UDRV_URING_BLOCK;
	/* 64-byte fields of the batch once: what was checked is what is sent */
	const uint16_t buf_index = *(const volatile uint16_t *)&b->buf_index;
	const int fixed = buf_index < UDRV_URING_BUFFERS &&
			  (block || qp->flags & UDRV_URING_FIXED_CMD);
	const uint64_t now = submit_time(qp);
	const uint64_t depth = (qp->inflight + n) | (n > 1 ? UDRV_DEPTH_MIXED : 0);
	uint32_t i;

	for (i = 0; i < n; i++) {
		/* a copy: another thread may change the row after it was checked */
		const struct udrv_command r = *(const volatile struct udrv_command *)
			&b->commands[first + i];
		const uint32_t opcode = r.opcode, control = r.control;
		uint64_t slba = r.slba, nlb = r.nlb, offset = r.offset;
		uint32_t len;
		int use;
		struct io_uring_sqe *sqe = udrv_uring_sqe(qp, qp->sq_tail + i);
		struct udrv_uring_tracker *t = take_tracker(qp, i, sqe);
		int ret = udrv_row_check(b, &r, qp->max_transfer, qp->align_mask);

		if (!ret && block && (control & ~CONTROL_FUA))
			ret = -UDRV_ETRANSPORT;
		if (!ret && opcode == NVME_CMD_WRITE && !b->writable)
			ret = -UDRV_EREADONLY;
		if (unlikely(ret)) {
			/* the kernel does not know of the ones before it: forget them */
			*bad = first + i;
			for (; i; i--)
				qp->trackers[qp->free[qp->nr_free - i]].state = UDRV_TRACKER_FREE;
			return ret;
		}
		if (opcode == NVME_CMD_FLUSH) {
			len = 0;
			slba = 0;
		} else {
			len = (uint32_t)nlb << b->lba_shift;
		}
		use = fixed && len;
		if (block) {
			/*
			 * Registered pages go to the block layer one by one, and it takes whole
			 * blocks only; a plain address need not be at a block.
			 */
			const int whole = !((b->iova + offset) & ((1ull << b->lba_shift) - 1));

			use = use && whole;
			fill_block(sqe, b, opcode, b->iova + offset, slba, len,
				   opcode == NVME_CMD_WRITE ? control : 0, use);
		} else {
			struct udrv_nvme_uring_cmd *c = udrv_uring_command(sqe);

			fill_command(qp, sqe, b, opcode, b->iova + offset, len, use);
			c->cdw10 = (uint32_t)slba;
			c->cdw11 = (uint32_t)(slba >> 32);
			c->cdw12 = len ? (uint32_t)(nlb - 1) | control << 16 : 0;
		}
		t->user_data = r.user_data;
		t->submit_ticks = now;
		t->slba = slba;
		t->about = UDRV_ABOUT(b->nsid, opcode, len ? nlb : 0);
		t->depth = depth;
		t->len = len;
		t->slot = slot;
		t->opcode = (uint8_t)opcode;
		t->state = UDRV_TRACKER_INFLIGHT;
		qp->counters.fixed += (uint32_t)use;
	}
	return 0;
}

static void posted(struct udrv_uring_qp *qp, uint32_t n, uint16_t slot)
{
	qp->nr_free -= n;
	qp->sq_tail += n;
	qp->pending += n;
	qp->counters.submitted += n;
	qp->slot_inflight[slot] += n;
	qp->inflight += n;
}

/* The kernel took none of the n commands posted last: as if they had never been. */
static void retract(struct udrv_uring_qp *qp, uint32_t n, uint16_t slot)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		qp->trackers[qp->free[qp->nr_free + i]].state = UDRV_TRACKER_FREE;
	qp->nr_free += n;
	qp->sq_tail -= n;
	qp->pending -= n;
	qp->counters.submitted -= n;
	qp->slot_inflight[slot] -= n;
	qp->inflight -= n;
	__atomic_store_n(qp->ktail, qp->sq_tail, __ATOMIC_RELEASE);
}

/* Post a batch. Return: how many, or -UDRV_E*. */
static int post_batch(struct udrv_uring_qp *qp, const struct udrv_batch *b, uint32_t first,
		      uint32_t count, uint16_t slot, uint32_t *bad)
{
	uint32_t n = count < qp->nr_free ? count : qp->nr_free;
	int ret;

	if (unlikely(!udrv_batch_is_valid(b, first, count, slot) || b->file >= qp->nr_files))
		return -UDRV_EINVAL;
	if (unlikely(!n))
		return 0;
	ret = post(qp, b, first, n, slot, bad);
	if (unlikely(ret))
		return ret;
	posted(qp, n, slot);
	return (int)n;
}

/* Hand over what is pending, the n commands posted last included. Return: 0 or -errno. */
static int hand_over(struct udrv_uring_qp *qp, uint32_t n, uint16_t slot)
{
	int ret = udrv_uring_qp_adopt(qp);

	if (likely(!ret))
		ret = udrv_uring_qp_call(qp, 0, 0);
	if (unlikely(ret < 0) && qp->pending >= n) {
		retract(qp, n, slot);
		return ret;
	}
	return 0;	/* what the kernel did not take now, the next call hands over */
}

int udrv_uring_qp_submit(struct udrv_uring_qp *qp, const struct udrv_batch *b, uint32_t first,
			 uint32_t count, uint32_t *bad)
{
	/* once: another thread may close the batch meanwhile, and what was checked is the index */
	uint16_t slot = *(const volatile uint16_t *)&b->slot;
	int ret = udrv_uring_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	ret = post_batch(qp, b, first, count, slot, bad);
	if (likely(ret > 0)) {
		int err = hand_over(qp, (uint32_t)ret, slot);

		if (unlikely(err))
			ret = err;
	}
	udrv_uring_qp_leave(qp);
	return ret;
}

int udrv_uring_qp_submit_raw(struct udrv_uring_qp *qp, const struct udrv_batch *b,
			     const void *sqe64, uint64_t offset, uint32_t len,
			     uint64_t user_data)
{
	uint16_t slot = *(const volatile uint16_t *)&b->slot;
	struct udrv_uring_tracker *t;
	struct udrv_nvme_uring_cmd *c;
	struct io_uring_sqe *sqe;
	struct nvme_sqe src;
	int fixed, ret;

	memcpy(&src, sqe64, sizeof(src));	/* a caller's bytes are aligned to nothing */
	if (qp->flags & UDRV_URING_BLOCK || src.cdw0 & (CDW0_FUSE | CDW0_PSDT) || src.mptr)
		return -UDRV_ETRANSPORT;
	if (!b->writable && (uint8_t)src.cdw0 != NVME_CMD_FLUSH && (src.cdw0 & 3) != DATA_IN)
		return -UDRV_EREADONLY;
	if (!udrv_batch_is_valid(b, 0, 0, slot) || b->file >= qp->nr_files)
		return -UDRV_EINVAL;
	if (len > qp->max_transfer)
		return -UDRV_ESIZE;
	if (offset > b->len || len > b->len - offset)
		return -UDRV_EBUFFER;
	if (len && ((b->iova + offset) & qp->align_mask))
		return -UDRV_EALIGN;
	ret = udrv_uring_qp_enter(qp);
	if (ret)
		return ret;
	if (!qp->nr_free) {
		udrv_uring_qp_leave(qp);
		return 0;
	}
	fixed = len && b->buf_index < UDRV_URING_BUFFERS && qp->flags & UDRV_URING_FIXED_CMD;
	sqe = udrv_uring_sqe(qp, qp->sq_tail);
	t = take_tracker(qp, 0, sqe);
	fill_command(qp, sqe, b, (uint8_t)src.cdw0, b->iova + offset, len, fixed);
	c = udrv_uring_command(sqe);
	c->nsid = src.nsid;
	c->cdw2 = src.cdw2;
	c->cdw3 = src.cdw3;
	c->cdw10 = src.cdw10;
	c->cdw11 = src.cdw11;
	c->cdw12 = src.cdw12;
	c->cdw13 = src.cdw13;
	c->cdw14 = src.cdw14;
	c->cdw15 = src.cdw15;
	t->user_data = user_data;
	t->submit_ticks = submit_time(qp);
	t->slba = src.slba;
	t->about = UDRV_ABOUT(src.nsid, (uint8_t)src.cdw0, UDRV_ABOUT_RAW | len >> 9);
	t->depth = qp->inflight + 1;
	t->len = len;
	t->slot = slot;
	t->opcode = (uint8_t)src.cdw0;
	t->state = UDRV_TRACKER_INFLIGHT;
	qp->counters.fixed += (uint32_t)fixed;
	posted(qp, 1, slot);
	ret = hand_over(qp, 1, slot);
	udrv_uring_qp_leave(qp);
	return ret ? ret : 1;
}

/* --- as a queue of queue.h ---------------------------------------------------------------- */

static int queue_enter(void *queue)
{
	int ret = udrv_uring_qp_enter(queue);

	if (!ret) {
		ret = udrv_uring_qp_adopt(queue);
		if (ret)
			udrv_uring_qp_leave(queue);
	}
	return ret;
}

static void queue_leave(void *queue)
{
	udrv_uring_qp_leave(queue);
}

static int queue_submit(void *queue, const struct udrv_batch *b, uint32_t first, uint32_t count,
			uint32_t *bad)
{
	return post_batch(queue, b, first, count, *(const volatile uint16_t *)&b->slot, bad);
}

static int queue_reap(void *queue, const struct udrv_completions *out, uint32_t first,
		      uint32_t max)
{
	struct udrv_uring_qp *qp = queue;
	int ret;

	if (udrv_uring_qp_has_more(qp)) {
		ret = udrv_uring_qp_call(qp, 0, 0);
		if (unlikely(ret < 0))
			return ret;
	}
	return __udrv_uring_qp_reap(qp, out, first, max);
}

static uint32_t queue_room(const void *queue)
{
	return ((const struct udrv_uring_qp *)queue)->nr_free;
}

static void queue_cost(const void *queue, struct udrv_queue_cost *cost)
{
	memset(cost, 0, sizeof(*cost));
	cost->system_calls = ((const struct udrv_uring_qp *)queue)->counters.enters;
}

static int queue_wait(void *queue, const struct udrv_completions *out, uint32_t min, uint32_t max,
		      uint64_t timeout_ns, uint64_t spin_ns)
{
	return __udrv_uring_qp_wait(queue, out, min, max, timeout_ns, spin_ns);
}

static int queue_quarantine(void *queue, uint32_t slot)
{
	return __udrv_uring_qp_quarantine(queue, slot);
}

void udrv_uring_qp_as_queue(struct udrv_uring_qp *qp, struct udrv_queue *queue)
{
	static const struct udrv_queue_ops ops = {
		.enter = queue_enter,
		.leave = queue_leave,
		.submit = queue_submit,
		.reap = queue_reap,
		.wait = queue_wait,
		.quarantine = queue_quarantine,
		.room = queue_room,
		.cost = queue_cost,
	};

	queue->ops = &ops;
	queue->handle = qp;
}

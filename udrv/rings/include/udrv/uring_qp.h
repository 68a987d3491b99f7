/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_qp.h - a queue to an NVMe namespace that the kernel drives, over io_uring.
 *
 * Two kinds of commands on one kind of queue: NVMe passthrough (IORING_OP_URING_CMD on /dev/ngXnY:
 * SQE128 carries a struct nvme_uring_cmd, CQE32 brings Dword 0 and 1), and plain reads, writes and
 * fsyncs of a block device opened with O_DIRECT (UDRV_URING_BLOCK).
 *
 * The batches, completions, trackers and rules are those of qp.h: one owner at a time, -UDRV_EFORKED
 * after fork(), nothing of a batch is sent if one of its rows is bad, and a command's memory is its
 * own until its CQE came. There is no other proof here: the kernel finishes what it was given even
 * when the ring is closed, and pins the pages meanwhile.
 *
 * Addresses are this process's. Only the owner's thread calls io_uring_enter(2), never more often
 * than once per submit, and in a wait only to sleep, to poll the device (IOPOLL) or when the kernel
 * says that completions are to be fetched (IORING_SQ_TASKRUN).
 */
#ifndef UDRV_URING_QP_H
#define UDRV_URING_QP_H

#include <udrv/queue.h>
#include <udrv/stream.h>
#include <udrv/uring.h>

enum udrv_uring_flag {
	UDRV_URING_BLOCK = 1,		/* a block device, no passthrough */
	UDRV_URING_IOPOLL = 2,		/* poll the device; it needs poll queues */
	/*
	 * SINGLE_ISSUER and DEFER_TASKRUN where the kernel has them: the thread that submits first
	 * is the only one that may submit, reap or register; others get -EEXIST.
	 */
	UDRV_URING_ONE_THREAD = 4,
	UDRV_URING_FIXED_CMD = 8,	/* the kernel knows IORING_URING_CMD_FIXED (6.1) */
};

/*
 * A status that no NVMe device sends: bit 15 is above the 15 bits of a Status Field. The kernel did
 * not carry the command out, `result` is the errno; bits 10:0 are Host Pathing Error (3h/70h), so
 * that whoever looks at those only sees a failure.
 */
#define UDRV_STATUS_HOST 0x8370

#define UDRV_URING_FILES 256	/* namespaces that one queue can reach */
#define UDRV_URING_BUFFERS 1024	/* registered pools */
#define UDRV_URING_NO_BUFFER 0xffff
#define UDRV_URING_MAX_DEPTH 32767

/* One command in flight; its index is the user_data of its SQE and CQE. */
struct udrv_uring_tracker {
	uint64_t user_data;
	uint64_t submit_ticks;
	uint32_t len;		/* data bytes */
	uint16_t slot;
	uint8_t opcode;
	uint8_t state;		/* enum udrv_tracker_state */
	/* for a stream, as of struct udrv_tracker */
	uint64_t slba;
	uint64_t about;
	uint64_t depth;
	uint64_t __reserved[2];
};
static_assert(sizeof(struct udrv_uring_tracker) == UDRV_CACHELINE, "a tracker is a cache line");

struct udrv_uring_counters {
	uint64_t submitted;
	uint64_t completed;	/* delivered */
	uint64_t consumed;	/* CQEs, rejected ones included */
	uint64_t enters;	/* io_uring_enter() calls */
	uint64_t fixed;		/* commands on registered buffers */
	struct udrv_qp_anomalies anomalies;	/* bad_sqid stays 0 */
};

struct udrv_uring_config {
	uint16_t qid;
	uint16_t depth;		/* commands in flight, 1 to UDRV_URING_MAX_DEPTH */
	uint32_t flags;		/* enum udrv_uring_flag */
	int32_t eventfd;	/* to be signalled by completions, or -1 */
	uint32_t max_transfer;	/* bytes of one command */
	uint32_t timeout_ms;	/* of one passthrough command, 0: the kernel's own */
	uint32_t align_mask;	/* of data addresses: 3, or what O_DIRECT needs */
};

struct udrv_uring_qp {
	/* submission side */
	uint8_t *sqes;
	unsigned *ktail;
	struct udrv_uring_tracker *trackers;
	uint16_t *free;
	uint32_t nr_free;
	uint32_t sq_mask;
	uint32_t sq_tail;	/* ours: what was posted */
	uint32_t pending;	/* posted, and not yet taken by the kernel */
	uint32_t sqe_shift;	/* log2 of an SQE's bytes */
	uint32_t cqe_shift;

	/* both sides */
	uint32_t owner;
	uint32_t closed;
	uint32_t fork_generation;
	uint32_t flags;
	uint32_t depth;
	uint32_t qid;
	uint32_t max_transfer;
	uint32_t align_mask;
	uint32_t timeout_ms;
	uint32_t inflight;
	int32_t eventfd;
	uint32_t has_ring;
	uint32_t has_buffers;	/* the buffer table was made */
	uint32_t disabled;	/* IORING_SETUP_R_DISABLED: to be enabled by the first submit */
	int32_t registered;	/* the ring's index among its thread's registered rings, or -1 */
	uint64_t thread;	/* whose it is */

	/* completion side */
	uint8_t *cqes;
	unsigned *khead;
	unsigned *kcqtail;
	unsigned *kflags;
	uint32_t cq_mask;
	uint32_t nr_files;
	struct udrv_uring_counters counters;

	struct io_uring ring;
	uint32_t setup_flags;	/* as the kernel accepted them */
	struct udrv_spin spin;	/* of waits */
	struct udrv_stream *stream;	/* or NULL: stream.h */
	struct udrv_tracker *streamed;	/* what the stream is shown of a pass's commands */
	uint64_t last_ticks;	/* of the last submit */
	uint32_t slot_inflight[UDRV_QP_SLOTS];
};

/* Once, before anything else; `clock` is the calibrated one, so that all latencies agree. */
int udrv_uring_core_init(const struct udrv_clock *clock);

/*
 * Set up the ring of a zeroed handle. Flags that only save time (COOP_TASKRUN, SINGLE_ISSUER, ...) are left out where
 * the kernel does not know them. Return: 0, -UDRV_EINVAL, or -errno of io_uring_setup(2) or of
 * registering the (empty) file table or the eventfd.
 */
int udrv_uring_qp_init(struct udrv_uring_qp *qp, const struct udrv_uring_config *config);

/*
 * Close the ring, if there is one, also after a failed init. Nobody may be inside, nothing may be in
 * flight. The handle's memory stays valid to look at: every call on it returns -UDRV_ECLOSED.
 */
void udrv_uring_qp_exit(struct udrv_uring_qp *qp);

/* Put a file into the ring's table. Return: 0 or -errno. */
int udrv_uring_qp_file(struct udrv_uring_qp *qp, uint32_t index, int fd);
/*
 * Register memory under `index`, or with len = 0 take it out again. Return: 0 or -errno (-ENOMEM:
 * RLIMIT_MEMLOCK; the commands then go by plain addresses).
 */
int udrv_uring_qp_buffer(struct udrv_uring_qp *qp, uint32_t index, void *address, size_t len);

/*
 * As udrv_qp_submit(); batch->iova is an address of this process, batch->file an index of the file
 * table, batch->buf_index one of the buffer table or UDRV_URING_NO_BUFFER. -errno if
 * io_uring_enter() failed and took nothing; nothing is in flight then of this call.
 */
int udrv_uring_qp_submit(struct udrv_uring_qp *qp, const struct udrv_batch *batch, uint32_t first,
			 uint32_t count, uint32_t *bad);

/*
 * One command as it is, with len bytes of data at offset of the batch's buffer: passthrough only.
 * Return: 1, 0 if all trackers are in use, or -UDRV_E*; -UDRV_ETRANSPORT for fused commands, SGLs
 * and metadata pointers, and on a block device.
 */
int udrv_uring_qp_submit_raw(struct udrv_uring_qp *qp, const struct udrv_batch *batch,
			     const void *sqe, uint64_t offset, uint32_t len,
			     uint64_t user_data);

/* As udrv_qp_reap() and udrv_qp_wait(); a wait sleeps in io_uring_enter(), eventfd or not. */
int udrv_uring_qp_reap(struct udrv_uring_qp *qp, const struct udrv_completions *out,
		       uint32_t first, uint32_t max);
int udrv_uring_qp_wait(struct udrv_uring_qp *qp, const struct udrv_completions *out, uint32_t min,
		       uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);

/* As their namesakes of qp.h. */
uint32_t udrv_uring_qp_slot_inflight(const struct udrv_uring_qp *qp, uint16_t slot);
uint32_t udrv_uring_qp_inflight(const struct udrv_uring_qp *qp);
int udrv_uring_qp_quarantine(struct udrv_uring_qp *qp, uint32_t slot);
void udrv_uring_qp_close(struct udrv_uring_qp *qp);

/*
 * Of a closed pair: wait for everything in flight and drop the results. Return: how many commands
 * are in flight still when timeout_ns is over, -UDRV_EBUSY, -UDRV_EFORKED or -errno.
 */
int udrv_uring_qp_drain(struct udrv_uring_qp *qp, uint64_t timeout_ns);

/*
 * As udrv_qp_set_stream(): hang a stream of the core on the queue, or take it off (NULL).
 * Return: 0, -UDRV_EBUSY, -ENOMEM or another -UDRV_E*.
 */
int udrv_uring_qp_set_stream(struct udrv_uring_qp *qp, struct udrv_stream *stream);

/* For loops of queue.h; there `submit` only posts, and the next reap or wait makes the call. */
void udrv_uring_qp_as_queue(struct udrv_uring_qp *qp, struct udrv_queue *queue);

#endif /* UDRV_URING_QP_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qp.h - an NVMe submission and completion queue pair, from the host's side.
 *
 * Three kinds of memory, kept apart by who may write them:
 *
 *   rings (SQ, CQ) and PRP list pages   DMA-mapped; the device writes them, so nothing that is
 *                                       read from there is believed before it was checked
 *   struct udrv_qp_shared               a sealed memfd of its own, not mapped for DMA: what a
 *                                       successor process needs to go on (no pointers, offsets
 *                                       only); the device cannot reach it
 *   struct udrv_qp                      this process's pointers and limits
 *
 * One owner at a time: every entry point takes `owner` by an atomic exchange and returns
 * -UDRV_EBUSY to a second caller instead of waiting. After fork() every entry point of the child
 * returns -UDRV_EFORKED.
 *
 * post and ring are separate: udrv_qp_submit() posts a whole batch, then rings once.
 *
 * No function here allocates or makes a system call (clock_gettime() where there is no usable
 * counter register is the one exception, see clock.h).
 */
#ifndef UDRV_QP_H
#define UDRV_QP_H

#include <udrv/clock.h>
#include <udrv/compiler.h>
#include <udrv/doorbell.h>
#include <udrv/nvme.h>
#include <udrv/spin.h>

/* Errors, returned negated. Above the errno range, so that neither is taken for the other. */
enum udrv_qp_error {
	UDRV_EBUSY = 4001,	/* another thread is inside this queue pair */
	UDRV_EFORKED,		/* the queue pair belongs to the parent process */
	UDRV_ECLOSED,		/* the queue pair was closed, or its device is gone */
	UDRV_EFULL,		/* no free tracker */
	UDRV_EOPCODE,		/* the batch path carries read, write and flush only */
	UDRV_ERANGE,		/* blocks outside of the namespace, or none */
	UDRV_ESIZE,		/* more than one command may transfer */
	UDRV_EBUFFER,		/* data outside of the buffer */
	UDRV_EALIGN,		/* data address is not a multiple of 4 */
	UDRV_EINVAL,		/* an index or a count outside of its structure */
	UDRV_ETRANSPORT,	/* this transport cannot carry the command */
	UDRV_EREADONLY,		/* a write to what was not checked for use, or is open for reading */
	UDRV_EAGAIN,		/* not done yet: see lane.h */
	UDRV_EHALTED,		/* the controller is being reset: try again when that is over */
};

enum udrv_tracker_state {
	UDRV_TRACKER_FREE = 0,
	UDRV_TRACKER_INFLIGHT = 1,
	/*
	 * Given up by its owner, but the device may still write the data: neither the id nor the
	 * buffer is used again until there is proof that the device let go of both.
	 */
	UDRV_TRACKER_QUARANTINE = 2,
	/*
	 * A reset of the controller ended it, so that the device is done with it; its owner is still
	 * to be told, by a completion with UDRV_STATUS_ABORTED_BY_HOST.
	 */
	UDRV_TRACKER_ABORTED = 3,
};

/* Path Related Status, Command Aborted By Host (NVMe Base 2.0, figure 99): SCT 3h, SC 71h. */
#define UDRV_STATUS_ABORTED_BY_HOST 0x371u

/* One command in flight; its index is the command id (CID). Namespace and pool: see its slot. */
struct udrv_tracker {
	uint64_t user_data;
	uint64_t slba;
	uint64_t offset;	/* first data byte, from the start of the slot's buffer */
	uint64_t __reserved;
	union {			/* for whole stores and loads */
		struct {
			union {
				struct {
					uint32_t len : 24;	/* data bytes */
					uint32_t opcode : 8;
					union {
						struct {
							uint16_t slot;
							uint16_t state;	/* enum udrv_tracker_state */
						};
						uint32_t slot_state;
					};
				};
				uint64_t word;
			};
			uint64_t about;	/* what it is to a stream: UDRV_ABOUT() */
		};
		udrv_u64x2 word_pair;
	};
	union {
		struct {
			/* of the doorbell write, which no other doorbell has; 0 on an untimed pair */
			uint64_t submit_ticks;
			uint64_t depth;	/* in flight after that, itself included; UDRV_DEPTH_MIXED */
		};
		udrv_u64x2 stamp;
	};
};
static_assert(sizeof(struct udrv_tracker) == UDRV_CACHELINE, "a tracker is a cache line");

/*
 * Namespace, opcode and size of a command in one word: equal for commands of which a stream tells the
 * same. A raw command, whose blocks nobody checked, has UDRV_ABOUT_RAW and its size in units of 512 bytes.
 */
#define UDRV_ABOUT(nsid, opcode, nlb) \
	((uint64_t)(nsid) << 32 | (uint32_t)(nlb) << 8 | (uint32_t)(opcode))
#define UDRV_ABOUT_RAW 0x800000u

/* In `depth`: `about` is not the same in all commands of this doorbell. */
#define UDRV_DEPTH_MIXED (1ull << 63)

/* Where the commands of a slot have their data. Constant while any of them is in flight. */
struct udrv_qp_slot {
	uint32_t nsid;
	uint32_t pool_id;
	uint64_t pool_offset;	/* of the buffer's first byte */
};

#define UDRV_QP_SLOTS 1024

#define UDRV_QP_MAGIC 0x31505144u	/* "DQP1" */
#define UDRV_QP_ABI 3u

/* Counters of what a device must not do; each event is counted, none indexes memory. */
struct udrv_qp_anomalies {
	uint64_t bad_cid;	/* completion with a command id that was never given out */
	uint64_t duplicate;	/* completion for a command that is not in flight */
	uint64_t bad_sqid;	/* completion that names another submission queue */
	uint64_t late;		/* completion of a command in quarantine: its proof of release */
};

/*
 * All state of a queue pair that must survive its process. Trackers, the stack of free command ids
 * (each as its tracker's byte offset) and the slots follow at the offsets named here.
 */
struct udrv_qp_shared {
	uint32_t magic;
	uint32_t abi;
	uint64_t epoch;
	uint16_t qid;
	uint16_t entries;	/* of both rings */
	uint16_t nr_trackers;	/* entries - 1: a full ring is never reached */
	uint16_t __reserved0;
	uint32_t trackers_offset;
	uint32_t free_offset;
	uint32_t slots_offset;
	uint32_t size;
	uint32_t __reserved1[4];

	/* submission side */
	uint32_t sq_posted __cacheline_aligned;	/* next SQ slot to fill */
	uint32_t sq_rung;		/* tail that the device was told */
	uint32_t nr_free;
	uint32_t __reserved2;
	uint64_t submitted;		/* commands posted since creation */
	uint64_t sq_doorbells;		/* register writes (MMIO, or a message each) */
	uint64_t sq_shadow;		/* updates of the shadow doorbell alone */
	uint64_t forced;		/* udrv_qp_ring(): the device might sleep */
	uint64_t last_ticks;		/* of the last doorbell */

	/* completion side */
	uint32_t cq_head __cacheline_aligned;	/* next CQ slot to look at */
	uint32_t cq_rung;		/* head that the device was told */
	uint32_t cq_phase;
	uint32_t __reserved3;
	uint64_t consumed;		/* completions consumed, rejected ones included */
	uint64_t completed;		/* completions delivered to the caller */
	uint64_t cq_doorbells;
	uint64_t cq_shadow;
	struct udrv_qp_anomalies anomalies;
};
static_assert(offsetof(struct udrv_qp_shared, sq_posted) == UDRV_CACHELINE &&
	      offsetof(struct udrv_qp_shared, cq_head) == 2 * UDRV_CACHELINE &&
	      sizeof(struct udrv_qp_shared) == 4 * UDRV_CACHELINE,
	      "each side has a line of its own; anomalies are the rare last one");

/*
 * With shadow doorbells: a wait in which nothing comes for this long rings by the register, for all
 * that EventIdx says, and then again after as long.
 */
#define UDRV_RING_AFTER_NS 20000000u

/* This process's handle. Opaque to everyone but the files of core/ and their tests. */
struct udrv_qp {
	/* submission side */
	struct udrv_qp_shared *shared __cacheline_aligned;
	struct nvme_sqe *sq;
	struct udrv_tracker *trackers;
	uint32_t *free;			/* stack of free trackers' byte offsets: CID * 64 */
	struct udrv_qp_slot *slots;
	volatile uint32_t *sq_doorbell;
	uint64_t *prp;			/* nr_trackers pages of PRP entries */
	uint64_t prp_iova;

	/* both sides */
	uint32_t owner __cacheline_aligned;
	uint32_t closed;		/* enum udrv_qp_door */
	uint32_t fork_generation;
	uint32_t flags;			/* enum udrv_qp_flag */
	uint32_t entries;
	uint32_t nr_trackers;
	uint32_t max_transfer;		/* bytes */
	uint32_t qid;
	uint32_t inflight;		/* in flight or in quarantine; here, because it is asked for
					 * without the owner's exchange */
	int32_t eventfd;		/* -1: polled only */
	uint32_t sq_dirty;		/* a raw command wrote fields that the batch path leaves 0 */
	uint32_t __reserved;
	volatile struct nvme_cqe *cq;
	volatile uint32_t *cq_doorbell;

	uint32_t slot_inflight[UDRV_QP_SLOTS] __cacheline_aligned;

	/* with UDRV_QP_HOW: SQ and CQ doorbell, where that is more than a store */
	struct udrv_doorbell how[2] __cacheline_aligned;
	/* of waits: CLOCK_MONOTONIC */
	uint64_t waited_until __cacheline_aligned;	/* the last look at the clock */
	uint64_t silent_since;		/* nothing was waited for and came since */
	struct udrv_spin spin;
	uint64_t ring_after_ns;		/* UDRV_RING_AFTER_NS; tests have others */
	struct udrv_stream *stream;	/* with UDRV_QP_STREAM: stream.h */
};
static_assert(offsetof(struct udrv_qp, owner) == UDRV_CACHELINE &&
	      offsetof(struct udrv_qp, slot_inflight) == 2 * UDRV_CACHELINE,
	      "what every call needs lies in two lines");
static_assert(sizeof(struct udrv_qp) % UDRV_CACHELINE == 0, "aligned_alloc() wants whole lines");

enum udrv_qp_flag {
	UDRV_QP_UNTIMED = 1,	/* no timestamps: latency_ns is 0 */
	UDRV_QP_HOW = 2,	/* doorbells are written as `how` says; set by udrv_qp_init() */
	UDRV_QP_ABORTED = 4,	/* there are UDRV_TRACKER_ABORTED; set by udrv_qp_restart() */
	UDRV_QP_STREAM = 8,	/* `stream` is told of completions; set by udrv_qp_set_stream() */
};

/* Values of udrv_qp.closed. */
enum udrv_qp_door {
	UDRV_QP_OPEN = 0,
	UDRV_QP_CLOSED,		/* for good: -UDRV_ECLOSED */
	UDRV_QP_HALTED,		/* for the time of a reset: -UDRV_EHALTED */
};

/* What udrv_qp_init() needs; addresses are this process's. */
struct udrv_qp_config {
	uint16_t qid;
	uint16_t entries;		/* 2 to 65535 */
	int32_t eventfd;		/* of the CQ's interrupt vector, or -1 */
	uint32_t max_transfer;		/* bytes: MDTS, or the PRP list's own limit, see below */
	uint32_t flags;			/* enum udrv_qp_flag */
	void *shared;			/* udrv_qp_shared_size() bytes, 64-byte aligned, zeroed */
	void *sq;			/* entries * 64 bytes, page-aligned, zeroed */
	void *cq;			/* entries * 16 bytes, page-aligned, zeroed */
	void *prp;			/* (entries - 1) pages */
	uint64_t prp_iova;
	void *sq_doorbell;		/* the registers; NULL if they are written by message */
	void *cq_doorbell;
	void *sq_shadow;		/* entries in the shadow doorbell and EventIdx buffers; all */
	void *cq_shadow;		/* four or none; no other queue of this id is using them */
	void *sq_event;
	void *cq_event;
	const void *sq_post;		/* messages of post_len bytes that write the registers */
	const void *cq_post;
	int32_t post_fd;
	uint32_t post_len;		/* at most UDRV_POST_MAX; 0: the registers are mapped */
	uint32_t post_at;		/* of the value in a message */
	uint32_t __reserved1;
};

/* The largest transfer that one PRP list page describes, at any alignment of its first byte. */
#define UDRV_QP_PRP_MAX_TRANSFER ((NVME_PAGE_SIZE / 8) * NVME_PAGE_SIZE)

/* One row of a batch. */
struct udrv_command {
	uint64_t slba;
	uint64_t offset;	/* bytes from the start of the buffer, a multiple of 4 */
	uint64_t user_data;
	union {
		struct {
			uint32_t nlb;	/* blocks, 1 to 65536: not the 0's based value of CDW12 */
			uint16_t control;	/* CDW12 31:16: FUA is bit 14, LR is bit 15 */
			uint8_t opcode;
			uint8_t __reserved;	/* 0 */
		};
		uint64_t shape;	/* what one load tells from the row before */
	};
};
static_assert(sizeof(struct udrv_command) == 32, "two to a cache line");

/*
 * A batch: `capacity` rows, all of one namespace and one buffer. The rows are read during
 * udrv_qp_submit() only; the buffer belongs to the device until `slot` has nothing in flight any
 * more, and until then `slot` must not be used for another buffer.
 */
struct udrv_batch {
	uint32_t capacity;
	uint32_t nsid;
	uint32_t lba_shift;	/* log2 of the block size in bytes, 9 to 16 */
	uint32_t pool_id;
	uint64_t nsze;		/* blocks in the namespace */
	uint64_t iova;		/* of the buffer's first byte */
	uint64_t len;		/* of the buffer, bytes */
	uint64_t pool_offset;	/* of the buffer's first byte in its pool */
	/*
	 * IOVA of the pool's PRP table, or 0: entry i is the IOVA of the pool's page i, and entries
	 * lie one after the other from a page boundary on. A list that would go on in the table's
	 * next page (where a PRP list has a pointer) is written to the tracker's page instead.
	 */
	uint64_t prp_table;
	const struct udrv_command *commands;
	uint16_t slot;		/* < UDRV_QP_SLOTS */
	/* for queues of the kernel's driver only, see udrv/uring_qp.h */
	uint16_t file;
	uint16_t buf_index;
	uint16_t writable;	/* whether it is sure that writing destroys nothing in use */
};

/* One row of what a reap fills. */
struct udrv_completion {
	uint64_t user_data;
	uint64_t result;	/* DW0, and DW1 in the upper half */
	uint64_t latency_ns;	/* doorbell write to the reap that saw it */
	uint16_t status;	/* CQE DW3 31:17: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14 */
	uint16_t __reserved[3];
};
static_assert(sizeof(struct udrv_completion) == 32, "two to a cache line");

struct udrv_completions {
	uint32_t capacity;
	uint32_t __reserved;
	struct udrv_completion *rows;
};

/* Bumped in every child of fork(). */
extern uint32_t udrv_fork_generation;

/* Registers the fork handler and calibrates the clock. Call once before anything else. */
int udrv_core_init(void);

/* Bytes of state for a pair of `entries`, or 0 if `entries` is out of range. */
size_t udrv_qp_shared_size(uint32_t entries);

/* Memory for a handle (not initialised), or NULL. Not for the data path. */
struct udrv_qp *udrv_qp_new(void);
void udrv_qp_free(struct udrv_qp *qp);

/*
 * Fill in the handle and initialise the shared state of a new pair.
 * Return: 0, or -UDRV_EINVAL for a configuration that cannot be.
 */
int udrv_qp_init(struct udrv_qp *qp, const struct udrv_qp_config *config);

/*
 * Post commands first .. first + count - 1 of the batch and ring the doorbell once. All posted
 * commands are valid or none is posted: on the first bad one, *bad is its index and nothing of
 * this call reaches the device.
 * Return: how many were posted (less than count, or 0, when command ids run out), or -UDRV_E*.
 */
int udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *batch, uint32_t first,
		   uint32_t count, uint32_t *bad);

/*
 * Submit one command as it is (64 bytes, at any address), but for CID and PRPs, which are filled in:
 * admin commands, and whatever the batch path does not carry. `len` bytes of data at `iova`, or 0
 * for none, which is `offset` bytes into the slot's buffer.
 * Return: 1, or -UDRV_E* (-UDRV_EFULL if no command id is free, -UDRV_EINVAL if commands of the
 * slot are in flight with another buffer).
 */
int udrv_qp_submit_raw(struct udrv_qp *qp, const void *sqe, uint64_t iova, uint32_t len,
		       uint32_t pool_id, uint64_t pool_offset, uint64_t offset, uint16_t slot,
		       uint64_t user_data);

/*
 * Consume completions that are there, at most max, into out[first ...], and tell the device once.
 * Does not wait. Return: how many were delivered, or -UDRV_E*.
 */
int udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		 uint32_t max);

/* Commands of `slot` that the device may still touch (in flight or in quarantine). */
uint32_t udrv_qp_slot_inflight(const struct udrv_qp *qp, uint16_t slot);
/* All commands that the device may still touch. */
uint32_t udrv_qp_inflight(const struct udrv_qp *qp);

/*
 * Put the commands of `slot` (or of all, slot = UDRV_QP_SLOTS) into quarantine: their completions
 * will be counted, not delivered. Return: how many, or -UDRV_E*.
 */
int udrv_qp_quarantine(struct udrv_qp *qp, uint32_t slot);

/*
 * The caller has proof that the device is done with every command (the queue was deleted, CSTS.RDY
 * is 0, memory was unmapped or the device was reset): all trackers become free.
 * Return: how many were not, or -UDRV_E*.
 */
int udrv_qp_release_all(struct udrv_qp *qp);

/*
 * Write tail and head to the registers, if there are shadow doorbells: the device's EventIdx may
 * have said wrongly that it does not sleep. __udrv_qp_wait() does it when nothing comes; whoever
 * waits in another way does it before a command counts as lost.
 * Return: 0, or -UDRV_E*.
 */
int udrv_qp_ring(struct udrv_qp *qp);

/* From now on every call returns -UDRV_ECLOSED. Safe from any thread. */
void udrv_qp_close(struct udrv_qp *qp);

/*
 * What a reset of the controller does to a queue pair (qp_recover.c), in this order, by one thread:
 * halt, until nobody is inside; make sure that the device is disabled; restart; create the queues on
 * the device again; resume. Meanwhile every other call returns -UDRV_EHALTED.
 */

/*
 * Keep everybody out. Return: 0 when nobody is inside any more; -UDRV_EBUSY while somebody is (ring
 * the eventfd and call again); -UDRV_ECLOSED if the pair was closed.
 */
int udrv_qp_halt(struct udrv_qp *qp);

/*
 * With proof that the device touches neither rings nor data any more: empty rings, indexes as at the
 * beginning. Commands in flight become UDRV_TRACKER_ABORTED, which the next reaps deliver; those in
 * quarantine are free. Shadow doorbells are the caller's to clear.
 * Return: how many were in flight, or -UDRV_E* (-UDRV_EBUSY for a moment: call again).
 */
int udrv_qp_restart(struct udrv_qp *qp);

/* Let them in again, unless the pair was closed meanwhile. */
void udrv_qp_resume(struct udrv_qp *qp);

/* A command that has been in flight for long. */
struct udrv_overdue {
	uint64_t submit_ticks;	/* with cid, tells it from every other command */
	uint64_t age_ns;
	uint64_t user_data;
	uint64_t slba;
	uint32_t len;
	uint16_t cid;
	uint8_t opcode;
	uint8_t __reserved;
};

/*
 * Commands in flight for longer than limits_ns[opcode] (0: no limit) whose completion is not in the
 * ring, waiting to be reaped. From any thread, without the owner's exchange: what it finds while the
 * owner is busy may be wrong, so only what two calls find is true. On an untimed pair, whatever is in
 * flight and has a limit, with an age of 0.
 * Return: how many were written to `out`, at most max.
 */
uint32_t udrv_qp_overdue(const struct udrv_qp *qp, const uint64_t *limits_ns,
			 struct udrv_overdue *out, uint32_t max);

/* Completions in the ring that nobody reaped yet; as exact as udrv_qp_overdue(). */
uint32_t udrv_qp_unreaped(const struct udrv_qp *qp);

/* Take and give back the pair for a sequence of calls of the unlocked functions below. */
int udrv_qp_enter(struct udrv_qp *qp);
void udrv_qp_leave(struct udrv_qp *qp);
int __udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *batch, uint32_t first,
		     uint32_t count, uint32_t *bad);
int __udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		   uint32_t max);
void __udrv_qp_ring(struct udrv_qp *qp);
int __udrv_qp_quarantine(struct udrv_qp *qp, uint32_t slot);

#endif /* UDRV_QP_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - a liburing ring that knows which of its requests are in flight, and whose memory they
 * use.
 *
 * A request has a slot from prep to its last completion, and its token (generation and slot) is
 * what the kernel knows it by: user data is the user's own, may repeat, and is looked up here. A
 * request belongs to a group; when the last request of a group is done, the group's number appears
 * in udrv_uring_released(), and only then may its owner free the memory that it gave.
 *
 * One owner at a time: a second caller gets -UDRV_URING_EBUSY instead of waiting. Errors of the
 * kernel come as -errno, our own as -UDRV_URING_E*, which are above the errno range.
 */
#ifndef UDRV_URING_H
#define UDRV_URING_H

#include <liburing.h>
#include <udrv/compiler.h>

/* liburing.h has no version before 2.4; older than 2.3 is refused when udrv is built. */
#ifdef IO_URING_VERSION_MAJOR
#define UDRV_LIBURING_VERSION (IO_URING_VERSION_MAJOR * 100 + IO_URING_VERSION_MINOR)
#else
#define UDRV_LIBURING_VERSION 203
#endif

#ifndef UDRV_LIBURING_SHARED
#define UDRV_LIBURING_SHARED 0
#endif

enum udrv_uring_error {
	UDRV_URING_EBUSY = 4101,	/* another thread is inside this ring */
	UDRV_URING_ESQFULL,		/* no free submission queue entry: submit */
	UDRV_URING_ESLOTS,		/* no free slot: reap completions */
	UDRV_URING_EOPCODE,		/* a batch carries NOP, READ(_FIXED), WRITE(_FIXED), FSYNC */
	UDRV_URING_EFLAGS,		/* an SQE flag that cannot be used here */
	UDRV_URING_EBUFFER,		/* data outside of the batch's buffer */
	UDRV_URING_EREADONLY,		/* a read into memory that is read-only */
	UDRV_URING_ECHAIN,		/* a chain of links longer than the submission queue */
	UDRV_URING_EINVAL,		/* an index or a count outside of its structure */
	UDRV_URING_ECLOSED,		/* udrv_uring_exit() was called */
};

/* user_data of requests of our own, which are not delivered; liburing has ~0 for the same. */
#define UDRV_URING_INTERNAL (~0ull - 1)

/* Requests whose memory nobody has to keep. */
#define UDRV_URING_NO_GROUP (~0u)

/* A command that an SQE carries: 16 bytes, or 80 in a ring with SQE128. */
#define UDRV_URING_CMD_MAX 80

struct udrv_uring_slot {
	uint64_t user_data;
	struct __kernel_timespec ts;	/* of a timeout; an SQPOLL thread reads it after the prep */
	uint32_t generation;		/* upper half of the token: 31 bits, never 0 */
	uint32_t group;
	uint32_t inflight;
	uint32_t __reserved;
};

struct udrv_uring {
	struct io_uring ring;
	struct udrv_uring_slot *slots;
	uint32_t *free;			/* stack of free slots */
	uint32_t *group_inflight;	/* requests of each group that are not done */
	uint32_t *released;		/* stack of groups that are done and not yet told */
	uint32_t nr_slots;		/* and groups: each live group has a slot or is being filled */
	uint32_t nr_free;
	uint32_t nr_released;
	uint32_t owner;
	uint32_t closed;
	uint64_t prepared;		/* requests since the ring was made */
	uint64_t completed;		/* completions delivered, those of multishot requests too */
	uint64_t strays;		/* completions of no request of ours */
	uint64_t overflows;		/* reaps that found the kernel keeping completions back */
};

/* A look at the ring, all of one moment. */
struct udrv_uring_counts {
	uint32_t inflight;		/* requests prepared and not done */
	uint32_t unsubmitted;		/* those of them that the kernel was not given yet */
	uint32_t ready;			/* completions to reap */
	uint32_t dropped;		/* completions lost: the kernel had no memory to keep them */
	uint32_t backlog;		/* 1 if the kernel keeps some for want of room */
	uint32_t __reserved;
};

/* What a request is made of, as struct io_uring_sqe has it. */
struct udrv_uring_op {
	uint64_t off;
	uint64_t addr;
	uint64_t user_data;
	uint64_t addr3;
	int32_t fd;
	uint32_t len;
	uint32_t op_flags;		/* rw_flags, poll32_events, timeout_flags, ... */
	uint32_t file_index;
	uint32_t group;			/* < nr_slots, or UDRV_URING_NO_GROUP */
	uint16_t ioprio;
	uint16_t buf_index;
	uint8_t opcode;
	uint8_t flags;			/* IOSQE_*; not BUFFER_SELECT or CQE_SKIP_SUCCESS */
};

/*
 * A batch: columns of `capacity` requests, their data in one buffer. The columns are read during
 * udrv_uring_push() only.
 */
struct udrv_uring_batch {
	uint32_t capacity;
	uint32_t writable;		/* whether requests may write into the buffer */
	uint64_t base;			/* address of the buffer's first byte */
	uint64_t size;			/* of the buffer, bytes */
	const uint8_t *opcode;
	const uint8_t *flags;
	const int32_t *fd;
	const uint64_t *file_offset;
	const uint64_t *buffer_offset;
	const uint32_t *length;
	const uint32_t *rw_flags;
	const uint16_t *buf_index;
	const uint64_t *user_data;
	uint64_t *token;		/* written */
};

/* Columns that a reap fills, `capacity` elements each. */
struct udrv_uring_completions {
	uint32_t capacity;
	uint32_t __reserved;
	uint64_t *user_data;
	uint64_t *token;
	int32_t *res;
	uint32_t *flags;
	uint64_t *big;			/* 2 a completion, of a ring with CQE32; 0 in others */
};

/* Memory for a ring with `slots` requests in flight at most, or NULL. */
struct udrv_uring *udrv_uring_new(uint32_t slots);
/* Frees the memory; does not close the ring. */
void udrv_uring_free(struct udrv_uring *u);

/* io_uring_setup() and the mappings. Return: 0 or -errno. */
int udrv_uring_open(struct udrv_uring *u, uint32_t entries, struct io_uring_params *params);
/*
 * Unmap and close, only when nothing is in flight; later calls return -UDRV_URING_ECLOSED.
 * Return: 0, or -UDRV_URING_EBUSY.
 */
int udrv_uring_exit(struct udrv_uring *u);

/* supported[op] becomes 1 for each operation below `count` that the kernel has. 0 or -errno. */
int udrv_uring_probe(struct udrv_uring *u, uint8_t *supported, uint32_t count);

/* Put one request on the submission queue. Return: its token (> 0), or -UDRV_URING_E*. */
int64_t udrv_uring_prep(struct udrv_uring *u, const struct udrv_uring_op *op);
/* The same, IORING_OP_TIMEOUT or LINK_TIMEOUT: `addr` and `len` are filled in. */
int64_t udrv_uring_prep_timeout(struct udrv_uring *u, const struct udrv_uring_op *op, int64_t sec,
				int64_t nsec);
/* The same, IORING_OP_URING_CMD with `size` bytes of command; `off` is cmd_op. */
int64_t udrv_uring_prep_cmd(struct udrv_uring *u, const struct udrv_uring_op *op,
			    const void *command, uint32_t size);

/*
 * Put requests first .. first + count - 1 of the batch on the submission queue, as many as there
 * is room for, without cutting a chain of links. On the first bad one, *bad is its index and
 * nothing of this call is on the queue.
 * Return: how many, or -UDRV_URING_E*.
 */
int udrv_uring_push(struct udrv_uring *u, const struct udrv_uring_batch *batch, uint32_t first,
		    uint32_t count, uint32_t group, uint32_t *bad);

/* Give the queue to the kernel. Return: requests taken, or -errno if none was. */
int udrv_uring_submit(struct udrv_uring *u);
/*
 * Wait for `count` completions, or as many as are outstanding, for timeout_ns at most; a signal
 * ends it early. With `submit`, submit first, with the same system call where that is possible.
 * Return: completions that are still missing then (0: go and reap), or -errno.
 */
int udrv_uring_wait(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns, int submit);

/* Take completions that are there, at most max. Does not wait. Return: how many, or -errno. */
int udrv_uring_reap(struct udrv_uring *u, const struct udrv_uring_completions *out, uint32_t max);

/* A group whose requests are all done, each told once, or UDRV_URING_NO_GROUP. */
uint32_t udrv_uring_released(struct udrv_uring *u);

/* Return: 0 or -UDRV_URING_E*. */
int udrv_uring_counts(struct udrv_uring *u, struct udrv_uring_counts *counts);

/* Take back what the kernel was not given. Return: how many, or -UDRV_URING_EBUSY. */
int udrv_uring_discard(struct udrv_uring *u);
/*
 * Ask the kernel to cancel all that is in flight; their completions still come. `sync`: with
 * IORING_REGISTER_SYNC_CANCEL (6.0), else by requests of our own. Return: 0 or -errno.
 */
int udrv_uring_cancel_all(struct udrv_uring *u, int sync);

#endif /* UDRV_URING_H */

// SPDX-License-Identifier: Apache-2.0
/*
 * uring_io.c - requests onto the submission queue, completions off the completion queue.
 */
#include "uring_state.h"

/*
 * BUFFER_SELECT would let the kernel choose memory that no group keeps; CQE_SKIP_SUCCESS would
 * leave a slot without its last completion.
 */
#define FLAGS_ALLOWED (IOSQE_FIXED_FILE | IOSQE_IO_DRAIN | IOSQE_IO_LINK | IOSQE_IO_HARDLINK | \
		       IOSQE_ASYNC)
#define FLAGS_LINK (IOSQE_IO_LINK | IOSQE_IO_HARDLINK)

/* --- requests ---------------------------------------------------------------------------- */

/* Take a slot; there is one. */
static inline uint32_t take_slot(struct udrv_uring *u, uint32_t group, uint64_t user_data)
{
	uint32_t index = u->free[--u->nr_free];
	struct udrv_uring_slot *slot = &u->slots[index];

	/* 31 bits and not 0: a token is positive, and neither ~0 nor UDRV_URING_INTERNAL */
	slot->generation = (slot->generation + 1) & 0x7fffffff;
	if (unlikely(!slot->generation))
		slot->generation = 1;
	slot->user_data = user_data;
	slot->group = group;
	slot->inflight = 1;
	if (group != UDRV_URING_NO_GROUP)
		u->group_inflight[group]++;
	u->prepared++;
	return index;
}

/* A filled SQE with its slot, or NULL with *token an error. */
static struct io_uring_sqe *prep(struct udrv_uring *u, const struct udrv_uring_op *op,
				 int64_t *token)
{
	struct io_uring_sqe *sqe;
	uint32_t slot;

	if (unlikely(op->flags & ~FLAGS_ALLOWED)) {
		*token = -UDRV_URING_EFLAGS;
		return NULL;
	}
	if (unlikely(op->group != UDRV_URING_NO_GROUP && op->group >= u->nr_slots)) {
		*token = -UDRV_URING_EINVAL;
		return NULL;
	}
	if (unlikely(!u->nr_free)) {
		*token = -UDRV_URING_ESLOTS;
		return NULL;
	}
	sqe = uring_get_sqe(u);
	if (unlikely(!sqe)) {
		*token = -UDRV_URING_ESQFULL;
		return NULL;
	}
	slot = take_slot(u, op->group, op->user_data);
	sqe->opcode = op->opcode;
	sqe->flags = op->flags;
	sqe->ioprio = op->ioprio;
	sqe->fd = op->fd;
	sqe->off = op->off;
	sqe->addr = op->addr;
	sqe->len = op->len;
	sqe->rw_flags = (int)op->op_flags;
	sqe->buf_index = op->buf_index;
	sqe->file_index = op->file_index;
	sqe->addr3 = op->addr3;
	sqe->user_data = uring_token(u, slot);
	*token = (int64_t)sqe->user_data;
	return sqe;
}

int64_t udrv_uring_prep(struct udrv_uring *u, const struct udrv_uring_op *op)
{
	int64_t token = uring_enter(u);

	if (token)
		return token;
	prep(u, op, &token);
	uring_leave(u);
	return token;
}

int64_t udrv_uring_prep_timeout(struct udrv_uring *u, const struct udrv_uring_op *op, int64_t sec,
				int64_t nsec)
{
	struct udrv_uring_slot *slot;
	struct io_uring_sqe *sqe;
	int64_t token = uring_enter(u);

	if (token)
		return token;
	sqe = prep(u, op, &token);
	if (sqe) {
		slot = &u->slots[(uint32_t)token];
		slot->ts.tv_sec = sec;
		slot->ts.tv_nsec = nsec;
		sqe->addr = (uint64_t)(uintptr_t)&slot->ts;
		sqe->len = 1;
	}
	uring_leave(u);
	return token;
}

int64_t udrv_uring_prep_cmd(struct udrv_uring *u, const struct udrv_uring_op *op,
			    const void *command, uint32_t size)
{
	struct io_uring_sqe *sqe;
	int64_t token = uring_enter(u);

	if (token)
		return token;
	if (size > (u->ring.flags & IORING_SETUP_SQE128 ? UDRV_URING_CMD_MAX : 16)) {
		token = -UDRV_URING_EINVAL;
	} else {
		sqe = prep(u, op, &token);
		if (sqe)
			memcpy(sqe->cmd, command, size);
	}
	uring_leave(u);
	return token;
}

/* --- batches ----------------------------------------------------------------------------- */

/* A row, taken once: another thread may change the columns between a check and the use. */
struct row {
	uint64_t file_offset;
	uint64_t buffer_offset;
	uint64_t user_data;
	uint32_t length;
	uint32_t rw_flags;
	int32_t fd;
	uint16_t buf_index;
	uint8_t opcode;
	uint8_t flags;
};

#define ONCE(x) (*(const volatile __typeof__(x) *)&(x))

/* Return: 0, or -UDRV_URING_E*. */
static int take_row(const struct udrv_uring_batch *b, uint32_t i, struct row *r)
{
	*r = (struct row){
		.file_offset = ONCE(b->file_offset[i]),
		.buffer_offset = ONCE(b->buffer_offset[i]),
		.user_data = ONCE(b->user_data[i]),
		.length = ONCE(b->length[i]),
		.rw_flags = ONCE(b->rw_flags[i]),
		.fd = ONCE(b->fd[i]),
		.buf_index = ONCE(b->buf_index[i]),
		.opcode = ONCE(b->opcode[i]),
		.flags = ONCE(b->flags[i]),
	};
	if (unlikely(r->flags & ~FLAGS_ALLOWED))
		return -UDRV_URING_EFLAGS;
	switch (r->opcode) {
	case IORING_OP_READ:
	case IORING_OP_READ_FIXED:
		if (unlikely(!b->writable))
			return -UDRV_URING_EREADONLY;
		break;
	case IORING_OP_WRITE:
	case IORING_OP_WRITE_FIXED:
		break;
	case IORING_OP_NOP:
	case IORING_OP_FSYNC:
		return 0;
	default:
		return -UDRV_URING_EOPCODE;
	}
	if (unlikely(r->buffer_offset > b->size || r->length > b->size - r->buffer_offset))
		return -UDRV_URING_EBUFFER;
	return 0;
}

static void push_row(struct udrv_uring *u, const struct udrv_uring_batch *b, const struct row *r,
		     uint32_t i, uint32_t group)
{
	struct io_uring_sqe *sqe = uring_get_sqe(u);

	sqe->opcode = r->opcode;
	sqe->flags = r->flags;
	sqe->user_data = uring_token(u, take_slot(u, group, r->user_data));
	b->token[i] = sqe->user_data;
	if (r->opcode == IORING_OP_NOP)
		return;
	sqe->fd = r->fd;
	sqe->rw_flags = (int)r->rw_flags;
	if (r->opcode == IORING_OP_FSYNC)
		return;
	sqe->off = r->file_offset;
	sqe->addr = b->base + r->buffer_offset;
	sqe->len = r->length;
	if (r->opcode == IORING_OP_READ_FIXED || r->opcode == IORING_OP_WRITE_FIXED)
		sqe->buf_index = r->buf_index;
}

/* Take back the n requests pushed last: the kernel was not told of them. */
static __attribute__((noinline, cold)) void unpush(struct udrv_uring *u, uint32_t n, uint32_t group)
{
	for (u->prepared -= n; n; n--) {
		uint32_t index = u->free[u->nr_free++];	/* as take_slot() left it there */

		u->slots[index].inflight = 0;
		u->group_inflight[group]--;
		u->ring.sq.sqe_tail--;
	}
}

static int push(struct udrv_uring *u, const struct udrv_uring_batch *b, uint32_t first,
		uint32_t count, uint32_t group, uint32_t *bad)
{
	uint32_t i, space, n = count;
	struct row row;
	int ret;

	*bad = first;
	if (unlikely(first > b->capacity || count > b->capacity - first || group >= u->nr_slots))
		return -UDRV_URING_EINVAL;
	for (i = first; i < first + count; i++) {
		ret = take_row(b, i, &row);
		if (unlikely(ret)) {
			*bad = i;
			return ret;
		}
	}
	if (n > u->nr_free)
		n = u->nr_free;
	space = uring_space(u);
	if (n > space)
		n = space;
	/* the kernel ends a chain with the submission: keep it for the next one as a whole */
	if (n < count)
		while (n && b->flags[first + n - 1] & FLAGS_LINK)
			n--;
	if (!n && count && !uring_inflight(u))
		return -UDRV_URING_ECHAIN;	/* it will never have more room */
	for (i = first; i < first + n; i++) {
		ret = take_row(b, i, &row);
		if (unlikely(ret)) {	/* changed meanwhile */
			unpush(u, i - first, group);
			*bad = i;
			return ret;
		}
		push_row(u, b, &row, i, group);
	}
	return (int)n;
}

int udrv_uring_push(struct udrv_uring *u, const struct udrv_uring_batch *batch, uint32_t first,
		    uint32_t count, uint32_t group, uint32_t *bad)
{
	int ret = uring_enter(u);

	if (ret)
		return ret;
	ret = push(u, batch, first, count, group, bad);
	uring_leave(u);
	return ret;
}

/* --- completions ------------------------------------------------------------------------- */

/* Return: 1 if there is something to deliver. */
static inline int take(struct udrv_uring *u, const struct io_uring_cqe *cqe,
		       const struct udrv_uring_completions *out, uint32_t row)
{
	struct udrv_uring_slot *slot;

	if (cqe->user_data == UDRV_URING_INTERNAL || cqe->user_data == LIBURING_UDATA_TIMEOUT)
		return 0;
	slot = uring_slot(u, cqe->user_data);
	if (unlikely(!slot)) {
		u->strays++;
		return 0;
	}
	out->user_data[row] = slot->user_data;
	out->token[row] = cqe->user_data;
	out->res[row] = cqe->res;
	out->flags[row] = cqe->flags;
	if (u->ring.flags & IORING_SETUP_CQE32) {
		out->big[2 * row] = cqe->big_cqe[0];
		out->big[2 * row + 1] = cqe->big_cqe[1];
	}
	/* MORE: a multishot request lives on, or the memory of a zero-copy send is still read */
	if (!(cqe->flags & IORING_CQE_F_MORE))
		uring_release(u, cqe->user_data);
	u->completed++;
	return 1;
}

static uint32_t drain(struct udrv_uring *u, const struct udrv_uring_completions *out, uint32_t n,
		      uint32_t max)
{
	struct io_uring_cq *cq = &u->ring.cq;
	int shift = io_uring_cqe_shift(&u->ring);
	uint32_t head = *cq->khead;
	/* acquire: pairs with the kernel's release in io_commit_cqring(): entries below are whole */
	uint32_t tail = io_uring_smp_load_acquire(cq->ktail);

	for (; head != tail && n < max; head++)
		n += (uint32_t)take(u, &cq->cqes[(head & cq->ring_mask) << shift], out, n);
	/* release: pairs with the kernel's load of the head: it reuses what we have read only */
	io_uring_smp_store_release(cq->khead, head);
	return n;
}

/* Completions that are due and not on the queue: deferred, polled for, or held for want of room. */
static int must_fetch(const struct udrv_uring *u, uint32_t n)
{
	const uint32_t deferred = IORING_SETUP_IOPOLL | IORING_SETUP_DEFER_TASKRUN |
				  IORING_SETUP_COOP_TASKRUN;

	if (unlikely(io_uring_cq_has_overflow(&u->ring)))
		return 2;
	return !n && (u->ring.flags & deferred) &&
	       uring_inflight(u) > uring_unsubmitted(u);
}

int udrv_uring_reap(struct udrv_uring *u, const struct udrv_uring_completions *out, uint32_t max)
{
	uint32_t n, before;
	int fetch, ret = uring_enter(u);

	if (ret)
		return ret;
	if (max > out->capacity)
		max = out->capacity;
	if (unlikely(io_uring_cq_has_overflow(&u->ring)))
		u->overflows++;
	n = drain(u, out, 0, max);
	do {
		before = n;
		fetch = n < max ? must_fetch(u, n) : 0;
		if (fetch) {
			ret = io_uring_get_events(&u->ring);
			n = drain(u, out, n, max);
		}
	} while (fetch == 2 && n > before);
	uring_leave(u);
	/* what was taken is taken: an error shows again at the next call */
	return n || ret >= 0 || ret == -EINTR ? (int)n : ret;
}

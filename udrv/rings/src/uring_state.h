/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_state.h - what uring.c and uring_io.c share: who is inside, slots, groups.
 */
#ifndef UDRV_URING_STATE_H
#define UDRV_URING_STATE_H

#include <string.h>
#include <time.h>

#include <udrv/uring.h>

static inline int uring_enter(struct udrv_uring *u)
{
	/* acquire: pairs with the release in uring_leave() of the previous owner */
	if (unlikely(__atomic_exchange_n(&u->owner, 1, __ATOMIC_ACQUIRE)))
		return -UDRV_URING_EBUSY;
	if (unlikely(u->closed)) {
		__atomic_store_n(&u->owner, 0, __ATOMIC_RELEASE);
		return -UDRV_URING_ECLOSED;
	}
	return 0;
}

static inline void uring_leave(struct udrv_uring *u)
{
	/* release: all that this owner wrote is seen by the next one's acquire */
	__atomic_store_n(&u->owner, 0, __ATOMIC_RELEASE);
}

static inline uint32_t uring_inflight(const struct udrv_uring *u)
{
	return u->nr_slots - u->nr_free;
}

static inline uint32_t uring_unsubmitted(const struct udrv_uring *u)
{
	const struct io_uring_sq *sq = &u->ring.sq;

	/* a polling thread takes by itself what liburing has made visible */
	if (u->ring.flags & IORING_SETUP_SQPOLL)
		return sq->sqe_tail - sq->sqe_head;
	return io_uring_sq_ready(&u->ring);
}

static inline uint64_t uring_token(const struct udrv_uring *u, uint32_t slot)
{
	return (uint64_t)u->slots[slot].generation << 32 | slot;
}

/* The slot of a token that is in flight, or NULL. */
static inline struct udrv_uring_slot *uring_slot(struct udrv_uring *u, uint64_t token)
{
	uint32_t index = (uint32_t)token;
	struct udrv_uring_slot *slot;

	if (unlikely(index >= u->nr_slots))
		return NULL;
	slot = &u->slots[index];
	if (unlikely(!slot->inflight || slot->generation != (uint32_t)(token >> 32)))
		return NULL;
	return slot;
}

/* The last word on a request. Return: 1 if it was in flight. */
static inline int uring_release(struct udrv_uring *u, uint64_t token)
{
	struct udrv_uring_slot *slot = uring_slot(u, token);

	if (unlikely(!slot))
		return 0;
	slot->inflight = 0;
	u->free[u->nr_free++] = (uint32_t)token;
	if (slot->group != UDRV_URING_NO_GROUP && !--u->group_inflight[slot->group])
		u->released[u->nr_released++] = slot->group;
	return 1;
}

/* A polling thread takes submissions in its own time: 100 ms for it to take one, or all. */
static inline void uring_await_thread(struct udrv_uring *u, int all)
{
	struct timespec pause = { .tv_nsec = 50000 };
	int i;

	for (i = 0; i < 2000; i++) {
		if (io_uring_sq_ready(&u->ring) == uring_unsubmitted(u) ||
		    (!all && io_uring_sq_space_left(&u->ring)))
			return;
		nanosleep(&pause, NULL);
	}
}

/* Free SQEs; those that a polling thread was given and has not taken yet are waited for. */
static inline uint32_t uring_space(struct udrv_uring *u)
{
	uint32_t space = io_uring_sq_space_left(&u->ring);

	if (unlikely(!space && u->ring.flags & IORING_SETUP_SQPOLL)) {
		uring_await_thread(u, 0);
		space = io_uring_sq_space_left(&u->ring);
	}
	return space;
}

/* A zeroed SQE (all 128 bytes where it has them), or NULL if the queue is full. */
static inline struct io_uring_sqe *uring_get_sqe(struct udrv_uring *u)
{
	struct io_uring_sqe *sqe = uring_space(u) ? io_uring_get_sqe(&u->ring) : NULL;

	if (likely(sqe))
		memset(sqe, 0, u->ring.flags & IORING_SETUP_SQE128 ? 128 : 64);
	return sqe;
}

#endif /* UDRV_URING_STATE_H */

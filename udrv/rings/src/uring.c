// SPDX-License-Identifier: Apache-2.0
/*
 * uring.c - a ring's life: memory, set-up, submission, waiting, cancellation. Requests and
 * completions are in uring_io.c.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "uring_state.h"

#define NSEC_PER_SEC 1000000000ull

struct udrv_uring *udrv_uring_new(uint32_t slots)
{
	struct udrv_uring *u;
	uint32_t i;

	if (!slots || slots > 1u << 24)
		return NULL;
	u = calloc(1, sizeof(*u));
	if (!u)
		return NULL;
	u->slots = calloc(slots, sizeof(*u->slots));
	u->free = calloc(slots, sizeof(*u->free));
	u->group_inflight = calloc(slots, sizeof(*u->group_inflight));
	u->released = calloc(slots, sizeof(*u->released));
	if (!u->slots || !u->free || !u->group_inflight || !u->released) {
		udrv_uring_free(u);
		return NULL;
	}
	u->closed = 1;	/* until it is opened */
	u->nr_slots = slots;
	for (i = 0; i < slots; i++)	/* slot 0 on top */
		u->free[u->nr_free++] = slots - 1 - i;
	return u;
}

void udrv_uring_free(struct udrv_uring *u)
{
	if (!u)
		return;
	free(u->slots);
	free(u->free);
	free(u->group_inflight);
	free(u->released);
	free(u);
}

int udrv_uring_open(struct udrv_uring *u, uint32_t entries, struct io_uring_params *params)
{
	int ret = io_uring_queue_init_params(entries, &u->ring, params);

	u->closed = ret < 0;
	return ret;
}

int udrv_uring_exit(struct udrv_uring *u)
{
	int ret = uring_enter(u);

	if (ret)
		return ret == -UDRV_URING_ECLOSED ? 0 : ret;
	io_uring_queue_exit(&u->ring);
	u->closed = 1;
	uring_leave(u);
	return 0;
}

int udrv_uring_probe(struct udrv_uring *u, uint8_t *supported, uint32_t count)
{
	/* the kernel's limit is 256 operations, as an opcode is a byte */
	struct io_uring_probe *probe;
	uint32_t i;
	int ret;

	memset(supported, 0, count);
	probe = calloc(1, sizeof(*probe) + 256 * sizeof(probe->ops[0]));
	if (!probe)
		return -ENOMEM;
	ret = uring_enter(u);
	if (!ret) {
		ret = io_uring_register_probe(&u->ring, probe, 256);
		uring_leave(u);
	}
	for (i = 0; ret >= 0 && i < count && i < probe->ops_len; i++)
		supported[i] = !!(probe->ops[i].flags & IO_URING_OP_SUPPORTED);
	free(probe);
	return ret < 0 ? ret : 0;
}

/* --- counts ------------------------------------------------------------------------------ */

int udrv_uring_counts(struct udrv_uring *u, struct udrv_uring_counts *counts)
{
	int ret = uring_enter(u);

	if (ret)
		return ret;
	counts->inflight = uring_inflight(u);
	counts->unsubmitted = uring_unsubmitted(u);
	counts->ready = io_uring_cq_ready(&u->ring);
	counts->dropped = IO_URING_READ_ONCE(*u->ring.cq.koverflow);
	counts->backlog = io_uring_cq_has_overflow(&u->ring);
	uring_leave(u);
	return 0;
}

uint32_t udrv_uring_released(struct udrv_uring *u)
{
	uint32_t group = UDRV_URING_NO_GROUP;

	if (!uring_enter(u)) {
		if (u->nr_released)
			group = u->released[--u->nr_released];
		uring_leave(u);
	}
	return group;
}

/* --- submission and waiting -------------------------------------------------------------- */

/* Submit until nothing is left: without SUBMIT_ALL the kernel stops behind a request that fails. */
static int submit_all(struct udrv_uring *u)
{
	uint32_t before = uring_unsubmitted(u), left = before, last;
	int ret = 0;

	do {
		last = left;
		if (left)
			ret = io_uring_submit(&u->ring);
		left = uring_unsubmitted(u);
	} while (ret >= 0 && left && left != last);
	return left == before && ret < 0 ? ret : (int)(before - left);
}

int udrv_uring_submit(struct udrv_uring *u)
{
	int ret = uring_enter(u);

	if (ret)
		return ret;
	ret = submit_all(u);
	uring_leave(u);
	return ret;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* IOPOLL: completions come of looking for them, and the kernel knows no time limit for that. */
static int wait_polled(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns)
{
	uint64_t start = now_ns(), silent;
	int ret;

	while (1) {
		ret = io_uring_get_events(&u->ring);
		if (ret < 0 || io_uring_cq_ready(&u->ring) >= count)
			return ret;
		silent = now_ns() - start;
		if (silent >= timeout_ns)
			return 0;
		if (silent > 100000)	/* the device may be a thread that waits for just this CPU */
			sched_yield();
	}
}

/* Before 5.11 io_uring_enter() has no time limit; poll() on the ring has. */
static int wait_by_poll(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns)
{
	struct pollfd pfd = { .fd = u->ring.ring_fd, .events = POLLIN };
	uint64_t start = now_ns(), gone;

	while (io_uring_cq_ready(&u->ring) < count) {
		gone = now_ns() - start;
		if (gone >= timeout_ns)
			return 0;
		if (io_uring_cq_ready(&u->ring)) {
			/* some are there, so poll() would return at once: look again soon */
			struct timespec pause = { .tv_nsec = 50000 };

			if (nanosleep(&pause, NULL) < 0)
				return -errno;
		} else if (poll(&pfd, 1, (int)((timeout_ns - gone) / 1000000) + 1) < 0) {
			return -errno;
		}
	}
	return 0;
}

static int wait_timed(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns, int submit)
{
	struct __kernel_timespec ts = {
		.tv_sec = (int64_t)(timeout_ns / NSEC_PER_SEC),
		.tv_nsec = (int64_t)(timeout_ns % NSEC_PER_SEC),
	};
	struct io_uring_getevents_arg arg = { .ts = (uint64_t)(uintptr_t)&ts };
	struct io_uring_cqe *cqe;

	if (submit)
		return io_uring_submit_and_wait_timeout(&u->ring, &cqe, count, &ts, NULL);
	return io_uring_enter2((unsigned int)u->ring.ring_fd, 0, count,
			       IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG,
			       (sigset_t *)&arg, sizeof(arg));
}

static int wait_locked(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns, int submit)
{
	int one_call = !(u->ring.flags & (IORING_SETUP_IOPOLL | IORING_SETUP_SQPOLL)) &&
		       (u->ring.features & IORING_FEAT_EXT_ARG);
	uint32_t ready, outstanding = uring_inflight(u);
	int ret = 0;

	if (submit && !(one_call && count)) {
		ret = submit_all(u);
		if (ret < 0)
			return ret;
		submit = 0;
	}
	if (submit)
		submit = uring_unsubmitted(u) != 0;
	else
		outstanding -= uring_unsubmitted(u);
	if (count > outstanding)
		count = outstanding;
	if (count > u->ring.cq.ring_entries)
		count = u->ring.cq.ring_entries;
	if (submit || io_uring_cq_ready(&u->ring) < count) {
		if (u->ring.flags & IORING_SETUP_IOPOLL)
			ret = wait_polled(u, count, timeout_ns);
		else if (u->ring.features & IORING_FEAT_EXT_ARG)
			ret = wait_timed(u, count, timeout_ns, submit);
		else
			ret = wait_by_poll(u, count, timeout_ns);
		/* time is up, a signal: the caller sees it by what is ready */
		if (ret == -ETIME || ret == -EINTR)
			ret = 0;
		if (ret >= 0 && submit)
			ret = submit_all(u);
	}
	if (ret < 0)
		return ret;
	ready = io_uring_cq_ready(&u->ring);
	return ready < count ? (int)(count - ready) : 0;
}

int udrv_uring_wait(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns, int submit)
{
	int ret = uring_enter(u);

	if (ret)
		return ret;
	ret = wait_locked(u, count, timeout_ns, submit);
	uring_leave(u);
	return ret;
}

/* --- taking back ------------------------------------------------------------------------- */

int udrv_uring_discard(struct udrv_uring *u)
{
	struct io_uring_sq *sq = &u->ring.sq;
	int shift = !!(u->ring.flags & IORING_SETUP_SQE128);
	int ret = uring_enter(u), n = 0;
	uint32_t left;

	if (ret)
		return ret;
	for (left = uring_unsubmitted(u); left; left--) {
		sq->sqe_tail--;
		n += uring_release(u, sq->sqes[(sq->sqe_tail & sq->ring_mask) << shift].user_data);
	}
	if (!(u->ring.flags & IORING_SETUP_SQPOLL)) {
		/* a submit that failed has shown them: the kernel looks again only when we enter */
		sq->sqe_head = sq->sqe_tail;
		IO_URING_WRITE_ONCE(*sq->ktail, sq->sqe_tail);
	}
	uring_leave(u);
	return n;
}

/* A request for each: kernels before 6.0. */
static int cancel_each(struct udrv_uring *u)
{
	struct io_uring_sqe *sqe;
	uint32_t i;
	int ret;

	for (i = 0; i < u->nr_slots; i++) {
		if (!u->slots[i].inflight)
			continue;
		sqe = uring_get_sqe(u);
		if (!sqe) {
			ret = submit_all(u);
			if (ret < 0)
				return ret;
			sqe = uring_get_sqe(u);
		}
		if (!sqe)
			return -EAGAIN;
		io_uring_prep_cancel64(sqe, uring_token(u, i), 0);
		sqe->user_data = UDRV_URING_INTERNAL;
	}
	ret = submit_all(u);
	return ret < 0 ? ret : 0;
}

int udrv_uring_cancel_all(struct udrv_uring *u, int sync)
{
	struct io_uring_sync_cancel_reg reg = {
		.fd = -1,
		.flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL,
		/* a timeout of 0: what cannot be cancelled at once completes later */
	};
	int ret = uring_enter(u);

	if (ret)
		return ret;
	/* what a polling thread has not taken yet cannot be found */
	if (u->ring.flags & IORING_SETUP_SQPOLL)
		uring_await_thread(u, 1);
	ret = sync ? io_uring_register_sync_cancel(&u->ring, &reg) : -EINVAL;
	if (ret == -EINVAL)
		ret = cancel_each(u);
	uring_leave(u);
	/* nothing left to cancel, or it runs and cannot be stopped */
	return ret == -ENOENT || ret == -ETIME || ret == -EALREADY || ret > 0 ? 0 : ret;
}

// SPDX-License-Identifier: Apache-2.0
/* uring_qp_wait.c - the one system call of a queue over io_uring, polling and sleeping. */
#include <errno.h>
#include <sched.h>

#include <udrv/barrier.h>
#include <udrv/wait.h>

#include "uring_qp_priv.h"

/* As in core's wait.c: rounds between two looks at the clock, and when to offer the CPU. */
#define SPIN_ROUNDS 32
#define YIELD_AFTER_NS 100000u

int udrv_uring_qp_call(struct udrv_uring_qp *qp, uint32_t min, uint64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (long long)(timeout_ns / 1000000000u),
		.tv_nsec = (long long)(timeout_ns % 1000000000u),
	};
	struct io_uring_getevents_arg arg = { .ts = (uint64_t)(uintptr_t)&ts };
	unsigned fd = (unsigned)qp->ring.ring_fd, flags = 0;
	int ret;

	/* release: the SQEs before the tail; the kernel reads it with acquire */
	__atomic_store_n(qp->ktail, qp->sq_tail, __ATOMIC_RELEASE);
	/* an index is a thread's own: in another one it may be another ring's */
	if (qp->registered >= 0 && likely(qp->thread == udrv_uring_thread())) {
		fd = (unsigned)qp->registered;
		flags = IORING_ENTER_REGISTERED_RING;
	}
	if (min)
		flags |= IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
	else if (!qp->pending || qp->flags & UDRV_URING_IOPOLL)
		flags |= IORING_ENTER_GETEVENTS;
	qp->counters.enters++;
	ret = min ? io_uring_enter2(fd, qp->pending, min, flags, (sigset_t *)(void *)&arg,
				    sizeof(arg)) :
		    io_uring_enter2(fd, qp->pending, 0, flags, NULL, _NSIG / 8);
	if (likely(ret >= 0)) {
		qp->pending -= (uint32_t)ret;
		return 0;
	}
	switch (ret) {
	case -EAGAIN:	/* no memory for requests just now */
	case -EBUSY:	/* completions are to be reaped first */
	case -EINTR:
	case -ETIME:
		return 0;
	}
	return ret;
}

int __udrv_uring_qp_wait(struct udrv_uring_qp *qp, const struct udrv_completions *out,
			 uint32_t min, uint32_t max, uint64_t timeout_ns, uint64_t spin_ns)
{
	const int measured = spin_ns == UDRV_SPIN_MEASURED;
	uint64_t start = udrv_monotonic_ns(), last = start;
	uint32_t n = 0, round = 0;

	if (unlikely(min > max || max > out->capacity))
		return -UDRV_EINVAL;	/* or there would never be enough */
	if (measured)
		spin_ns = udrv_spin_budget(&qp->spin, UDRV_SPIN_MEASURED);
	for (;;) {
		int ret = __udrv_uring_qp_reap(qp, out, n, max - n);
		uint64_t now, left;

		if (unlikely(ret < 0))
			return ret;
		/* who is going to sleep at once hands over and fetches by that very call */
		if (n + (uint32_t)ret < (min ? min : 1) && udrv_uring_qp_has_more(qp) &&
		    !(min && !spin_ns && timeout_ns && !(qp->flags & UDRV_URING_IOPOLL))) {
			int err = udrv_uring_qp_call(qp, 0, 0);

			if (unlikely(err))
				return n + (uint32_t)ret ? (int)(n + (uint32_t)ret) : err;
			n += (uint32_t)ret;
			ret = __udrv_uring_qp_reap(qp, out, n, max - n);
			if (unlikely(ret < 0))
				return ret;
		}
		n += (uint32_t)ret;
		if (measured) {
			if (ret && min)
				udrv_spin_observe(&qp->spin, udrv_monotonic_ns() - last);
			spin_ns = udrv_spin_budget(&qp->spin, UDRV_SPIN_MEASURED);
		}
		if (n >= min)
			return (int)n;
		if (!ret && spin_ns && ++round % SPIN_ROUNDS) {
			udrv_cpu_relax();
			continue;
		}
		now = udrv_monotonic_ns();
		if (ret)
			last = now;
		if (now - start >= timeout_ns)
			return (int)n;
		if (unlikely(__atomic_load_n(&qp->closed, __ATOMIC_RELAXED)))
			return n ? (int)n : -UDRV_ECLOSED;
		left = timeout_ns - (now - start);
		if (now - last >= spin_ns && spin_ns != UDRV_SPIN_ONLY &&
		    !(qp->flags & UDRV_URING_IOPOLL)) {
			/* it returns when there are min - n, or all that can come */
			uint32_t want = min - n < qp->inflight ? min - n : qp->inflight;

			ret = udrv_uring_qp_call(qp, want ? want : 1, left);
			if (unlikely(ret))
				return n ? (int)n : ret;
			if (unlikely(qp->stream))
				qp->stream->ops->woke(qp->stream, udrv_monotonic_ns() - now, left);
		} else if (now - last >= YIELD_AFTER_NS) {
			sched_yield();
		}
	}
}

int udrv_uring_qp_wait(struct udrv_uring_qp *qp, const struct udrv_completions *out, uint32_t min,
		       uint32_t max, uint64_t timeout_ns, uint64_t spin_ns)
{
	int ret = udrv_uring_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	ret = __udrv_uring_qp_wait(qp, out, min, max, timeout_ns, spin_ns);
	udrv_uring_qp_leave(qp);
	return ret;
}

int udrv_uring_qp_reap(struct udrv_uring_qp *qp, const struct udrv_completions *out,
		       uint32_t first, uint32_t max)
{
	int ret = udrv_uring_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	if (udrv_uring_qp_has_more(qp))
		ret = udrv_uring_qp_call(qp, 0, 0);
	if (likely(!ret))
		ret = __udrv_uring_qp_reap(qp, out, first, max);
	udrv_uring_qp_leave(qp);
	return ret;
}

/*
 * The kernel does not take them (another thread's ring), and never will: what was posted last and not
 * handed over is nobody's any more.
 */
static void forget_pending(struct udrv_uring_qp *qp)
{
	for (; qp->pending; qp->pending--) {
		const struct io_uring_sqe *sqe = udrv_uring_sqe(qp, --qp->sq_tail);
		struct udrv_uring_tracker *t = &qp->trackers[sqe->user_data];

		t->state = UDRV_TRACKER_FREE;
		qp->inflight--;
		qp->slot_inflight[t->slot]--;
		qp->free[qp->nr_free++] = (uint16_t)sqe->user_data;
	}
	__atomic_store_n(qp->ktail, qp->sq_tail, __ATOMIC_RELEASE);
}

int udrv_uring_qp_drain(struct udrv_uring_qp *qp, uint64_t timeout_ns)
{
	uint64_t start = udrv_monotonic_ns();
	struct udrv_completion row;
	const struct udrv_completions out = { .capacity = 1, .rows = &row };
	int ret = 0;

	if (qp->fork_generation != udrv_uring_fork_generation)
		return -UDRV_EFORKED;
	/* acquire: as udrv_uring_qp_enter(), but a closed pair is exactly what this is for */
	if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
		return -UDRV_EBUSY;
	while (qp->inflight) {
		uint64_t now = udrv_monotonic_ns();

		ret = __udrv_uring_qp_reap(qp, &out, 0, 1);
		if (ret)
			continue;
		if (now - start >= timeout_ns)
			break;
		if (qp->flags & UDRV_URING_IOPOLL) {
			ret = udrv_uring_qp_call(qp, 0, 0);
			sched_yield();
		} else {
			ret = udrv_uring_qp_call(qp, 1, timeout_ns - (now - start));
		}
		if (ret) {
			forget_pending(qp);
			break;
		}
	}
	if (ret >= 0 || !qp->inflight)
		ret = (int)qp->inflight;
	udrv_uring_qp_leave(qp);
	return ret;
}

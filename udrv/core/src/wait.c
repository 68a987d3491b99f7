// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <udrv/barrier.h>
#include <udrv/stream.h>
#include <udrv/wait.h>

#include "qp_priv.h"

/* Rounds of polling between two looks at the clock. */
#define SPIN_ROUNDS 32

/*
 * A poller that has seen nothing for this long offers its CPU to whoever else is runnable: a
 * device that is itself a process may be waiting for just this CPU. Where nobody is, the call
 * returns at once.
 */
#define YIELD_AFTER_NS 100000u

/* Sleep on the interrupt for at most ns. Return: 0, or -errno. */
static int sleep_on(int fd, uint64_t ns)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct timespec ts = {
		.tv_sec = (time_t)(ns / 1000000000u),
		.tv_nsec = (long)(ns % 1000000000u),
	};
	uint64_t count;
	int ret = ppoll(&pfd, 1, &ts, NULL);

	if (ret < 0)
		return errno == EINTR ? 0 : -errno;
	/*
	 * Reset the counter before the ring is looked at again: an interrupt that comes after this
	 * read sets it anew, so none is lost. The descriptor is non-blocking.
	 */
	if (ret > 0 && read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	return 0;
}

/* How long to sleep with `left` to the end of the wait: not past the moment to ring. */
static uint64_t patience(const struct udrv_qp *qp, uint64_t now, uint64_t left)
{
	uint64_t ring = qp->ring_after_ns - (now - qp->silent_since);

	return (qp->flags & UDRV_QP_HOW) && ring < left ? ring : left;
}

int __udrv_qp_wait(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t min,
		   uint32_t max, uint64_t timeout_ns, uint64_t spin_ns)
{
	const int measured = spin_ns == UDRV_SPIN_MEASURED;
	uint64_t start = udrv_monotonic_ns(), last = start;
	uint32_t n = 0, round = 0;

	if (unlikely(min > max || max > out->capacity))
		return -UDRV_EINVAL;	/* or there would never be enough */
	/* Waits that follow each other closely are one silence; else it begins now. */
	if (start - qp->waited_until >= qp->ring_after_ns)
		qp->silent_since = start;
	for (;;) {
		int ret = __udrv_qp_reap(qp, out, n, max - n);
		uint64_t now;

		if (unlikely(ret < 0))
			return ret;
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
		qp->waited_until = now;
		if (ret)
			last = qp->silent_since = now;
		if (unlikely(now - qp->silent_since >= qp->ring_after_ns)) {
			/* Does the device sleep, although EventIdx said that it does not? */
			__udrv_qp_ring(qp);
			qp->silent_since = now;
		}
		if (now - start >= timeout_ns)
			return (int)n;
		if (unlikely(__atomic_load_n(&qp->closed, __ATOMIC_RELAXED)))
			return n ? (int)n : __udrv_qp_shut(qp);
		if (qp->eventfd >= 0 && now - last >= spin_ns && spin_ns != UDRV_SPIN_ONLY) {
			const uint64_t most = patience(qp, now, timeout_ns - (now - start));

			ret = sleep_on(qp->eventfd, most);
			if (ret < 0)
				return ret;
			if (unlikely(qp->flags & UDRV_QP_STREAM))
				udrv_stream_woke(qp->stream, udrv_monotonic_ns() - now, most);
		} else if (now - last >= YIELD_AFTER_NS) {
			sched_yield();
		}
	}
}

int udrv_qp_wait(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t min,
		 uint32_t max, uint64_t timeout_ns, uint64_t spin_ns)
{
	int ret = udrv_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	ret = __udrv_qp_wait(qp, out, min, max, timeout_ns, spin_ns);
	udrv_qp_leave(qp);
	return ret;
}

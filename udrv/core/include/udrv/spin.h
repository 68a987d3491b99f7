/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spin.h - how long to poll before going to sleep, from how long the waits before took.
 *
 * To sleep and to be woken costs some 10 us of latency and a system call; to poll costs a CPU. A
 * queue whose completions come soon is polled for twice their mean, one whose completions take
 * longer than half of the most sleeps at once. The mean moves by an eighth of each wait, and a wait
 * counts as twice the most at most: after a long silence some ten short waits are learnt from.
 */
#ifndef UDRV_SPIN_H
#define UDRV_SPIN_H

#include <udrv/compiler.h>

#define UDRV_SPIN_ONLY UINT64_MAX		/* never sleep */
#define UDRV_SPIN_MEASURED (UINT64_MAX - 1)	/* as long as said above */

#define UDRV_SPIN_MOST_NS 200000u
#define UDRV_SPIN_LEAST_NS 5000u

struct udrv_spin {
	uint64_t mean_ns;	/* of the waits, 0 to 2 * UDRV_SPIN_MOST_NS */
};

/* Nanoseconds to poll, where the caller asks for `spin_ns`. */
static inline uint64_t udrv_spin_budget(const struct udrv_spin *s, uint64_t spin_ns)
{
	if (spin_ns != UDRV_SPIN_MEASURED)
		return spin_ns;
	if (s->mean_ns > UDRV_SPIN_MOST_NS / 2)
		return 0;
	return 2 * s->mean_ns + UDRV_SPIN_LEAST_NS;
}

/* A wait ended with a completion after so long. */
static inline void udrv_spin_observe(struct udrv_spin *s, uint64_t waited_ns)
{
	if (waited_ns > 2 * UDRV_SPIN_MOST_NS)
		waited_ns = 2 * UDRV_SPIN_MOST_NS;
	s->mean_ns += waited_ns / 8;
	s->mean_ns -= s->mean_ns / 8;
}

#endif /* UDRV_SPIN_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h - timestamps that cost a few cycles.
 *
 * Ticks come from the TSC (x86, when it is invariant and agrees with CLOCK_MONOTONIC over two
 * calibration intervals), from CNTVCT_EL0 (aarch64), or else from clock_gettime(), where a tick
 * is a nanosecond. The choice is made once, by udrv_clock_init(), and can be asked for: a latency
 * without its clock is half a measurement.
 */
#ifndef UDRV_CLOCK_H
#define UDRV_CLOCK_H

#include <time.h>

#include <udrv/compiler.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum udrv_clock_source {
	UDRV_CLOCK_GETTIME = 0,
	UDRV_CLOCK_TSC = 1,
	UDRV_CLOCK_CNTVCT = 2,
};

struct udrv_clock {
	uint32_t source;	/* enum udrv_clock_source */
	uint32_t __reserved;
	uint64_t mult;		/* ns = ticks * mult >> 32: 2^32 where a tick is a nanosecond */
	uint64_t base_ticks;
	uint64_t base_ns;	/* CLOCK_MONOTONIC at base_ticks */
};

extern struct udrv_clock udrv_clock;

/* Chooses and calibrates (some 20 ms, once); later calls return at once. Thread-safe. */
void udrv_clock_init(void);

/* Nanoseconds of CLOCK_MONOTONIC, by a system call or the vDSO. */
static inline uint64_t udrv_monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t udrv_ticks(void)
{
#if defined(__x86_64__)
	if (likely(udrv_clock.source == UDRV_CLOCK_TSC))
		return __rdtsc();
#elif defined(__aarch64__)
	if (likely(udrv_clock.source == UDRV_CLOCK_CNTVCT)) {
		uint64_t v;

		__asm__ __volatile__("isb; mrs %0, cntvct_el0" : "=r"(v));
		return v;
	}
#endif
	return udrv_monotonic_ns();
}

/* The same, read after all earlier loads: RDTSC alone may run ahead of a load that misses. */
static inline uint64_t udrv_ticks_after_loads(void)
{
#if defined(__x86_64__)
	_mm_lfence();
#endif
	return udrv_ticks();	/* aarch64: the isb in it */
}

/* A difference of ticks in nanoseconds. */
static inline uint64_t udrv_ticks_to_ns(uint64_t ticks)
{
	return (uint64_t)(((unsigned __int128)ticks * udrv_clock.mult) >> 32);
}

/* A tick value as CLOCK_MONOTONIC nanoseconds. */
static inline uint64_t udrv_ticks_monotonic_ns(uint64_t ticks)
{
	return udrv_clock.base_ns + udrv_ticks_to_ns(ticks - udrv_clock.base_ticks);
}

#endif /* UDRV_CLOCK_H */

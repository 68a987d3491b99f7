// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>

#include <udrv/clock.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define CALIBRATE_NS 10000000u
#define MAX_DISAGREE_PPM 200u

struct udrv_clock udrv_clock = {
	.source = UDRV_CLOCK_GETTIME,
	.mult = 1ull << 32,
};

#if defined(__x86_64__)
static int tsc_is_invariant(void)
{
	unsigned int a, b, c, d;

	/* CPUID 8000_0007h EDX[8]: constant rate in all P-, C- and T-states */
	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8));
}

/* A pair of readings of both clocks, as close together as a few tries can get them. */
static void sample(uint64_t *ticks, uint64_t *ns)
{
	uint64_t best = UINT64_MAX;
	int i;

	for (i = 0; i < 16; i++) {
		uint64_t before = __rdtsc();
		uint64_t mono = udrv_monotonic_ns();
		uint64_t after = __rdtsc();

		if (after - before < best) {
			best = after - before;
			*ticks = before + (after - before) / 2;
			*ns = mono;
		}
	}
}

/* 2^32 * ns per tick over one interval, 0 if the counter stood still or ran backwards */
static uint64_t measure(void)
{
	uint64_t t0, n0, t1, n1;

	sample(&t0, &n0);
	while (udrv_monotonic_ns() - n0 < CALIBRATE_NS)
		;
	sample(&t1, &n1);
	if (t1 <= t0 || n1 <= n0)
		return 0;
	return (uint64_t)(((unsigned __int128)(n1 - n0) << 32) / (t1 - t0));
}

static void choose(void)
{
	uint64_t a, b, diff;

	if (!tsc_is_invariant())
		return;
	a = measure();
	b = measure();
	diff = a > b ? a - b : b - a;
	if (!a || !b || diff > a / 1000000 * MAX_DISAGREE_PPM)
		return;	/* a virtual machine that moves, or a host that stole the time: be safe */
	udrv_clock.mult = a / 2 + b / 2;
	sample(&udrv_clock.base_ticks, &udrv_clock.base_ns);
	udrv_clock.source = UDRV_CLOCK_TSC;
}
#elif defined(__aarch64__)
static void choose(void)
{
	uint64_t hz;

	__asm__ __volatile__("mrs %0, cntfrq_el0" : "=r"(hz));
	if (!hz)
		return;
	udrv_clock.mult = (uint64_t)(((unsigned __int128)1000000000u << 32) / hz);
	__asm__ __volatile__("isb; mrs %0, cntvct_el0" : "=r"(udrv_clock.base_ticks));
	udrv_clock.base_ns = udrv_monotonic_ns();
	udrv_clock.source = UDRV_CLOCK_CNTVCT;
}
#else
static void choose(void)
{
}
#endif

void udrv_clock_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, choose);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_rng.h - random numbers for load generation: small, fast, and the same on every machine.
 *
 * xoshiro256** (Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators", 2018),
 * seeded through splitmix64, so that neighbouring seeds give unrelated streams. No libm: the core
 * links with libc only.
 */
#ifndef UDRV_BENCH_RNG_H
#define UDRV_BENCH_RNG_H

#include <string.h>

#include <udrv/compiler.h>

struct udrv_rng {
	uint64_t s[4];
};

/* splitmix64's finaliser: every output bit depends on every input bit. */
static inline uint64_t udrv_mix64(uint64_t v)
{
	v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
	v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
	return v ^ (v >> 31);
}

static inline void udrv_rng_seed(struct udrv_rng *rng, uint64_t seed)
{
	int i;

	for (i = 0; i < 4; i++) {
		seed += 0x9e3779b97f4a7c15u;
		rng->s[i] = udrv_mix64(seed);
	}
}

static inline uint64_t udrv_rng_next(struct udrv_rng *rng)
{
	uint64_t *s = rng->s;
	uint64_t m = s[1] * 5, t = s[1] << 17;

	s[2] ^= s[0];
	s[3] ^= s[1];
	s[1] ^= s[2];
	s[0] ^= s[3];
	s[2] ^= t;
	s[3] = (s[3] << 45) | (s[3] >> 19);
	return ((m << 7) | (m >> 57)) * 9;
}

/* Uniform in 0 .. n - 1, n > 0. The bias of multiply-and-shift is below n / 2^64. */
static inline uint64_t udrv_rng_below(struct udrv_rng *rng, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)udrv_rng_next(rng) * n) >> 64);
}

/*
 * An exponential variate of mean 1: -ln(u), u uniform in (0, 1]. u = m * 2^e with m in
 * [1/sqrt 2, sqrt 2), and ln m = 2 atanh((m - 1) / (m + 1)) by its series: the argument is below
 * 0.172, so that the first term left out is smaller than 1e-14.
 */
static inline double udrv_rng_exponential(struct udrv_rng *rng)
{
	double u = (double)((udrv_rng_next(rng) >> 11) + 1) * 0x1p-53;
	double m, s, z, sum = 0.0;
	uint64_t bits;
	int e, k;

	memcpy(&bits, &u, sizeof(bits));
	e = (int)(bits >> 52) - 1023;
	bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
	memcpy(&m, &bits, sizeof(m));
	if (m >= 1.4142135623730951) {
		m *= 0.5;
		e++;
	}
	s = (m - 1.0) / (m + 1.0);
	z = s * s;
	for (k = 17; k >= 1; k -= 2)
		sum = sum * z + 1.0 / k;
	return -(e * 0.6931471805599453 + 2.0 * s * sum);
}

#endif /* UDRV_BENCH_RNG_H */

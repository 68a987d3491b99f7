/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hist.h - a log-linear latency histogram, as HdrHistogram's: values below 2^(B+1) are exact, and
 * above that each power of two is cut into 2^B equal parts, B = 7. A value is reported as the
 * highest one of its bucket, so it is at most 1/128 = 0.79 % too high and never too low.
 *
 * The table is plain memory of the caller's: two histograms are merged by adding their counts.
 */
#ifndef UDRV_HIST_H
#define UDRV_HIST_H

#include <udrv/compiler.h>

#define UDRV_HIST_BITS 7
#define UDRV_HIST_MAX_EXP 42	/* values of 2^42 ns (73 minutes) and more saturate */
#define UDRV_HIST_BUCKETS ((UDRV_HIST_MAX_EXP - UDRV_HIST_BITS + 1) << UDRV_HIST_BITS)

struct udrv_hist {
	uint64_t count;
	uint64_t sum;		/* of the values as given, not of the buckets */
	uint64_t min;		/* UINT64_MAX while count is 0 */
	uint64_t max;
	double sum_sq;
	uint64_t saturated;	/* values counted in the last bucket because they were too large */
	uint64_t bucket[UDRV_HIST_BUCKETS];
};

static inline uint32_t udrv_hist_index(uint64_t v)
{
	uint32_t exp, shift;

	if (v < (2u << UDRV_HIST_BITS))
		return (uint32_t)v;
	if (unlikely(v >> UDRV_HIST_MAX_EXP))
		return UDRV_HIST_BUCKETS - 1;
	exp = 63u - (uint32_t)__builtin_clzll(v);
	shift = exp - UDRV_HIST_BITS;
	return (shift << UDRV_HIST_BITS) + (uint32_t)(v >> shift);
}

void udrv_hist_reset(struct udrv_hist *h);
void udrv_hist_merge(struct udrv_hist *to, const struct udrv_hist *from);

/* Highest value that falls into bucket `index` (index < UDRV_HIST_BUCKETS). */
uint64_t udrv_hist_bucket_high(uint32_t index);
uint64_t udrv_hist_bucket_low(uint32_t index);

/* The smallest recorded value v such that at least `quantile` (0 to 1) of all are <= v; 0 if empty. */
uint64_t udrv_hist_quantile(const struct udrv_hist *h, double quantile);

static inline void udrv_hist_record(struct udrv_hist *h, uint64_t v)
{
	h->count++;
	h->sum += v;
	h->sum_sq += (double)v * (double)v;
	if (v < h->min)
		h->min = v;
	if (v > h->max)
		h->max = v;
	if (unlikely(v >> UDRV_HIST_MAX_EXP))
		h->saturated++;
	h->bucket[udrv_hist_index(v)]++;
}

#endif /* UDRV_HIST_H */

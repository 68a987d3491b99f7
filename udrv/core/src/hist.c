// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include <udrv/hist.h>

void udrv_hist_reset(struct udrv_hist *h)
{
	memset(h, 0, sizeof(*h));
	h->min = UINT64_MAX;
}

void udrv_hist_merge(struct udrv_hist *to, const struct udrv_hist *from)
{
	uint32_t i;

	to->count += from->count;
	to->sum += from->sum;
	to->sum_sq += from->sum_sq;
	to->saturated += from->saturated;
	if (from->min < to->min)
		to->min = from->min;
	if (from->max > to->max)
		to->max = from->max;
	for (i = 0; i < UDRV_HIST_BUCKETS; i++)
		to->bucket[i] += from->bucket[i];
}

uint64_t udrv_hist_bucket_low(uint32_t index)
{
	uint32_t shift;

	if (index < (2u << UDRV_HIST_BITS))
		return index;
	shift = (index >> UDRV_HIST_BITS) - 1;
	return (uint64_t)(index - (shift << UDRV_HIST_BITS)) << shift;
}

uint64_t udrv_hist_bucket_high(uint32_t index)
{
	return udrv_hist_bucket_low(index + 1) - 1;
}

uint64_t udrv_hist_quantile(const struct udrv_hist *h, double quantile)
{
	uint64_t seen = 0, rank;
	uint32_t i;
	double want;

	if (!h->count)
		return 0;
	if (!(quantile > 0.0))	/* not a number included */
		return h->min;
	if (quantile >= 1.0)
		return h->max;
	want = quantile * (double)h->count;
	rank = (uint64_t)want;
	if ((double)rank < want)
		rank++;
	for (i = 0; i < UDRV_HIST_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen >= rank) {
			uint64_t high = udrv_hist_bucket_high(i);

			/* the top of a bucket may lie above the largest value that it holds */
			return high < h->max && i < UDRV_HIST_BUCKETS - 1 ? high : h->max;
		}
	}
	return h->max;
}

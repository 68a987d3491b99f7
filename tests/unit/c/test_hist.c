// SPDX-License-Identifier: Apache-2.0
/* The histogram's arithmetic, and the clock's. */
#include <udrv/clock.h>
#include <udrv/hist.h>

#include "harness.h"

TEST(buckets_tile_the_range_without_gap_or_overlap)
{
	uint32_t i;

	CHECK_EQ(udrv_hist_bucket_low(0), 0);
	for (i = 0; i < UDRV_HIST_BUCKETS; i++) {
		uint64_t low = udrv_hist_bucket_low(i), high = udrv_hist_bucket_high(i);

		CHECK(low <= high);
		CHECK_EQ(udrv_hist_index(low), i);
		CHECK_EQ(udrv_hist_index(high), i);
		CHECK_EQ(udrv_hist_bucket_low(i + 1), high + 1);
		/* the promise of at most 1 %: the value reported is the bucket's highest */
		CHECK((high - low) * 128 <= high);
	}
	CHECK_EQ(udrv_hist_bucket_high(UDRV_HIST_BUCKETS - 1), (1ull << UDRV_HIST_MAX_EXP) - 1);
}

TEST(values_too_large_saturate_and_are_counted)
{
	static struct udrv_hist h;

	udrv_hist_reset(&h);
	udrv_hist_record(&h, (1ull << UDRV_HIST_MAX_EXP) - 1);
	CHECK_EQ(h.saturated, 0);
	udrv_hist_record(&h, 1ull << UDRV_HIST_MAX_EXP);
	udrv_hist_record(&h, UINT64_MAX);
	CHECK_EQ(h.saturated, 2);
	CHECK_EQ(h.bucket[UDRV_HIST_BUCKETS - 1], 3);
	CHECK(h.max == UINT64_MAX && udrv_hist_quantile(&h, 0.999) == UINT64_MAX);
}

TEST(quantiles_are_within_one_percent_and_never_too_low)
{
	static const double quantiles[] = { 0.0, 0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0 };
	static struct udrv_hist h;
	uint64_t v;
	size_t i;

	udrv_hist_reset(&h);
	CHECK_EQ(udrv_hist_quantile(&h, 0.5), 0);
	for (v = 1; v <= 100000; v++)
		udrv_hist_record(&h, v * 37);
	for (i = 0; i < ARRAY_SIZE(quantiles); i++) {
		uint64_t got = udrv_hist_quantile(&h, quantiles[i]);
		uint64_t rank = (uint64_t)(quantiles[i] * 100000);
		uint64_t exact = (rank ? rank : 1) * 37;

		CHECK(got >= exact);
		CHECK(got <= exact + exact / 100 + 37);
		CHECK(got <= h.max);
	}
}

TEST(merging_is_recording_all_in_one)
{
	static struct udrv_hist a, b, both;
	uint64_t rng = 3;
	int i;

	udrv_hist_reset(&a);
	udrv_hist_reset(&b);
	udrv_hist_reset(&both);
	for (i = 0; i < 20000; i++) {
		uint64_t v = next_random(&rng) >> (next_random(&rng) % 60 + 4);

		/* small whole squares: the sums of squares are exact in any order */
		v &= 0xfffff;
		udrv_hist_record(i % 3 ? &a : &b, v);
		udrv_hist_record(&both, v);
	}
	udrv_hist_merge(&a, &b);
	CHECK(!memcmp(&a, &both, sizeof(a)));
	udrv_hist_reset(&b);
	udrv_hist_merge(&a, &b);	/* an empty one changes nothing, the minimum included */
	CHECK(!memcmp(&a, &both, sizeof(a)));
}

TEST(ticks_convert_without_overflow_or_drift)
{
	uint64_t day, one, t0, t1;

	udrv_clock_init();
	t0 = udrv_ticks();
	t1 = udrv_ticks();
	CHECK(t1 >= t0);
	/* a day of ticks is a day of nanoseconds, to the ppm, and a hundred days do not wrap */
	one = udrv_ticks_to_ns(1000000000ull);
	day = udrv_ticks_to_ns(86400ull * 1000000000ull);
	CHECK(one > 0);
	CHECK(day / 86400 <= one + 1 && day / 86400 + 1 >= one);
	CHECK(udrv_ticks_to_ns(8640000ull * 1000000000ull) / 100 / 86400 + 1 >= one);
}

static const struct test tests[] = {
	{ "buckets_tile_the_range_without_gap_or_overlap",
	  buckets_tile_the_range_without_gap_or_overlap },
	{ "values_too_large_saturate_and_are_counted", values_too_large_saturate_and_are_counted },
	{ "quantiles_are_within_one_percent_and_never_too_low",
	  quantiles_are_within_one_percent_and_never_too_low },
	{ "merging_is_recording_all_in_one", merging_is_recording_all_in_one },
	{ "ticks_convert_without_overflow_or_drift", ticks_convert_without_overflow_or_drift },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

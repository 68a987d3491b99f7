// SPDX-License-Identifier: Apache-2.0
/* The stream of a queue pair: its memory, its chunks, honest time. test_c_stream.py has the model. */
#include <pthread.h>
#include <time.h>

#include <udrv/stream.h>

#include "rig.h"

struct tap {
	struct rig *r;
	struct udrv_stream *s;
	struct udrv_stream_shared *sh;
	struct udrv_ring_reader *reader;
	size_t size;
};

static struct tap tap_new(uint32_t chunks, uint32_t flags)
{
	struct udrv_stream_config config = {
		.qid = RIG_QID, .flags = flags, .chunks = chunks, .cells = 16, .stride = 1,
		.period_ns = UDRV_STREAM_MAX_PERIOD_NS,
	};
	struct tap t = { .r = rig_new(65, -1), .size = udrv_stream_size(&config) };

	CHECK(t.size);
	t.sh = rig_area(t.size, 64);
	t.s = rig_area(udrv_stream_handle_size(), 64);
	t.reader = rig_area(sizeof(*t.reader), 64);
	CHECK_EQ(udrv_stream_check(t.sh, t.size), -UDRV_EINVAL);
	CHECK_EQ(udrv_stream_init(t.s, &config, t.sh, t.reader, 0), 0);
	CHECK_EQ(udrv_stream_check(t.sh, t.size), 0);
	CHECK_EQ(udrv_stream_add_namespace(t.s, 3, RIG_NSZE, 9), 0);
	CHECK_EQ(udrv_qp_set_stream(t.r->qp, t.s), 0);
	return t;
}

static void tap_free(struct tap *t)
{
	CHECK_EQ(udrv_qp_set_stream(t->r->qp, NULL), 0);
	rig_free(t->r);
	free(t->s);
	free(t->sh);
	free(t->reader);
}

/* n completions in batches of at most 64. */
static void run(struct tap *t, uint32_t n)
{
	while (n) {
		const uint32_t m = n < 64 ? n : 64;

		CHECK_EQ(rig_submit(t->r, 0, m), m);
		CHECK_EQ(rig_serve(t->r), m);
		CHECK_EQ(rig_reap(t->r, 64), m);
		n -= m;
	}
}

static void nap(long ms)
{
	const struct timespec ts = { .tv_nsec = ms * 1000000 };

	nanosleep(&ts, NULL);
}

static struct udrv_stream_counters count(const struct tap *t, uint64_t *waiting)
{
	struct udrv_stream_counters c;

	CHECK_EQ(udrv_stream_count(t->sh, t->reader, &c, waiting), 0);
	CHECK_EQ(c.seen, c.delivered + c.sampled_out + c.ring_full + c.overrun + *waiting);
	return c;
}

TEST(a_configuration_that_cannot_be_has_no_size)
{
	const struct udrv_stream_config good = {
		.qid = 1, .flags = UDRV_STREAM_RECORDS, .chunks = 2, .cells = 2, .stride = 1,
		.period_ns = UDRV_STREAM_MIN_PERIOD_NS,
	};
	struct udrv_stream_config c = good;

	CHECK(udrv_stream_size(&c));
	c.chunks = 1;
	CHECK_EQ(udrv_stream_size(&c), 0);
	c.chunks = UDRV_RING_MAX_CHUNKS + 1;
	CHECK_EQ(udrv_stream_size(&c), 0);
	c.flags = 0;	/* not asked for */
	CHECK(udrv_stream_size(&c));
	c = good;
	c.cells = 1;
	CHECK_EQ(udrv_stream_size(&c), 0);
	c = good;
	c.stride = 0;
	CHECK_EQ(udrv_stream_size(&c), 0);
	c = good;
	c.period_ns--;
	CHECK_EQ(udrv_stream_size(&c), 0);
	c.period_ns = UDRV_STREAM_MAX_PERIOD_NS + 1;
	CHECK_EQ(udrv_stream_size(&c), 0);
}

/* A reader of another process maps what somebody shows it: nothing of it may lead outside. */
TEST(false_memory_is_no_stream)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	struct udrv_stream_shared *copy = rig_area(t.size, 64);
	uint64_t rng = 1;
	uint32_t i;

	CHECK_EQ(udrv_stream_check(t.sh, sizeof(*t.sh) - 1), -UDRV_EINVAL);
	CHECK_EQ(udrv_stream_check(t.sh, t.size - 1), -UDRV_EINVAL);
	memcpy(copy, t.sh, t.size);
	for (i = 0; i < 20000; i++) {
		struct udrv_stream_counters c;
		struct udrv_window_row rows[16];
		struct udrv_ring_reader reader = { 0 };
		struct udrv_window w;
		uint64_t waiting, base, generation = 0;
		uint32_t first, end, words = 1 + next_random(&rng) % 3;

		memcpy(copy, t.sh, sizeof(*copy));
		while (words--)
			((uint32_t *)copy)[next_random(&rng) % (sizeof(*copy) / 4)] =
				next_random(&rng) & 1 ? (uint32_t)next_random(&rng) :
							(uint32_t)next_random(&rng) % 0x10000;
		if (udrv_stream_check(copy, t.size))
			continue;
		udrv_stream_count(copy, &reader, &c, &waiting);
		if (udrv_ring_take(copy, &reader, &generation, &first, &end, &base) >= 0)
			CHECK(first <= end && end <= UDRV_RECORD_ROWS);
		udrv_window_read(copy, copy->rotation, &w, rows, NULL, NULL, 16);
	}
	free(copy);
	tap_free(&t);
}

TEST(a_chunk_that_is_held_is_not_overwritten)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	uint64_t generation = 0, base, waiting;
	struct udrv_window_row rows[16];
	struct udrv_stream_counters c;
	const struct udrv_chunk *held;
	struct udrv_window w;
	uint32_t first, end;
	int index;

	run(&t, UDRV_RECORD_ROWS);
	index = udrv_ring_take(t.sh, t.reader, &generation, &first, &end, &base);
	CHECK(index >= 0);
	CHECK_EQ(end - first, UDRV_RECORD_ROWS);
	CHECK_EQ(base, 0);
	held = (const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset) + index;

	/* the other one goes round, unread */
	run(&t, 3 * UDRV_RECORD_ROWS);
	CHECK_EQ(held->generation, generation);
	CHECK_EQ(held->base, 0);
	c = count(&t, &waiting);
	CHECK_EQ(c.ring_full, 0);
	CHECK_EQ(c.overrun, 2 * UDRV_RECORD_ROWS);
	CHECK_EQ(waiting, UDRV_RECORD_ROWS);

	/* both are held: nothing can be written, nothing waits, and windows go on */
	CHECK(udrv_ring_take(t.sh, t.reader, &generation, &first, &end, &base) >= 0);
	CHECK_EQ(base, 3 * UDRV_RECORD_ROWS);
	run(&t, 500);
	c = count(&t, &waiting);
	CHECK_EQ(c.ring_full, 500);
	CHECK(udrv_window_read(t.sh, 1, &w, rows, NULL, NULL, 16) > 0);
	CHECK_EQ(w.seen, 4 * UDRV_RECORD_ROWS + 500);

	udrv_ring_release(t.reader, (uint32_t)index);
	run(&t, 7);
	CHECK(udrv_ring_take(t.sh, t.reader, &generation, &first, &end, &base) >= 0);
	CHECK_EQ(base, 4 * UDRV_RECORD_ROWS + 500);	/* the gap is what was lost */
	CHECK_EQ(end, 7);
	tap_free(&t);
}

/* What a consumer may write, all of it: the producer's memory and counts stay sound. */
TEST(a_consumer_that_writes_nonsense_harms_nobody_else)
{
	struct tap t = tap_new(3, UDRV_STREAM_RECORDS);
	uint64_t rng = 9, waiting;
	uint32_t i, j;

	for (i = 0; i < 300; i++) {
		for (j = 0; j < sizeof(*t.reader) / 8; j++)
			((uint64_t *)t.reader)[j] = next_random(&rng) % (i & 1 ? 64 : UINT64_MAX);
		run(&t, 64 + (uint32_t)(next_random(&rng) % 64));
		count(&t, &waiting);
	}
	tap_free(&t);
}

TEST(a_host_that_does_not_look_is_late)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	const struct udrv_chunk *c =
		(const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset);
	uint64_t waiting;
	uint32_t i;

	/* looked at all the time: the gap is small, the latency is the device's */
	CHECK_EQ(rig_submit(t.r, 0, 1), 1);
	for (i = 0; i < 20; i++) {
		nap(1);
		CHECK_EQ(rig_reap(t.r, 1), 0);
	}
	rig_serve(t.r);
	CHECK_EQ(rig_reap(t.r, 1), 1);
	CHECK(c->latency[0] >= 20 * 1000000 / 16);
	/* complete, and nobody looks for 30 ms */
	CHECK_EQ(rig_submit(t.r, 0, 1), 1);
	rig_serve(t.r);
	nap(30);
	CHECK_EQ(rig_reap(t.r, 1), 1);
	CHECK_EQ(c->flags[1], UDRV_RECORD_HOST_LATE);
	CHECK(t.sh->window[1].max_gap_ns >= 30000000);
	CHECK(count(&t, &waiting).host_late >= 1);
	CHECK_EQ(count(&t, &waiting).host_late, t.sh->window[1].host_late);
	tap_free(&t);
}

/* A reap that stops at `max` did not see whether there are more: that was no look at an empty queue. */
TEST(a_reap_that_stops_early_saw_no_empty_queue)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	const struct udrv_chunk *c =
		(const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset);
	uint32_t i;

	CHECK_EQ(rig_submit(t.r, 0, 8), 8);
	rig_serve(t.r);
	for (i = 0; i < 8; i++) {
		nap(2);
		CHECK_EQ(rig_reap(t.r, 1), 1);
		CHECK_EQ(c->flags[i], UDRV_RECORD_HOST_LATE);
	}
	tap_free(&t);
}

TEST(a_sleep_until_the_interrupt_is_told_apart)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	const struct udrv_chunk *c =
		(const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset);

	CHECK_EQ(rig_submit(t.r, 0, 1), 1);
	nap(20);
	rig_serve(t.r);
	udrv_stream_woke(t.s, 20000000, 100000000);
	CHECK_EQ(rig_reap(t.r, 1), 1);
	CHECK(c->flags[0] & UDRV_RECORD_SLEPT);
	/* a host that woke up too late for its own time limit did not run meanwhile */
	CHECK_EQ(rig_submit(t.r, 0, 1), 1);
	nap(20);
	rig_serve(t.r);
	udrv_stream_woke(t.s, 20000000, 1000000);
	CHECK_EQ(rig_reap(t.r, 1), 1);
	CHECK_EQ(c->flags[1], UDRV_RECORD_HOST_LATE);
	tap_free(&t);
}

TEST(commands_that_the_host_ended_are_records_in_no_cell)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	const struct udrv_chunk *c =
		(const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset);
	struct udrv_window_row rows[16];
	struct udrv_window w;
	uint64_t waiting;
	int i;

	CHECK_EQ(rig_submit(t.r, 0, 3), 3);
	CHECK_EQ(udrv_qp_halt(t.r->qp), 0);
	CHECK_EQ(udrv_qp_restart(t.r->qp), 3);
	udrv_qp_resume(t.r->qp);
	CHECK_EQ(rig_reap(t.r, 8), 3);
	CHECK_EQ(c->rows, 3);
	for (i = 0; i < 3; i++) {
		CHECK_EQ(c->flags[i], UDRV_RECORD_HOST_ENDED);
		CHECK_EQ(c->status[i], UDRV_STATUS_ABORTED_BY_HOST);
		CHECK_EQ(c->slba[i], t.r->done[i].user_data % 256 * 8);
		CHECK_EQ(c->latency[i], t.r->done[i].latency_ns / 16);
	}
	CHECK_EQ(udrv_window_read(t.sh, 1, &w, rows, NULL, NULL, 16), 0);
	CHECK_EQ(w.ended, 3);
	CHECK_EQ(w.seen, 3);
	CHECK_EQ(count(&t, &waiting).seen, 3);
	tap_free(&t);
}

/* A clock that stands still between two doorbells must not make one run of two. */
TEST(every_doorbell_has_a_time_of_its_own)
{
	struct tap t = tap_new(2, UDRV_STREAM_RECORDS);
	const struct udrv_chunk *c =
		(const struct udrv_chunk *)((const char *)t.sh + t.sh->chunks_offset);
	const uint64_t ahead = udrv_ticks() + (1ull << 40);
	uint32_t i;

	t.r->shared->last_ticks = ahead;
	t.r->cmd[1].nlb = 16;
	for (i = 0; i < 4; i++)
		CHECK_EQ(rig_submit(t.r, i, 1), 1);
	CHECK_EQ(t.r->shared->last_ticks, ahead + 4);
	rig_serve(t.r);
	CHECK_EQ(rig_reap(t.r, 8), 4);
	CHECK_EQ(c->nlb[0], 8);
	CHECK_EQ(c->nlb[1], 16);
	CHECK_EQ(c->nlb[2], 8);
	for (i = 0; i < 4; i++)
		CHECK_EQ(c->depth[i], i + 1);
	tap_free(&t);
}

TEST(an_untimed_pair_has_no_stream)
{
	struct tap t = tap_new(2, 0);
	struct rig *r = rig_new(8, -1);

	r->qp->flags |= UDRV_QP_UNTIMED;
	CHECK_EQ(udrv_qp_set_stream(r->qp, t.s), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_enter(t.r->qp), 0);
	CHECK_EQ(udrv_qp_set_stream(t.r->qp, NULL), -UDRV_EBUSY);
	udrv_qp_leave(t.r->qp);
	rig_free(r);
	tap_free(&t);
}

/* Windows follow each other; one that was read stays as it was; the fifth takes the first one's place. */
TEST(windows_turn_and_are_reused)
{
	struct tap t = tap_new(2, 0);
	struct udrv_window_row rows[16];
	uint32_t *hist = rig_area(16 * UDRV_HIST_BUCKETS * sizeof(*hist), 64);
	struct udrv_window w;
	uint32_t i, n;

	CHECK_EQ(udrv_window_read(t.sh, 1, &w, rows, NULL, NULL, 16), -UDRV_EAGAIN);
	for (i = 1; i <= 9; i++) {
		uint64_t seen = 0, counted = 0;
		int got, j;

		t.s->end_ticks = 0;	/* as if the period were over */
		run(&t, 10 * i);
		CHECK_EQ(t.sh->rotation, i);
		got = udrv_window_read(t.sh, i, &w, rows, hist, NULL, 16);
		CHECK(got > 0);
		for (j = 0; j < got; j++) {
			seen += rows[j].count;
			for (n = 0; n < UDRV_HIST_BUCKETS; n++)
				counted += hist[j * UDRV_HIST_BUCKETS + n];
		}
		CHECK_EQ(seen, 10 * i);
		CHECK_EQ(counted, 10 * i);
		CHECK_EQ(w.seen, 10 * i);
		CHECK_EQ(w.end_ns - w.start_ns, UDRV_STREAM_MAX_PERIOD_NS);
		CHECK_EQ(w.start_ns % UDRV_STREAM_MAX_PERIOD_NS, 0);
		if (i >= UDRV_WINDOWS) {
			CHECK(udrv_window_read(t.sh, i - 3, &w, rows, NULL, NULL, 16) > 0);
			CHECK_EQ(w.seen, 10 * (i - 3));
		}
		if (i > UDRV_WINDOWS)
			CHECK_EQ(udrv_window_read(t.sh, i - 4, &w, rows, NULL, NULL, 16),
				 -UDRV_ERANGE);
	}
	free(hist);
	tap_free(&t);
}

/* --- two threads: nobody reads what is being written ---------------------------------------- */

struct race {
	struct tap *t;
	uint32_t over;
	uint64_t taken;
	uint64_t chunks;
};

/* What run() completes: row i of a batch of 64 is block 8 * i, and there are no other batches. */
static void check_rows(const struct udrv_chunk *c, uint64_t base, uint32_t first, uint32_t end)
{
	uint32_t i;

	CHECK_EQ(c->base, base);
	for (i = first; i < end; i++) {
		CHECK_EQ(c->slba[i], (base + i) % 64 * 8);
		CHECK_EQ(c->depth[i], 64);
		CHECK_EQ(c->qid[i], RIG_QID);
		CHECK_EQ(c->nlb[i], 8);
	}
}

static void *take_and_check(void *arg)
{
	struct race *race = arg;
	struct tap *t = race->t;
	uint64_t generation = 0, base, last = 0;
	uint64_t rng = 5;
	int over = 0;

	while (!over) {
		const struct udrv_chunk *c;
		uint32_t first, end;
		int index;

		over = __atomic_load_n(&race->over, __ATOMIC_ACQUIRE);
		for (;;) {
			generation = 0;
			index = udrv_ring_take(t->sh, t->reader, &generation, &first, &end, &base);
			if (index < 0)
				break;
			c = (const struct udrv_chunk *)((const char *)t->sh + t->sh->chunks_offset) + index;
			CHECK(base + first >= last);
			last = base + end;
			race->taken += end - first;
			race->chunks++;
			check_rows(c, base, first, end);
			if (next_random(&rng) % 16 == 0)
				nap(1);	/* held: others go round, this one stays */
			check_rows(c, base, first, end);
			CHECK_EQ(c->generation, generation);
			udrv_ring_release(t->reader, (uint32_t)index);
		}
	}
	return NULL;
}

TEST(a_consumer_at_full_speed_reads_what_was_written)
{
	struct tap t = tap_new(3, UDRV_STREAM_RECORDS);
	struct race race = { .t = &t };
	struct udrv_stream_counters c;
	uint64_t waiting;
	pthread_t thread;
	uint32_t i;

	CHECK_EQ(pthread_create(&thread, NULL, take_and_check, &race), 0);
	for (i = 0; i < 300; i++) {
		run(&t, 64 * 32);
		if (i % 8 == 0)
			nap(1);	/* let it catch up, on one CPU, too */
	}
	__atomic_store_n(&race.over, 1, __ATOMIC_RELEASE);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	c = count(&t, &waiting);
	CHECK_EQ(c.seen, 300 * 64 * 32);
	CHECK_EQ(c.delivered, race.taken);
	CHECK_EQ(waiting, 0);
	CHECK(race.chunks > 10);
	tap_free(&t);
}

static const struct test tests[] = {
	{ "a_consumer_at_full_speed_reads_what_was_written",
	  a_consumer_at_full_speed_reads_what_was_written },
	{ "a_configuration_that_cannot_be_has_no_size", a_configuration_that_cannot_be_has_no_size },
	{ "false_memory_is_no_stream", false_memory_is_no_stream },
	{ "a_chunk_that_is_held_is_not_overwritten", a_chunk_that_is_held_is_not_overwritten },
	{ "a_consumer_that_writes_nonsense_harms_nobody_else",
	  a_consumer_that_writes_nonsense_harms_nobody_else },
	{ "a_host_that_does_not_look_is_late", a_host_that_does_not_look_is_late },
	{ "a_reap_that_stops_early_saw_no_empty_queue", a_reap_that_stops_early_saw_no_empty_queue },
	{ "a_sleep_until_the_interrupt_is_told_apart", a_sleep_until_the_interrupt_is_told_apart },
	{ "commands_that_the_host_ended_are_records_in_no_cell",
	  commands_that_the_host_ended_are_records_in_no_cell },
	{ "every_doorbell_has_a_time_of_its_own", every_doorbell_has_a_time_of_its_own },
	{ "an_untimed_pair_has_no_stream", an_untimed_pair_has_no_stream },
	{ "windows_turn_and_are_reused", windows_turn_and_are_reused },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

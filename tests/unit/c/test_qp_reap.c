// SPDX-License-Identifier: Apache-2.0
/* Completion: what a device may do, what it must not, and what becomes of commands given up. */
#include "rig.h"

TEST(a_completion_brings_back_what_was_submitted)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe sqe;

	CHECK_EQ(rig_submit(r, 5, 1), 1);
	CHECK(rig_fetch(r, &sqe));
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0x7abc, 0x1122334455667788ull);
	CHECK_EQ(udrv_qp_reap(r->qp, &r->out, 3, 1), 1);
	CHECK_EQ(r->done[3].user_data, r->cmd[5].user_data);
	CHECK_EQ(r->done[3].result, 0x1122334455667788ull);
	CHECK_EQ(r->done[3].status, 0x7abc);
	CHECK(r->done[3].latency_ns < 60ull * 1000000000);
	CHECK(!r->done[2].user_data && !r->done[4].user_data);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 0);
	rig_free(r);
}

TEST(a_window_outside_of_the_columns_is_refused)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 4), 4);
	CHECK_EQ(rig_serve(r), 4);
	CHECK_EQ(udrv_qp_reap(r->qp, &r->out, RIG_COLUMNS, 1), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_reap(r->qp, &r->out, 1, UINT32_MAX), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_reap(r->qp, &r->out, UINT32_MAX, 2), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_reap(r->qp, &r->out, RIG_COLUMNS, 0), 0);
	CHECK_EQ(r->cq_doorbell, 0);
	CHECK_EQ(rig_reap(r, 3), 3);
	CHECK_EQ(r->cq_doorbell, 3);
	CHECK_EQ(rig_reap(r, 3), 1);
	rig_free(r);
}

/* Thousands of commands through rings of all small sizes, completed in random order. */
TEST(rings_wrap_in_any_order)
{
	static const uint32_t sizes[] = { 2, 3, 4, 5, 8, 33 };
	uint64_t rng = 42;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct rig *r = rig_new(sizes[i], -1);
		uint64_t sent = 0, got = 0, sum_sent = 0, sum_got = 0;
		uint16_t held[64];
		uint32_t n_held = 0;

		while (got < 5000) {
			uint32_t want = (uint32_t)(next_random(&rng) % sizes[i]) + 1, j;
			struct nvme_sqe sqe;
			int n;

			for (j = 0; j < want; j++)
				r->cmd[j].user_data = sent + j;
			n = rig_submit(r, 0, want);
			CHECK(n >= 0);
			for (j = 0; j < (uint32_t)n; j++)
				sum_sent += sent++;
			while (rig_fetch(r, &sqe))
				held[n_held++] = sqe_cid(&sqe);
			CHECK(n_held < sizes[i]);
			for (j = (uint32_t)(next_random(&rng) % (n_held + 1)); j; j--) {
				uint32_t pick = (uint32_t)(next_random(&rng) % n_held);

				rig_post(r, held[pick], RIG_QID, 0, 0);
				held[pick] = held[--n_held];
			}
			n = rig_reap(r, (uint32_t)(next_random(&rng) % 8));
			CHECK(n >= 0);
			for (j = 0; j < (uint32_t)n; j++)
				sum_got += r->done[j].user_data;
			got += (uint64_t)n;
			CHECK_EQ(udrv_qp_inflight(r->qp), sent - got);
			CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), sent - got);
			CHECK(r->cq_doorbell < sizes[i]);
		}
		while (n_held)
			rig_post(r, held[--n_held], RIG_QID, 0, 0);
		while ((int64_t)sent - (int64_t)got > 0) {
			int n = rig_reap(r, 64), j;

			CHECK(n > 0);
			for (j = 0; j < n; j++)
				sum_got += r->done[j].user_data;
			got += (uint64_t)n;
		}
		CHECK_EQ(sum_got, sum_sent);
		CHECK_EQ(r->shared->submitted, sent);
		CHECK_EQ(r->shared->completed, sent);
		CHECK_EQ(r->shared->consumed, sent);
		rig_free(r);
	}
}

TEST(an_entry_of_the_last_lap_is_not_seen_again)
{
	struct rig *r = rig_new(4, -1);
	int lap;

	for (lap = 0; lap < 9; lap++) {
		CHECK_EQ(rig_submit(r, 0, 1), 1);
		/* the slot that is looked at next still holds what was there a lap ago */
		CHECK_EQ(rig_reap(r, 8), 0);
		CHECK_EQ(rig_serve(r), 1);
		CHECK_EQ(rig_reap(r, 8), 1);
		CHECK_EQ(rig_reap(r, 8), 0);
	}
	CHECK_EQ(r->shared->anomalies.duplicate, 0);
	rig_free(r);
}

TEST(unknown_command_ids_are_counted_and_index_nothing)
{
	static const uint16_t cids[] = { 7, 8, 255, 1000, 32768, 65535 };
	struct rig *r = rig_new(8, -1);
	size_t i;

	CHECK_EQ(rig_submit(r, 0, 7), 7);
	for (i = 0; i < ARRAY_SIZE(cids); i++)
		rig_post(r, cids[i], RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 0);
	CHECK_EQ(r->shared->anomalies.bad_cid, ARRAY_SIZE(cids));
	CHECK_EQ(r->shared->consumed, ARRAY_SIZE(cids));
	CHECK_EQ(r->shared->completed, 0);
	CHECK_EQ(r->cq_doorbell, ARRAY_SIZE(cids));
	CHECK_EQ(udrv_qp_inflight(r->qp), 7);
	CHECK_EQ(rig_serve(r), 7);
	CHECK_EQ(rig_reap(r, 8), 7);
	rig_free(r);
}

TEST(a_duplicate_completes_nothing_twice)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe sqe;

	CHECK_EQ(rig_submit(r, 0, 2), 2);
	CHECK(rig_fetch(r, &sqe));
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);	/* in the same pass */
	CHECK_EQ(rig_reap(r, 8), 1);
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);	/* in a later one */
	CHECK_EQ(rig_reap(r, 8), 0);
	rig_post(r, 5, RIG_QID, 0, 0);			/* an id that was never given out */
	CHECK_EQ(rig_reap(r, 8), 0);
	CHECK_EQ(r->shared->anomalies.duplicate, 3);
	CHECK_EQ(udrv_qp_inflight(r->qp), 1);
	CHECK_EQ(r->shared->nr_free, 6);
	CHECK(rig_fetch(r, &sqe));
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 1);
	CHECK_EQ(r->done[0].user_data, r->cmd[1].user_data);
	rig_free(r);
}

TEST(another_queues_completion_completes_nothing)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe sqe;

	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK(rig_fetch(r, &sqe));
	rig_post(r, sqe_cid(&sqe), RIG_QID + 1, 0, 0);
	rig_post(r, sqe_cid(&sqe), 0, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 0);
	CHECK_EQ(r->shared->anomalies.bad_sqid, 2);
	CHECK_EQ(udrv_qp_inflight(r->qp), 1);
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 1);
	rig_free(r);
}

TEST(a_device_that_completes_for_ever_is_left_after_one_lap)
{
	struct rig *r = rig_new(8, -1);
	uint32_t i;

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	/*
	 * Both laps' phases at once cannot be in one ring; a device that rewrites entries as fast
	 * as they are read can look so. One call must not read more than a lap of them.
	 */
	for (i = 0; i < 8; i++)
		rig_post(r, 0xffff, RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 100), 0);
	CHECK_EQ(r->shared->consumed, 8);
	CHECK_EQ(r->cq_doorbell, 0);
	for (i = 0; i < 8; i++)
		rig_post(r, 0xffff, RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 0), 0);
	CHECK_EQ(r->shared->consumed, 8);
	CHECK_EQ(rig_reap(r, 1), 0);
	CHECK_EQ(r->shared->consumed, 16);
	CHECK_EQ(udrv_qp_inflight(r->qp), 3);
	rig_free(r);
}

TEST(random_entries_never_break_the_books)
{
	struct rig *r = rig_new(16, -1);
	uint64_t rng = 7, round;

	for (round = 0; round < 20000; round++) {
		uint32_t before = udrv_qp_inflight(r->qp), i, live = 0, in_slot = 0;
		int sent = rig_submit(r, 0, (uint32_t)(next_random(&rng) % 4)), got;

		for (i = 0; i < 4; i++)
			rig_post(r, (uint16_t)(next_random(&rng) % 20),
				 next_random(&rng) % 8 ? RIG_QID : (uint16_t)next_random(&rng),
				 (uint16_t)next_random(&rng) & 0x7fff, next_random(&rng));
		got = rig_reap(r, 32);
		CHECK(got >= 0 && got <= 4);
		CHECK_EQ(udrv_qp_inflight(r->qp), (int)before + sent - got);
		for (i = 0; i < 15; i++)
			live += r->qp->trackers[i].state == UDRV_TRACKER_INFLIGHT;
		for (i = 0; i < r->shared->nr_free; i++)
			CHECK_EQ(r->qp->trackers[r->qp->free[i] / sizeof(struct udrv_tracker)].state, UDRV_TRACKER_FREE);
		for (i = 0; i < UDRV_QP_SLOTS; i++)
			in_slot += udrv_qp_slot_inflight(r->qp, (uint16_t)i);
		CHECK_EQ(live, udrv_qp_inflight(r->qp));
		CHECK_EQ(in_slot, live);
	}
	CHECK(r->shared->anomalies.bad_cid && r->shared->anomalies.bad_sqid &&
	      r->shared->anomalies.duplicate);
	CHECK_EQ(r->shared->consumed, r->shared->completed + r->shared->anomalies.bad_cid +
		 r->shared->anomalies.bad_sqid + r->shared->anomalies.duplicate);
	rig_free(r);
}

TEST(a_command_in_quarantine_keeps_its_id_until_it_completes)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe held[3], sqe;
	int i;

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	for (i = 0; i < 3; i++)
		CHECK(rig_fetch(r, &held[i]));
	CHECK_EQ(udrv_qp_quarantine(r->qp, UDRV_QP_SLOTS), 3);
	CHECK_EQ(udrv_qp_quarantine(r->qp, UDRV_QP_SLOTS), 0);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 3);
	CHECK_EQ(udrv_qp_inflight(r->qp), 3);

	/* only four ids are left, and none of them is one of the three */
	CHECK_EQ(rig_submit(r, 10, 7), 4);
	while (rig_fetch(r, &sqe)) {
		for (i = 0; i < 3; i++)
			CHECK(sqe_cid(&sqe) != sqe_cid(&held[i]));
		rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	}
	rig_post(r, sqe_cid(&held[1]), RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 4);	/* the late one is not delivered */
	CHECK_EQ(r->shared->anomalies.late, 1);
	CHECK_EQ(udrv_qp_inflight(r->qp), 2);
	rig_post(r, sqe_cid(&held[1]), RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 8), 0);
	CHECK_EQ(r->shared->anomalies.duplicate, 1);
	CHECK_EQ(udrv_qp_release_all(r->qp), 2);
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 0);
	CHECK_EQ(rig_submit(r, 0, 7), 7);
	rig_free(r);
}

TEST(quarantine_takes_one_slot_and_leaves_the_others)
{
	struct rig *r = rig_new(16, -1);
	struct nvme_sqe sqe;

	r->batch.slot = 1;
	CHECK_EQ(rig_submit(r, 0, 4), 4);
	r->batch.slot = 2;
	CHECK_EQ(rig_submit(r, 4, 5), 5);
	CHECK_EQ(udrv_qp_quarantine(r->qp, 2), 5);
	CHECK_EQ(udrv_qp_quarantine(r->qp, 3), 0);
	while (rig_fetch(r, &sqe))
		rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	CHECK_EQ(rig_reap(r, 16), 4);
	CHECK_EQ(r->shared->anomalies.late, 5);
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);
	rig_free(r);
}

static const struct test tests[] = {
	{ "a_completion_brings_back_what_was_submitted",
	  a_completion_brings_back_what_was_submitted },
	{ "a_window_outside_of_the_columns_is_refused", a_window_outside_of_the_columns_is_refused },
	{ "rings_wrap_in_any_order", rings_wrap_in_any_order },
	{ "an_entry_of_the_last_lap_is_not_seen_again", an_entry_of_the_last_lap_is_not_seen_again },
	{ "unknown_command_ids_are_counted_and_index_nothing",
	  unknown_command_ids_are_counted_and_index_nothing },
	{ "a_duplicate_completes_nothing_twice", a_duplicate_completes_nothing_twice },
	{ "another_queues_completion_completes_nothing",
	  another_queues_completion_completes_nothing },
	{ "a_device_that_completes_for_ever_is_left_after_one_lap",
	  a_device_that_completes_for_ever_is_left_after_one_lap },
	{ "random_entries_never_break_the_books", random_entries_never_break_the_books },
	{ "a_command_in_quarantine_keeps_its_id_until_it_completes",
	  a_command_in_quarantine_keeps_its_id_until_it_completes },
	{ "quarantine_takes_one_slot_and_leaves_the_others",
	  quarantine_takes_one_slot_and_leaves_the_others },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

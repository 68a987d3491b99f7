// SPDX-License-Identifier: Apache-2.0
/* A controller reset under a queue pair: who is kept out, who is told what, and what is overdue. */
#include <pthread.h>
#include <unistd.h>

#include <udrv/lane.h>
#include <udrv/wait.h>

#include "rig.h"

/* What the driver does between halt and resume, and the device with it. */
static int reset(struct rig *r)
{
	int n;

	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	n = udrv_qp_restart(r->qp);
	r->sq_head = r->cq_tail = r->sq_doorbell = r->cq_doorbell = 0;
	r->cq_phase = 1;
	udrv_qp_resume(r->qp);
	return n;
}

TEST(a_halted_pair_lets_nobody_in_until_it_is_resumed)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(udrv_qp_enter(r->qp), 0);
	CHECK_EQ(udrv_qp_halt(r->qp), -UDRV_EBUSY);	/* somebody is inside */
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_EHALTED);	/* and nobody else is told of a thread */
	CHECK_EQ(udrv_qp_restart(r->qp), -UDRV_EBUSY);
	CHECK_EQ(__udrv_qp_wait(r->qp, &r->out, 1, 1, 1u << 30, UDRV_SPIN_ONLY), -UDRV_EHALTED);
	udrv_qp_leave(r->qp);
	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_EHALTED);
	CHECK_EQ(rig_reap(r, 8), -UDRV_EHALTED);
	CHECK_EQ(udrv_qp_quarantine(r->qp, UDRV_QP_SLOTS), -UDRV_EHALTED);
	udrv_qp_resume(r->qp);
	CHECK_EQ(udrv_qp_restart(r->qp), -UDRV_ECLOSED);	/* not without halt */
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	rig_free(r);
}

TEST(a_pair_that_is_closed_meanwhile_stays_closed)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	udrv_qp_close(r->qp);
	udrv_qp_resume(r->qp);
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_ECLOSED);
	CHECK_EQ(udrv_qp_halt(r->qp), -UDRV_ECLOSED);
	rig_free(r);
}

TEST(commands_in_flight_are_delivered_as_aborted_each_once)
{
	struct rig *r = rig_new(8, -1);
	uint64_t seen = 0;
	int i, n;

	/* some way into the second lap, so that indexes and phase are not those of the beginning */
	for (i = 0; i < 2; i++) {
		CHECK_EQ(rig_submit(r, 0, 5), 5);
		CHECK_EQ(rig_serve(r), 5);
		CHECK_EQ(rig_reap(r, 8), 5);
	}
	r->batch.slot = 12;
	CHECK_EQ(rig_submit(r, 100, 2), 2);
	CHECK_EQ(udrv_qp_quarantine(r->qp, 12), 2);
	r->batch.slot = 11;
	CHECK_EQ(rig_submit(r, 0, 5), 5);
	CHECK_EQ(udrv_qp_inflight(r->qp), 7);

	CHECK_EQ(reset(r), 5);
	CHECK_EQ(udrv_qp_inflight(r->qp), 5);	/* their owner has not been told */
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 5);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 12), 0);
	CHECK_EQ(reset(r), 0);			/* a second one adds none and loses none */

	/* new commands go beside them, and are not delivered before them */
	CHECK_EQ(rig_submit(r, 10, 8), 2);
	CHECK_EQ(rig_serve(r), 2);
	for (i = 0; i < 5; i += n) {
		int row;

		n = rig_reap(r, 2);
		CHECK(n == (i < 4 ? 2 : 1));
		for (row = 0; row < n; row++) {
			CHECK_EQ(r->done[row].status, UDRV_STATUS_ABORTED_BY_HOST);
			CHECK_EQ(r->done[row].result, 0);
			seen |= 1ull << (r->done[row].user_data - 0xfeed00000000ull);
		}
	}
	CHECK_EQ(seen, 0x1f);
	CHECK_EQ(rig_reap(r, 8), 2);
	CHECK_EQ(r->done[0].user_data, 0xfeed00000000ull + 10);
	CHECK_EQ(r->done[1].status, 0);
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);

	/* all command ids are there again, and the ring works beyond its end */
	for (i = 0; i < 5; i++) {
		CHECK_EQ(rig_submit(r, 0, 8), 7);
		CHECK_EQ(rig_serve(r), 7);
		CHECK_EQ(rig_reap(r, 8), 7);
	}
	rig_free(r);
}

TEST(who_gave_up_is_not_told)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	CHECK_EQ(reset(r), 3);
	CHECK_EQ(udrv_qp_quarantine(r->qp, 11), 3);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 0);	/* the reset was the proof */
	CHECK_EQ(rig_reap(r, 8), 0);
	CHECK_EQ(rig_submit(r, 0, 8), 7);
	CHECK_EQ(reset(r), 7);
	CHECK_EQ(udrv_qp_release_all(r->qp), 7);
	CHECK_EQ(rig_reap(r, 8), 0);
	rig_free(r);
}

TEST(a_wait_gets_what_was_aborted)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	CHECK_EQ(reset(r), 3);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 3, 3, 1u << 30, UDRV_SPIN_ONLY), 3);
	CHECK_EQ(r->done[2].status, UDRV_STATUS_ABORTED_BY_HOST);
	rig_free(r);
}

static void *waiter(void *arg)
{
	struct rig *r = arg;

	return (void *)(intptr_t)udrv_qp_wait(r->qp, &r->out, 1, 8, 60000000000u, UDRV_SPIN_ONLY);
}

TEST(a_thread_that_waits_comes_out)
{
	struct rig *r = rig_new(8, -1);
	pthread_t thread;
	void *ret;

	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK_EQ(pthread_create(&thread, NULL, waiter, r), 0);
	while (!__atomic_load_n(&r->qp->owner, __ATOMIC_RELAXED))
		usleep(100);
	while (udrv_qp_halt(r->qp) == -UDRV_EBUSY)
		usleep(100);
	CHECK_EQ(pthread_join(thread, &ret), 0);
	CHECK_EQ((intptr_t)ret, -UDRV_EHALTED);
	rig_free(r);
}

TEST(overdue_is_what_is_in_flight_too_long_and_not_in_the_ring)
{
	static uint64_t limits[256];
	struct rig *r = rig_new(8, -1);
	struct udrv_overdue late[8];
	struct nvme_sqe sqe;

	r->cmd[1].opcode = NVME_CMD_WRITE;
	CHECK_EQ(rig_submit(r, 0, 4), 4);
	usleep(2000);
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 0);	/* no limits */
	limits[NVME_CMD_READ] = 3600000000000u;
	limits[NVME_CMD_WRITE] = 1000000;
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 1);
	CHECK_EQ(late[0].user_data, r->cmd[1].user_data);
	CHECK_EQ(late[0].slba, r->cmd[1].slba);
	CHECK_EQ(late[0].len, 4096);
	CHECK_EQ(late[0].opcode, NVME_CMD_WRITE);
	CHECK(late[0].age_ns >= 2000000);
	limits[NVME_CMD_READ] = 1000000;
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 2), 2);
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 4);
	/* what waits to be reaped is the host's fault, not the device's */
	CHECK(rig_fetch(r, &sqe));
	rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	CHECK_EQ(udrv_qp_unreaped(r->qp), 1);
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 3);
	CHECK_EQ(rig_serve(r), 3);
	CHECK_EQ(udrv_qp_unreaped(r->qp), 4);
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 0);
	CHECK_EQ(rig_reap(r, 8), 4);
	CHECK_EQ(udrv_qp_unreaped(r->qp), 0);
	/* nor is what was given up anybody's */
	CHECK_EQ(rig_submit(r, 0, 4), 4);
	usleep(2000);
	CHECK_EQ(udrv_qp_quarantine(r->qp, UDRV_QP_SLOTS), 4);
	CHECK_EQ(udrv_qp_overdue(r->qp, limits, late, 8), 0);
	rig_free(r);
}

TEST(a_ring_full_of_lies_is_walked_once)
{
	struct rig *r = rig_new(8, -1);
	int i;

	for (i = 0; i < 8; i++)
		r->cq[i].dw3 = 1u << 16;	/* new in the first lap, all of them */
	CHECK(udrv_qp_unreaped(r->qp) <= 8);
	r->shared->cq_head = 7;
	CHECK(udrv_qp_unreaped(r->qp) <= 8);
	rig_free(r);
}

TEST(a_lane_steps_aside_and_takes_up_its_command_again)
{
	struct rig *r = rig_new(8, -1);
	struct udrv_lane *l = rig_area(sizeof(*l), 64);
	struct udrv_queue queue;

	udrv_qp_as_queue(r->qp, &queue);
	udrv_lane_init(l, &queue, 20, 1000, 1000000);
	CHECK_EQ(udrv_lane_run(l, &r->batch, NVME_CMD_READ, 0, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_qp_halt(r->qp), -UDRV_EBUSY);	/* a pending lane is inside */
	CHECK_EQ(udrv_lane_wait(l, &r->batch), -UDRV_EHALTED);
	CHECK(udrv_lane_held(l, &r->batch));
	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	CHECK_EQ(udrv_lane_wait(l, &r->batch), -UDRV_EHALTED);
	CHECK_EQ(udrv_lane_lend(l, 1), -UDRV_EBUSY);
	CHECK_EQ(reset(r), 1);
	CHECK_EQ(udrv_lane_wait(l, &r->batch), UDRV_STATUS_ABORTED_BY_HOST);
	CHECK(!udrv_lane_held(l, &r->batch));
	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	CHECK_EQ(udrv_lane_run(l, &r->batch, NVME_CMD_READ, 0, 1), -UDRV_EHALTED);
	CHECK(!udrv_lane_held(l, &r->batch));	/* nothing was sent */
	CHECK_EQ(udrv_lane_lend(l, 1), -UDRV_EHALTED);
	udrv_qp_resume(r->qp);

	/* given up while it stood aside: the next caller's lane is not told of it */
	CHECK_EQ(udrv_lane_run(l, &r->batch, NVME_CMD_READ, 0, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_qp_halt(r->qp), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_wait(l, &r->batch), -UDRV_EHALTED);
	CHECK_EQ(udrv_lane_give_up(l, &r->batch, 21), 20);
	CHECK(!udrv_lane_held(l, &r->batch));
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 20), 1);
	CHECK_EQ(reset(r), 1);
	CHECK_EQ(udrv_lane_run(l, &r->batch, NVME_CMD_READ, 0, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 20), 0);
	CHECK_EQ(udrv_lane_give_up(l, &r->batch, 20), 21);
	CHECK_EQ(udrv_qp_halt(r->qp), 0);
	CHECK_EQ(reset(r), 0);

	/* given up while it stood aside, and the pair closed for good */
	CHECK_EQ(udrv_lane_run(l, &r->batch, NVME_CMD_READ, 0, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_qp_halt(r->qp), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_wait(l, &r->batch), -UDRV_EHALTED);
	udrv_qp_close(r->qp);
	CHECK_EQ(udrv_lane_wait(l, &r->batch), -UDRV_ECLOSED);
	CHECK(udrv_lane_held(l, &r->batch));
	CHECK_EQ(udrv_lane_give_up(l, &r->batch, 21), 20);
	CHECK(!udrv_lane_held(l, &r->batch));
	CHECK_EQ(udrv_qp_release_all(r->qp), 1);
	free(l);
	rig_free(r);
}

static const struct test tests[] = {
	{ "a_halted_pair_lets_nobody_in_until_it_is_resumed",
	  a_halted_pair_lets_nobody_in_until_it_is_resumed },
	{ "a_pair_that_is_closed_meanwhile_stays_closed",
	  a_pair_that_is_closed_meanwhile_stays_closed },
	{ "commands_in_flight_are_delivered_as_aborted_each_once",
	  commands_in_flight_are_delivered_as_aborted_each_once },
	{ "who_gave_up_is_not_told", who_gave_up_is_not_told },
	{ "a_wait_gets_what_was_aborted", a_wait_gets_what_was_aborted },
	{ "a_thread_that_waits_comes_out", a_thread_that_waits_comes_out },
	{ "overdue_is_what_is_in_flight_too_long_and_not_in_the_ring",
	  overdue_is_what_is_in_flight_too_long_and_not_in_the_ring },
	{ "a_ring_full_of_lies_is_walked_once", a_ring_full_of_lies_is_walked_once },
	{ "a_lane_steps_aside_and_takes_up_its_command_again",
	  a_lane_steps_aside_and_takes_up_its_command_again },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

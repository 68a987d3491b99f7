// SPDX-License-Identifier: Apache-2.0
/* A lane over the rig: who has it, and what becomes of a command that takes long. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <udrv/lane.h>

#include "rig.h"

/* A queue whose device answers only when `serves` is set: inside of the wait. */
static struct rig *rig;
static int serves;
static uint16_t status;

static int enter(void *qp)
{
	return udrv_qp_enter(qp);
}

static void leave(void *qp)
{
	udrv_qp_leave(qp);
}

static int submit(void *qp, const struct udrv_batch *b, uint32_t first, uint32_t n, uint32_t *bad)
{
	return __udrv_qp_submit(qp, b, first, n, bad);
}

static int wait_(void *qp, const struct udrv_completions *out, uint32_t min, uint32_t max,
		 uint64_t timeout_ns, uint64_t spin_ns)
{
	struct nvme_sqe sqe;

	CHECK_EQ(min, 1);
	CHECK(timeout_ns && spin_ns);
	while (serves && rig_fetch(rig, &sqe))
		rig_post(rig, sqe_cid(&sqe), RIG_QID, status, 0x1234);
	if (__atomic_load_n(&((struct udrv_qp *)qp)->closed, __ATOMIC_RELAXED))
		return -UDRV_ECLOSED;
	return __udrv_qp_reap(qp, out, 0, max);
}

static int quarantine(void *qp, uint32_t slot)
{
	return __udrv_qp_quarantine(qp, slot);
}

static const struct udrv_queue_ops ops = {
	.enter = enter, .leave = leave, .submit = submit, .wait = wait_, .quarantine = quarantine,
};

static struct udrv_lane *lane_new(void)
{
	struct udrv_lane *l = rig_area(sizeof(*l), 64);
	struct udrv_queue queue = { .ops = &ops };

	rig = rig_new(8, -1);
	queue.handle = rig->qp;
	serves = 1;
	status = 0;
	udrv_lane_init(l, &queue, 5, UINT64_MAX, 1000);
	return l;
}

static void lane_free(struct udrv_lane *l)
{
	rig_free(rig);
	free(l);
}

static int run(struct udrv_lane *l, uint64_t slba, uint32_t nlb)
{
	return udrv_lane_run(l, &rig->batch, NVME_CMD_READ | 0x4000u << 16, slba, nlb);
}

TEST(a_command_goes_out_as_asked_and_its_status_comes_back)
{
	struct udrv_lane *l = lane_new();
	const struct nvme_sqe *sqe = rig->sq;

	CHECK_EQ(run(l, 77, 8), 0);
	CHECK_EQ(sqe->slba, 77);
	CHECK_EQ(sqe->cdw12, 7 | 0x4000u << 16);
	CHECK_EQ(sqe->prp1, RIG_IOVA);
	CHECK_EQ(sqe->nsid, 3);
	CHECK_EQ(l->done.result, 0x1234);
	status = 0x281;
	CHECK_EQ(run(l, 77, 8), 0x281);
	CHECK_EQ(udrv_qp_inflight(rig->qp), 0);
	CHECK_EQ(l->holder, 0);
	lane_free(l);
}

TEST(a_bad_command_leaves_nothing_behind)
{
	struct udrv_lane *l = lane_new();

	CHECK_EQ(run(l, RIG_NSZE, 1), -UDRV_ERANGE);
	CHECK_EQ(run(l, 0, 0), -UDRV_ERANGE);
	CHECK_EQ(run(l, 0, UINT32_MAX), -UDRV_ESIZE);
	CHECK_EQ(udrv_lane_run(l, &rig->batch, 0x99, 0, 1), -UDRV_EOPCODE);
	rig->batch.len = 512;
	CHECK_EQ(run(l, 0, 2), -UDRV_EBUFFER);
	CHECK_EQ(rig->sq_doorbell, 0);
	CHECK_EQ(run(l, 0, 1), 0);
	lane_free(l);
}

static void *all_are_refused(void *arg)
{
	struct udrv_lane *l = arg;

	CHECK_EQ(run(l, 0, 1), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_give_up(l, &rig->batch, 6), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_lend(l, 1), -UDRV_EBUSY);
	return NULL;
}

TEST(a_pending_command_is_its_threads_alone)
{
	struct udrv_lane *l = lane_new();
	pthread_t other;

	serves = 0;
	CHECK_EQ(run(l, 0, 1), -UDRV_EAGAIN);
	CHECK_EQ(l->holder, (uint64_t)pthread_self());
	CHECK_EQ(pthread_create(&other, NULL, all_are_refused, l), 0);
	CHECK_EQ(pthread_join(other, NULL), 0);
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), -UDRV_EAGAIN);
	serves = 1;
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), 0);
	CHECK_EQ(l->holder, 0);
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), -UDRV_EBUSY);	/* nobody's */
	CHECK_EQ(run(l, 0, 1), 0);
	lane_free(l);
}

TEST(one_that_was_given_up_does_not_answer_for_the_next)
{
	struct udrv_lane *l = lane_new();

	serves = 0;
	CHECK_EQ(run(l, 1, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_lane_give_up(l, &rig->batch, 6), 5);
	CHECK_EQ(l->batch.slot, 6);
	CHECK_EQ(udrv_qp_slot_inflight(rig->qp, 5), 1);
	/* its completion comes first, and is not the next one's */
	serves = 1;
	status = 0;
	CHECK_EQ(run(l, 2, 1), 0);
	CHECK_EQ(l->done.user_data, l->serial);
	CHECK_EQ(udrv_qp_inflight(rig->qp), 0);

	serves = 0;
	CHECK_EQ(run(l, 3, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_lane_give_up(l, &rig->batch, 0xffff), 6);
	CHECK_EQ(run(l, 4, 1), -UDRV_EINVAL);	/* no slot: the lane is of no more use */
	serves = 1;
	CHECK_EQ(rig_serve(rig), 1);
	CHECK_EQ(rig_reap(rig, 8), 0);
	CHECK_EQ(rig->shared->anomalies.late, 2);
	lane_free(l);
}

TEST(one_that_was_given_up_does_not_answer_the_borrower)
{
	struct udrv_lane *l = lane_new();

	serves = 0;
	CHECK_EQ(run(l, 1, 1), -UDRV_EAGAIN);
	CHECK_EQ(udrv_lane_give_up(l, &rig->batch, 6), 5);
	CHECK_EQ(udrv_lane_lend(l, 1), 0);
	CHECK_EQ(rig_submit(rig, 0, 2), 2);
	CHECK_EQ(rig_serve(rig), 3);
	CHECK_EQ(rig_reap(rig, 8), 2);
	CHECK_EQ(rig->shared->anomalies.late, 1);
	lane_free(l);
}

TEST(a_call_inside_of_a_call_is_another)
{
	struct udrv_lane *l = lane_new();
	struct udrv_batch other = rig->batch;

	/* a signal handler of the thread whose command is pending */
	serves = 0;
	CHECK_EQ(run(l, 0, 1), -UDRV_EAGAIN);
	CHECK(udrv_lane_held(l, &rig->batch));
	CHECK(!udrv_lane_held(l, &other));
	CHECK_EQ(udrv_lane_run(l, &other, NVME_CMD_READ, 3, 1), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_wait(l, &other), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_give_up(l, &other, 6), -UDRV_EBUSY);
	serves = 1;
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), 0);
	CHECK(!udrv_lane_held(l, &rig->batch));
	lane_free(l);
}

TEST(a_forked_child_does_not_wait_on)
{
	struct udrv_lane *l = lane_new();
	int status;
	pid_t pid;

	serves = 0;
	CHECK_EQ(run(l, 0, 1), -UDRV_EAGAIN);
	pid = fork();
	CHECK(pid >= 0);
	serves = 1;
	if (!pid)
		_exit(udrv_lane_wait(l, &rig->batch) == -UDRV_EFORKED &&
		      udrv_lane_give_up(l, &rig->batch, 6) == -UDRV_EFORKED &&
		      !udrv_lane_held(l, &rig->batch) ? 0 : 1);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), 0);
	lane_free(l);
}

static uint32_t stop;

static void *runs(void *arg)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		CHECK_EQ(run(arg, 0, 1), -UDRV_EBUSY);
	return NULL;
}

TEST(a_look_at_a_lent_lane_keeps_nobody_out_of_its_queue)
{
	struct udrv_lane *l = lane_new();
	pthread_t other;
	int i;

	CHECK_EQ(udrv_lane_lend(l, 1), 0);
	CHECK_EQ(pthread_create(&other, NULL, runs, l), 0);
	for (i = 0; i < 1000000; i++) {
		CHECK_EQ(udrv_qp_enter(rig->qp), 0);
		udrv_qp_leave(rig->qp);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	CHECK_EQ(pthread_join(other, NULL), 0);
	CHECK_EQ(udrv_lane_lend(l, 0), 0);
	CHECK_EQ(run(l, 0, 1), 0);
	lane_free(l);
}

TEST(lent_out_it_runs_nothing)
{
	struct udrv_lane *l = lane_new();

	CHECK_EQ(udrv_lane_lend(l, 1), 0);
	CHECK_EQ(run(l, 0, 1), -UDRV_EBUSY);
	CHECK_EQ(rig_submit(rig, 0, 2), 2);	/* whoever borrowed it works on */
	CHECK_EQ(rig_serve(rig), 2);
	CHECK_EQ(rig_reap(rig, 8), 2);
	CHECK_EQ(udrv_lane_lend(l, 0), 0);
	CHECK_EQ(run(l, 0, 1), 0);
	lane_free(l);
}

TEST(closed_under_a_pending_command)
{
	struct udrv_lane *l = lane_new();

	serves = 0;
	CHECK_EQ(run(l, 0, 1), -UDRV_EAGAIN);
	udrv_qp_close(rig->qp);
	CHECK_EQ(udrv_lane_wait(l, &rig->batch), -UDRV_ECLOSED);
	CHECK_EQ(l->holder, (uint64_t)pthread_self());	/* it may still be in flight */
	CHECK_EQ(udrv_qp_release_all(rig->qp), -UDRV_EBUSY);
	CHECK_EQ(udrv_lane_give_up(l, &rig->batch, 6), 5);
	CHECK_EQ(udrv_qp_release_all(rig->qp), 1);
	CHECK_EQ(run(l, 0, 1), -UDRV_ECLOSED);
	lane_free(l);
}

static const struct test tests[] = {
	{ "a_command_goes_out_as_asked_and_its_status_comes_back",
	  a_command_goes_out_as_asked_and_its_status_comes_back },
	{ "a_bad_command_leaves_nothing_behind", a_bad_command_leaves_nothing_behind },
	{ "a_pending_command_is_its_threads_alone", a_pending_command_is_its_threads_alone },
	{ "one_that_was_given_up_does_not_answer_for_the_next",
	  one_that_was_given_up_does_not_answer_for_the_next },
	{ "one_that_was_given_up_does_not_answer_the_borrower",
	  one_that_was_given_up_does_not_answer_the_borrower },
	{ "a_call_inside_of_a_call_is_another",
	  a_call_inside_of_a_call_is_another },
	{ "a_forked_child_does_not_wait_on",
	  a_forked_child_does_not_wait_on },
	{ "a_look_at_a_lent_lane_keeps_nobody_out_of_its_queue",
	  a_look_at_a_lent_lane_keeps_nobody_out_of_its_queue },
	{ "lent_out_it_runs_nothing", lent_out_it_runs_nothing },
	{ "closed_under_a_pending_command", closed_under_a_pending_command },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

// SPDX-License-Identifier: Apache-2.0
/* Who may use a queue pair: one owner at a time, not a forked child, nobody after close. */
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <udrv/wait.h>

#include "rig.h"

static const struct nvme_sqe any = { .cdw0 = 0x09 };

/* Every call that takes the pair returns `error` and leaves it as it was. */
static void check_all_refuse(struct rig *r, int error)
{
	struct udrv_qp_shared before = *r->shared;
	uint32_t doorbell = r->sq_doorbell;

	CHECK_EQ(rig_submit(r, 0, 1), error);
	CHECK_EQ(udrv_qp_submit_raw(r->qp, &any, 0, 0, 0, 0, 0, 0, 0), error);
	CHECK_EQ(rig_reap(r, 8), error);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 1, 0, 0), error);
	CHECK_EQ(udrv_qp_quarantine(r->qp, UDRV_QP_SLOTS), error);
	CHECK_EQ(udrv_qp_enter(r->qp), error);
	CHECK(!memcmp(&before, r->shared, sizeof(before)));
	CHECK_EQ(r->sq_doorbell, doorbell);
}

TEST(a_second_caller_is_told_that_the_pair_is_busy)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 2), 2);
	CHECK_EQ(rig_serve(r), 2);
	CHECK_EQ(udrv_qp_enter(r->qp), 0);
	check_all_refuse(r, -UDRV_EBUSY);
	CHECK_EQ(udrv_qp_release_all(r->qp), -UDRV_EBUSY);
	CHECK_EQ(__udrv_qp_reap(r->qp, &r->out, 0, 1), 1);	/* the owner works on */
	udrv_qp_leave(r->qp);
	CHECK_EQ(rig_reap(r, 8), 1);
	rig_free(r);
}

static void *submit_and_reap(void *arg)
{
	struct rig *r = arg;
	uint64_t *done = calloc(1, sizeof(*done));
	uint32_t tries;

	/* the columns are only read: two threads may share them; reaping goes to own columns */
	for (tries = 0; tries < 20000; tries++) {
		struct udrv_completion rows[8];
		struct udrv_completions out = { .capacity = 8, .rows = rows };
		uint32_t bad;
		int n;

		if (udrv_qp_enter(r->qp))
			continue;
		n = __udrv_qp_submit(r->qp, &r->batch, 0, 3, &bad);
		CHECK(n >= 0);
		CHECK_EQ(rig_serve(r), n);	/* the device's state is guarded by the owner too */
		CHECK_EQ(__udrv_qp_reap(r->qp, &out, 0, 8), n);
		udrv_qp_leave(r->qp);
		*done += (uint64_t)n;
	}
	return done;
}

TEST(two_threads_never_own_the_pair_at_once)
{
	struct rig *r = rig_new(8, -1);
	uint64_t sum = 0;
	pthread_t t[2];
	int i;

	for (i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, submit_and_reap, r), 0);
	for (i = 0; i < 2; i++) {
		uint64_t *done;

		CHECK_EQ(pthread_join(t[i], (void **)&done), 0);
		sum += *done;
		free(done);
	}
	CHECK(sum > 0);
	CHECK_EQ(r->shared->submitted, sum);
	CHECK_EQ(r->shared->completed, sum);
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);
	rig_free(r);
}

static int stop_closing;

/* A batch that is closed and aimed elsewhere by a thread that does not own the pair. */
static void *change_slot(void *arg)
{
	static const uint16_t slots[] = { 11, 0xffff, 12 };
	struct rig *r = arg;
	uint32_t i;

	for (i = 0; !__atomic_load_n(&stop_closing, __ATOMIC_RELAXED); i++)
		__atomic_store_n(&r->batch.slot, slots[i % 3], __ATOMIC_RELAXED);
	return NULL;
}

TEST(a_batch_that_is_closed_during_a_submit_counts_where_it_was_checked)
{
	struct rig *r = rig_new(8, -1);
	uint32_t tries;
	pthread_t t;

	CHECK_EQ(pthread_create(&t, NULL, change_slot, r), 0);
	for (tries = 0; tries < 200000; tries++) {
		int n = rig_submit(r, 0, 7);

		CHECK(n == 7 || n == -UDRV_EINVAL);
		CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11) + udrv_qp_slot_inflight(r->qp, 12),
			 n < 0 ? 0 : 7);
		CHECK_EQ(rig_serve(r), n < 0 ? 0 : n);
		CHECK_EQ(rig_reap(r, 8), n < 0 ? 0 : n);
		CHECK_EQ(udrv_qp_slot_inflight(r->qp, 11), 0);
		CHECK_EQ(udrv_qp_slot_inflight(r->qp, 12), 0);
	}
	__atomic_store_n(&stop_closing, 1, __ATOMIC_RELAXED);
	CHECK_EQ(pthread_join(t, NULL), 0);
	rig_free(r);
}

TEST(a_forked_child_is_refused_and_the_parent_works_on)
{
	struct rig *r = rig_new(8, -1);
	int status;
	pid_t pid;

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		check_all_refuse(r, -UDRV_EFORKED);
		CHECK_EQ(udrv_qp_release_all(r->qp), -UDRV_EFORKED);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	CHECK_EQ(rig_serve(r), 3);
	CHECK_EQ(rig_reap(r, 8), 3);
	rig_free(r);
}

TEST(a_grandchild_is_refused_too)
{
	struct rig *r = rig_new(8, -1);
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		struct rig *own = rig_new(8, -1);

		CHECK_EQ(rig_submit(own, 0, 1), 1);	/* a child's own pair works */
		pid = fork();
		if (!pid) {
			check_all_refuse(r, -UDRV_EFORKED);
			check_all_refuse(own, -UDRV_EFORKED);
			_exit(0);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		CHECK_EQ(status, 0);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	rig_free(r);
}

TEST(a_closed_pair_refuses_all_but_its_release)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	udrv_qp_close(r->qp);
	check_all_refuse(r, -UDRV_ECLOSED);
	CHECK_EQ(udrv_qp_inflight(r->qp), 3);
	CHECK_EQ(udrv_qp_release_all(r->qp), 3);
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_ECLOSED);
	rig_free(r);
}

TEST(waiting_ends_with_enough_with_time_or_with_close)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 4), 4);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 8, 1000000, UDRV_SPIN_ONLY), 0);
	CHECK_EQ(rig_serve(r), 4);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 2, UINT64_MAX, UDRV_SPIN_ONLY), 2);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 3, 8, 1000000, 1000), 2);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 0, 8, UINT64_MAX, 0), 0);
	/* more than there is room for would never come */
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 3, 2, UINT64_MAX, 0), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, RIG_COLUMNS + 1, UINT64_MAX, 0), -UDRV_EINVAL);
	rig_free(r);
}

static void *close_later(void *arg)
{
	struct rig *r = arg;

	while (!__atomic_load_n(&r->qp->owner, __ATOMIC_ACQUIRE))
		;
	udrv_qp_close(r->qp);
	return NULL;
}

TEST(close_ends_a_wait_that_polls)
{
	struct rig *r = rig_new(8, -1);
	pthread_t t;

	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK_EQ(pthread_create(&t, NULL, close_later, r), 0);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 1, UINT64_MAX, UDRV_SPIN_ONLY), -UDRV_ECLOSED);
	CHECK_EQ(pthread_join(t, NULL), 0);
	rig_free(r);
}

struct waker {
	struct rig *r;
	int fd;
};

static void *complete_and_interrupt(void *arg)
{
	struct waker *w = arg;
	uint64_t one = 1;
	struct nvme_sqe sqe;

	while (rig_fetch(w->r, &sqe)) {
		struct nvme_cqe *cqe = &w->r->cq[w->r->cq_tail];

		/* the waiting thread polls this entry: its phase goes last */
		cqe->dw2 = (uint32_t)RIG_QID << 16;
		__atomic_store_n(&cqe->dw3, sqe_cid(&sqe) | 1u << 16, __ATOMIC_RELEASE);
		w->r->cq_tail++;
		CHECK_EQ(write(w->fd, &one, sizeof(one)), 8);
	}
	return NULL;
}

TEST(an_interrupt_ends_a_sleep_and_none_is_lost)
{
	int round;

	for (round = 0; round < 200; round++) {
		int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
		struct rig *r = rig_new(8, fd);
		struct waker w = { r, fd };
		pthread_t t;

		CHECK(fd >= 0);
		CHECK_EQ(rig_submit(r, 0, 5), 5);
		CHECK_EQ(pthread_create(&t, NULL, complete_and_interrupt, &w), 0);
		/* spin_ns 0: sleeps at once; a lost interrupt would sleep for ever */
		CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 5, 8, UINT64_MAX, 0), 5);
		CHECK_EQ(pthread_join(t, NULL), 0);
		close(fd);
		rig_free(r);
	}
}

TEST(a_descriptor_that_is_none_is_an_error_and_no_spin)
{
	struct rig *r = rig_new(8, 1000000);

	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK(udrv_qp_wait(r->qp, &r->out, 1, 1, UINT64_MAX, 0) < 0);
	rig_free(r);
}

static const struct test tests[] = {
	{ "a_second_caller_is_told_that_the_pair_is_busy",
	  a_second_caller_is_told_that_the_pair_is_busy },
	{ "two_threads_never_own_the_pair_at_once", two_threads_never_own_the_pair_at_once },
	{ "a_batch_that_is_closed_during_a_submit_counts_where_it_was_checked",
	  a_batch_that_is_closed_during_a_submit_counts_where_it_was_checked },
	{ "a_forked_child_is_refused_and_the_parent_works_on",
	  a_forked_child_is_refused_and_the_parent_works_on },
	{ "a_grandchild_is_refused_too", a_grandchild_is_refused_too },
	{ "a_closed_pair_refuses_all_but_its_release", a_closed_pair_refuses_all_but_its_release },
	{ "waiting_ends_with_enough_with_time_or_with_close",
	  waiting_ends_with_enough_with_time_or_with_close },
	{ "close_ends_a_wait_that_polls", close_ends_a_wait_that_polls },
	{ "an_interrupt_ends_a_sleep_and_none_is_lost", an_interrupt_ends_a_sleep_and_none_is_lost },
	{ "a_descriptor_that_is_none_is_an_error_and_no_spin",
	  a_descriptor_that_is_none_is_an_error_and_no_spin },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

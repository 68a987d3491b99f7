// SPDX-License-Identifier: Apache-2.0
/* sigbus.h: what vanished reads all ones, and every other SIGBUS goes where it would have gone. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <udrv/doorbell.h>
#include <udrv/sigbus.h>

#include "harness.h"

#define PAGE 4096ul

struct region {
	int fd;
	uint8_t *at;
	size_t size;
};

/* A file of `pages` pages, mapped as a device's memory is. */
static struct region region_new(size_t pages)
{
	struct region r = { .fd = memfd_create("region", 0), .size = pages * PAGE };

	CHECK(r.fd >= 0);
	CHECK_EQ(ftruncate(r.fd, (off_t)r.size), 0);
	r.at = mmap(NULL, r.size, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0);
	CHECK(r.at != MAP_FAILED);
	return r;
}

static int watched(const struct region *r)
{
	int range = udrv_sigbus_watch(r->at, r->size);

	CHECK(range >= 0);
	CHECK_EQ(udrv_sigbus_gone(range), 0);
	return range;
}

static void cut(const struct region *r, size_t pages)
{
	CHECK_EQ(ftruncate(r->fd, (off_t)(pages * PAGE)), 0);
}

static uint8_t load(const uint8_t *at)
{
	return *(const volatile uint8_t *)at;
}

/* --- inside of a range ---------------------------------------------------------------------- */

TEST(a_load_reads_all_ones_and_the_range_is_gone)
{
	struct region r = region_new(4);
	int range = watched(&r);

	memset(r.at, 0x55, r.size);
	cut(&r, 2);
	errno = ENOTTY;
	CHECK_EQ(udrv_mmio_read32(r.at + 2 * PAGE + 8), UINT32_MAX);
	CHECK_EQ(errno, ENOTTY);
	CHECK_EQ(udrv_sigbus_gone(range), 1);
	CHECK_EQ(udrv_mmio_read64(r.at + 3 * PAGE - 8), -1);
	/* what is still there stays as it is, before and after */
	CHECK_EQ(load(r.at + 2 * PAGE - 1), 0x55);
	CHECK_EQ(load(r.at + 4 * PAGE - 1), 0xff);
}

TEST(a_store_goes_nowhere)
{
	struct region r = region_new(1);
	int range = watched(&r);
	uint8_t byte = 0;

	cut(&r, 0);
	udrv_mmio_write32(r.at + 16, 5);
	CHECK_EQ(udrv_sigbus_gone(range), 1);
	CHECK_EQ(udrv_mmio_read32(r.at + 20), UINT32_MAX);
	cut(&r, 1);
	CHECK_EQ(pread(r.fd, &byte, 1, 16), 1);
	CHECK_EQ(byte, 0);
	/* nor does what the file gets later come back */
	CHECK_EQ(udrv_mmio_read32(r.at), UINT32_MAX);
}

TEST(only_the_range_that_was_touched_is_gone)
{
	struct region a = region_new(1), b = region_new(1);
	int first = watched(&a), second = watched(&b);

	cut(&a, 0);
	cut(&b, 0);
	CHECK_EQ(load(b.at), 0xff);
	CHECK_EQ(udrv_sigbus_gone(first), 0);
	CHECK_EQ(udrv_sigbus_gone(second), 1);
	CHECK_EQ(load(a.at), 0xff);
	CHECK_EQ(udrv_sigbus_gone(first), 1);
}

TEST(the_rest_of_the_last_page_belongs_to_a_range)
{
	struct region r = region_new(1);
	int range = udrv_sigbus_watch(r.at, 8);

	cut(&r, 0);
	CHECK_EQ(load(r.at + PAGE - 1), 0xff);
	CHECK_EQ(udrv_sigbus_gone(range), 1);
}

struct many {
	pthread_barrier_t start;
	struct region r;
	uint32_t wrong;
};

static void *touch_all(void *arg)
{
	struct many *m = arg;

	for (int round = 0; round < 200; round++) {
		pthread_barrier_wait(&m->start);
		for (size_t at = 0; at < m->r.size; at += PAGE) {
			if (udrv_mmio_read32(m->r.at + at + 64) != UINT32_MAX)
				__atomic_add_fetch(&m->wrong, 1, __ATOMIC_RELAXED);
			udrv_mmio_write32(m->r.at + at, 1);
		}
		pthread_barrier_wait(&m->start);
	}
	return NULL;
}

/* The same pages at the same time: nobody reads the zeroes of a page that is not filled yet. */
TEST(threads_that_fault_at_once_all_read_ones)
{
	struct many m = { .wrong = 0 };
	pthread_t threads[4];
	void *at;

	CHECK_EQ(pthread_barrier_init(&m.start, NULL, ARRAY_SIZE(threads) + 1), 0);
	m.r = region_new(8);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, touch_all, &m), 0);
	for (int round = 0; round < 200; round++) {
		int range = watched(&m.r);

		cut(&m.r, 0);
		pthread_barrier_wait(&m.start);
		pthread_barrier_wait(&m.start);
		CHECK_EQ(udrv_sigbus_gone(range), 1);
		udrv_sigbus_unwatch(range);
		/* a new region in the old one's place */
		CHECK_EQ(ftruncate(m.r.fd, (off_t)m.r.size), 0);
		at = mmap(m.r.at, m.r.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m.r.fd,
			  0);
		CHECK(at == m.r.at);
	}
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	CHECK_EQ(m.wrong, 0);
}

static void *watch_and_unwatch(void *arg)
{
	const uint32_t *stop = arg;

	while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
		struct region r = region_new(1);
		int range = watched(&r);

		cut(&r, 0);
		CHECK_EQ(load(r.at), 0xff);
		CHECK_EQ(udrv_sigbus_gone(range), 1);
		udrv_sigbus_unwatch(range);
		CHECK_EQ(munmap(r.at, r.size), 0);
		close(r.fd);
	}
	return NULL;
}

TEST(ranges_come_and_go_while_others_fault)
{
	pthread_t threads[4];
	uint32_t stop = 0;

	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, watch_and_unwatch, &stop), 0);
	usleep(300000);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
}

/* --- the table ------------------------------------------------------------------------------ */

TEST(what_is_no_range_is_refused)
{
	struct region r = region_new(1);

	CHECK_EQ(udrv_sigbus_watch(r.at + 1, 8), -EINVAL);
	CHECK_EQ(udrv_sigbus_watch(r.at, 0), -EINVAL);
	CHECK_EQ(udrv_sigbus_watch(r.at, SIZE_MAX), -EINVAL);
	CHECK_EQ(udrv_sigbus_watch((void *)-PAGE, PAGE), -EINVAL);
}

TEST(a_full_table_says_so_and_has_room_again)
{
	struct region r = region_new(1);
	char *at = mmap(NULL, UDRV_SIGBUS_RANGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			0);
	int i, range;

	CHECK(at != MAP_FAILED);
	for (i = 0; i < UDRV_SIGBUS_RANGES; i++)
		CHECK_EQ(udrv_sigbus_watch(at + (size_t)i * PAGE, PAGE), i);
	CHECK_EQ(udrv_sigbus_watch(r.at, r.size), -ENOSPC);
	udrv_sigbus_unwatch(17);
	range = watched(&r);
	CHECK_EQ(range, 17);
	cut(&r, 0);
	CHECK_EQ(load(r.at), 0xff);
	udrv_sigbus_unwatch(range);
	/* and what was gone is not gone for the next one */
	CHECK_EQ(udrv_sigbus_watch(at + 17 * PAGE, PAGE), 17);
	CHECK_EQ(udrv_sigbus_gone(17), 0);
}

/* --- everything else is passed on ------------------------------------------------------------ */

/* The handlers of these tests say what they saw by their exit status. */
#define SEEN 77
#define WRONG 78

static const uint8_t *expected;
static int expected_code;

static void on_info(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (sig != SIGBUS || info->si_code != expected_code ||
	    (info->si_code > 0 && info->si_addr != expected))
		_exit(WRONG);
	_exit(SEEN);
}

static void on_plain(int sig)
{
	_exit(sig == SIGBUS ? SEEN : WRONG);
}

static sigset_t seen_mask;
static uint32_t calls;

static void on_mask(int sig)
{
	(void)sig;
	calls++;
	pthread_sigmask(SIG_SETMASK, NULL, &seen_mask);
}

static void before(void (*plain)(int), void (*info)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_flags = flags };

	if (info) {
		action.sa_sigaction = info;
		action.sa_flags |= SA_SIGINFO;
	} else {
		action.sa_handler = plain;
	}
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, SIGUSR1);
	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

enum how { FAULT, FAULT_UNWATCHED, SENT, RAISED };

/* In a child: a range is watched, then a SIGBUS comes that has nothing to do with it. */
static int status_of(enum how how)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		struct region mine = region_new(1), other = region_new(1);
		int range = watched(&mine);

		expected_code = how == SENT ? SI_USER : how == RAISED ? SI_TKILL : BUS_ADRERR;
		expected = other.at + 40;
		cut(&other, 0);
		cut(&mine, 0);
		if (how == FAULT_UNWATCHED) {
			udrv_sigbus_unwatch(range);
			expected = mine.at + 40;
		}
		if (how == SENT)
			kill(getpid(), SIGBUS);
		else if (how == RAISED)
			syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGBUS);
		else
			load(expected);
		/* still ours, whatever was passed on */
		_exit(how == FAULT_UNWATCHED || load(mine.at) == 0xff ? 0 : WRONG);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(a_handler_with_siginfo_gets_the_address_and_the_code)
{
	before(NULL, on_info, 0);
	CHECK_EQ(status_of(FAULT), SEEN);
	CHECK_EQ(status_of(FAULT_UNWATCHED), SEEN);
	CHECK_EQ(status_of(SENT), SEEN);
	CHECK_EQ(status_of(RAISED), SEEN);
}

TEST(a_plain_handler_is_called)
{
	before(on_plain, NULL, SA_ONSTACK);
	CHECK_EQ(status_of(FAULT), SEEN);
	CHECK_EQ(status_of(SENT), SEEN);
}

TEST(the_default_is_to_die_of_it)
{
	before(SIG_DFL, NULL, 0);
	CHECK_EQ(status_of(FAULT), -SIGBUS);
	CHECK_EQ(status_of(FAULT_UNWATCHED), -SIGBUS);
	CHECK_EQ(status_of(SENT), -SIGBUS);
	CHECK_EQ(status_of(RAISED), -SIGBUS);
	before(SIG_DFL, NULL, SA_SIGINFO); /* means nothing there */
	CHECK_EQ(status_of(FAULT), -SIGBUS);
}

TEST(who_ignores_it_ignores_what_is_sent_and_dies_of_faults)
{
	before(SIG_IGN, NULL, 0);
	CHECK_EQ(status_of(SENT), 0);
	CHECK_EQ(status_of(RAISED), 0);
	CHECK_EQ(status_of(FAULT), -SIGBUS);
}

TEST(a_handler_for_one_signal_is_called_once)
{
	before(on_mask, NULL, (int)SA_RESETHAND);
	CHECK_EQ(status_of(SENT), 0);
	/* it returns and the fault comes again: the kernel would have reset it by then */
	CHECK_EQ(status_of(FAULT), -SIGBUS);
}

TEST(a_handler_runs_with_its_own_mask)
{
	struct region mine = region_new(1);
	sigset_t now;

	before(on_mask, NULL, 0);
	watched(&mine);
	kill(getpid(), SIGBUS);
	CHECK_EQ(calls, 1);
	CHECK_EQ(sigismember(&seen_mask, SIGBUS), 1);
	CHECK_EQ(sigismember(&seen_mask, SIGUSR1), 1);
	CHECK_EQ(sigismember(&seen_mask, SIGUSR2), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	CHECK_EQ(sigismember(&now, SIGBUS), 0);
	CHECK_EQ(sigismember(&now, SIGUSR1), 0);
}

TEST(a_handler_that_wants_to_be_interrupted_by_itself_is)
{
	struct region mine = region_new(1);

	before(on_mask, NULL, SA_NODEFER);
	watched(&mine);
	kill(getpid(), SIGBUS);
	CHECK_EQ(calls, 1);
	CHECK_EQ(sigismember(&seen_mask, SIGBUS), 0);
	CHECK_EQ(sigismember(&seen_mask, SIGUSR1), 1);
}

TEST(a_handler_of_later_can_pass_on_to_ours)
{
	struct region mine = region_new(1);
	struct sigaction ours;
	int range = watched(&mine);

	CHECK_EQ(sigaction(SIGBUS, NULL, &ours), 0);
	CHECK(ours.sa_flags & SA_SIGINFO);
	before(on_plain, NULL, 0);
	watched(&mine); /* does not put itself in front again */
	CHECK_EQ(sigaction(SIGBUS, &ours, NULL), 0);
	cut(&mine, 0);
	CHECK_EQ(load(mine.at), 0xff);
	CHECK_EQ(udrv_sigbus_gone(range), 1);
}

/* --- fork ------------------------------------------------------------------------------------- */

TEST(a_forked_child_is_guarded_and_its_marks_are_its_own)
{
	struct region r = region_new(1);
	int range = watched(&r), status;
	pid_t child;

	cut(&r, 0);
	child = fork();
	CHECK(child >= 0);
	if (!child)
		_exit(load(r.at) == 0xff && udrv_sigbus_gone(range) ? SEEN : WRONG);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == SEEN);
	CHECK_EQ(udrv_sigbus_gone(range), 0);
	CHECK_EQ(load(r.at), 0xff);
	CHECK_EQ(udrv_sigbus_gone(range), 1);
}

static const struct test tests[] = {
	{ "a_load_reads_all_ones_and_the_range_is_gone",
	  a_load_reads_all_ones_and_the_range_is_gone },
	{ "a_store_goes_nowhere", a_store_goes_nowhere },
	{ "only_the_range_that_was_touched_is_gone", only_the_range_that_was_touched_is_gone },
	{ "the_rest_of_the_last_page_belongs_to_a_range",
	  the_rest_of_the_last_page_belongs_to_a_range },
	{ "threads_that_fault_at_once_all_read_ones", threads_that_fault_at_once_all_read_ones },
	{ "ranges_come_and_go_while_others_fault", ranges_come_and_go_while_others_fault },
	{ "what_is_no_range_is_refused", what_is_no_range_is_refused },
	{ "a_full_table_says_so_and_has_room_again", a_full_table_says_so_and_has_room_again },
	{ "a_handler_with_siginfo_gets_the_address_and_the_code",
	  a_handler_with_siginfo_gets_the_address_and_the_code },
	{ "a_plain_handler_is_called", a_plain_handler_is_called },
	{ "the_default_is_to_die_of_it", the_default_is_to_die_of_it },
	{ "who_ignores_it_ignores_what_is_sent_and_dies_of_faults",
	  who_ignores_it_ignores_what_is_sent_and_dies_of_faults },
	{ "a_handler_for_one_signal_is_called_once", a_handler_for_one_signal_is_called_once },
	{ "a_handler_runs_with_its_own_mask", a_handler_runs_with_its_own_mask },
	{ "a_handler_that_wants_to_be_interrupted_by_itself_is",
	  a_handler_that_wants_to_be_interrupted_by_itself_is },
	{ "a_handler_of_later_can_pass_on_to_ours", a_handler_of_later_can_pass_on_to_ours },
	{ "a_forked_child_is_guarded_and_its_marks_are_its_own",
	  a_forked_child_is_guarded_and_its_marks_are_its_own },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

// SPDX-License-Identifier: Apache-2.0
/*
 * sigbus.c - see udrv/sigbus.h
 *
 * Everything below put_ones() and pass_on() runs in a signal handler: no locks, no allocation, only
 * what signal-safety(7) allows and plain system calls.
 *
 * The table is lock-free, so that a handler can read it in any thread while others change it, and
 * so that a forked child inherits no lock that nobody holds. Each range has a generation, odd while
 * the range is being changed.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <udrv/compiler.h>
#include <udrv/sigbus.h>

struct range {
	uint32_t generation;
	uint32_t gone;
	uintptr_t start;
	uintptr_t size;		/* 0: free */
};

static struct range ranges[UDRV_SIGBUS_RANGES];
static uintptr_t page_size;

/* Who had the signal before, and whether that handler was for one signal only, and had it. */
static struct sigaction previous;
static uint32_t previous_used;
/* This thread is inside of the previous handler. Static TLS: no call, and nothing to allocate. */
static __thread uint32_t passing __attribute__((tls_model("initial-exec")));

/* --- in the handler ------------------------------------------------------------------------ */

/* The range that holds @at, or NULL. */
static struct range *find(uintptr_t at)
{
	for (uint32_t i = 0; i < UDRV_SIGBUS_RANGES; i++) {
		struct range *r = &ranges[i];
		/* acquire: pairs with the release of the generation in set_range() */
		uint32_t before = __atomic_load_n(&r->generation, __ATOMIC_ACQUIRE);
		uintptr_t start = __atomic_load_n(&r->start, __ATOMIC_RELAXED);
		uintptr_t size = __atomic_load_n(&r->size, __ATOMIC_RELAXED);

		/*
		 * The loads before the second look at the generation: pairs with the fence in
		 * set_range(). A range that changes meanwhile is not the one that this thread
		 * touches, because nobody may before watch() returned and after unwatch() began.
		 */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (before & 1 || __atomic_load_n(&r->generation, __ATOMIC_RELAXED) != before)
			continue;
		if (at - start < size)
			return r;
	}
	return NULL;
}

/*
 * Replace the page that holds @at by one of all ones. It is filled where nobody looks and then
 * moved into place by one call, so that no other thread reads a zero that no device wrote. Two
 * threads that fault on one page replace it one after the other, and stores of the first in
 * between are lost, as are all stores to a device that is gone.
 */
static int put_ones(uintptr_t at)
{
	void *target = (void *)(at & ~(page_size - 1));
	void *fresh = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			   0);

	if (fresh == MAP_FAILED)
		return -1;
	memset(fresh, 0xff, page_size);
	if (mremap(fresh, page_size, page_size, MREMAP_MAYMOVE | MREMAP_FIXED, target) !=
	    MAP_FAILED)
		return 0;
	munmap(fresh, page_size);
	return -1;
}

static void die_of(siginfo_t *info)
{
	const struct sigaction deadly = { .sa_handler = SIG_DFL };

	sigaction(SIGBUS, &deadly, NULL);
	/*
	 * A fault happens again when we return, and the core dump shows where. What was sent is
	 * sent again, with the name of the sender, and comes when the signal is unblocked.
	 */
	if (info->si_code <= 0)
		syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGBUS, info);
}

/* As the kernel would have called it: its own mask, the signal itself blocked or not, once. */
static void call_previous(int sig, siginfo_t *info, void *context)
{
	sigset_t mask = previous.sa_mask, old;

	if ((previous.sa_flags & SA_RESETHAND) &&
	    __atomic_exchange_n(&previous_used, 1, __ATOMIC_RELAXED)) {
		die_of(info);
		return;
	}
	pthread_sigmask(SIG_BLOCK, &mask, &old);
	if (previous.sa_flags & SA_NODEFER && !sigismember(&previous.sa_mask, SIGBUS)) {
		sigemptyset(&mask);
		sigaddset(&mask, SIGBUS);
		pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
	}
	if (previous.sa_flags & SA_SIGINFO)
		previous.sa_sigaction(sig, info, context);
	else
		previous.sa_handler(sig);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Neither default nor ignored; SA_SIGINFO says nothing about those two. */
static int is_function(const struct sigaction *action)
{
	return action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;
}

static void pass_on(int sig, siginfo_t *info, void *context)
{
	/*
	 * One that was installed after ours, and found beneath it later, may have ours for its own
	 * previous one, and give the signal back (Python's faulthandler does): then nobody wants it.
	 */
	if (is_function(&previous) && passing) {
		die_of(info);
	} else if (is_function(&previous)) {
		passing = 1;
		call_previous(sig, info, context);
		passing = 0;
	} else if (previous.sa_handler == SIG_DFL || info->si_code > 0) {
		die_of(info);
	}
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	const uintptr_t at = (uintptr_t)info->si_addr;
	const int saved = errno;
	struct range *r = NULL;

	/*
	 * Only faults have an address: with what was sent, other fields lie there. BUS_OBJERR is a
	 * load that the bus answered by an error (arm64); a broken memory cell (BUS_MCEERR_AR) is
	 * nothing to hide, wherever it is.
	 */
	if (info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR)
		r = find(at);
	if (r) {
		/*
		 * The mark before the page: release, and put_ones() changes the page tables under
		 * the kernel's lock, so whoever reads ones from the new page finds the mark.
		 */
		__atomic_store_n(&r->gone, 1, __ATOMIC_RELEASE);
		if (put_ones(at))
			r = NULL;
	}
	if (!r)
		pass_on(sig, info, context);
	errno = saved;
}

/* --- set-up -------------------------------------------------------------------------------- */

static void install(void)
{
	/* ONSTACK: whoever gave the thread a stack for signals has a reason to */
	struct sigaction action = { .sa_sigaction = on_sigbus,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK };
	struct sigaction replaced;

	sigemptyset(&action.sa_mask);
	/* Known before ours can run, in another thread; and once more, should one be quicker. */
	sigaction(SIGBUS, NULL, &previous);
	previous_used = 0;
	/* System calls are interrupted by a SIGBUS that is sent if they were before. */
	action.sa_flags |= is_function(&previous) ? previous.sa_flags & SA_RESTART : SA_RESTART;
	sigaction(SIGBUS, &action, &replaced);
	if (replaced.sa_handler != previous.sa_handler)
		previous = replaced;
}

static void set_page_size(void)
{
	page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
}

/* Have ours as the handler, whatever others installed or put back since the last range. */
static void ensure_installed(void)
{
	static uint32_t busy;
	struct sigaction now;

	sigaction(SIGBUS, NULL, &now);
	if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_sigbus)
		return;
	/* no lock that a forked child could inherit: whoever comes second has it done by the first */
	if (__atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE))
		return;
	install();
	__atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
}

/* The generation of @r is odd and ours. Then it is even again, and readers believe the rest. */
static void set_range(struct range *r, uint32_t generation, uintptr_t start, uintptr_t size)
{
	/* the odd generation before the rest: pairs with the fence in find() */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&r->gone, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&r->start, start, __ATOMIC_RELAXED);
	__atomic_store_n(&r->size, size, __ATOMIC_RELAXED);
	__atomic_store_n(&r->generation, generation + 1, __ATOMIC_RELEASE);
}

int udrv_sigbus_watch(void *start, size_t size)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const uintptr_t at = (uintptr_t)start;

	pthread_once(&once, set_page_size);
	ensure_installed();
	if (!size || at & (page_size - 1) || at > UINTPTR_MAX - 2 * page_size ||
	    size > UINTPTR_MAX - page_size - at)
		return -EINVAL;
	size = (size + page_size - 1) & ~(page_size - 1);
	for (int i = 0; i < UDRV_SIGBUS_RANGES; i++) {
		struct range *r = &ranges[i];
		uint32_t generation = __atomic_load_n(&r->generation, __ATOMIC_ACQUIRE);

		if (generation & 1 || __atomic_load_n(&r->size, __ATOMIC_RELAXED))
			continue;
		/* acquire: pairs with the release of who freed it; nobody changed it since */
		if (!__atomic_compare_exchange_n(&r->generation, &generation, generation + 1, 0,
						 __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			continue;
		set_range(r, generation + 1, at, size);
		return i;
	}
	return -ENOSPC;
}

void udrv_sigbus_unwatch(int range)
{
	struct range *r = &ranges[range];
	/* the caller's own: nobody else changes a range that is in use */
	uint32_t generation = __atomic_load_n(&r->generation, __ATOMIC_RELAXED);

	__atomic_store_n(&r->generation, generation + 1, __ATOMIC_RELAXED);
	set_range(r, generation + 1, 0, 0);
}

int udrv_sigbus_gone(int range)
{
	/* acquire: pairs with the release in on_sigbus() */
	return (int)__atomic_load_n(&ranges[range].gone, __ATOMIC_ACQUIRE);
}

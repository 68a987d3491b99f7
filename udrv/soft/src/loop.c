// SPDX-License-Identifier: Apache-2.0
/*
 * The loop: queues, and every so often the socket. While there is work, and for a bounded time
 * after it, it polls; then it sleeps on the socket. Where doorbells are mapped, a write to one wakes
 * nobody: it sleeps in naps that grow, and looks at the doorbells in between. Where they are trapped
 * a write is a message, and with shadow doorbells EventIdx asks for that message: it sleeps until
 * one comes, as it does while no queue can have work.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Passes over the queues between two looks at the socket. */
#define SOCKET_EVERY 32u
#define NAP_MIN_NS 50000u
#define NAP_MAX_NS 1000000u
/* Naps while nothing came for LONG_IDLE_NS: seldom enough to cost well under 1 % of a CPU. */
#define NAP_LONG_NS 4000000u
#define LONG_IDLE_NS 1000000000ull
/* The longest sleep while something is due at a time. */
#define BOUNDED_NS 100000000ull

/*
 * A poll that found nothing for this long offers the CPU to whoever else can run: the driver that
 * is to send the next command may be waiting for just this one.
 */
#define YIELD_AFTER_NS 50000u

struct nap {
	uint64_t idle_since; /* 0: there was work in the last pass */
	uint32_t ns;
	uint32_t passes;
};

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* Until what is due, but no longer than a nap: that is a struct timespec without seconds. */
static int64_t bounded(uint64_t due_ns, uint64_t now)
{
	uint64_t left = due_ns > now ? due_ns - now : 1;

	return left < BOUNDED_NS ? (int64_t)left : (int64_t)BOUNDED_NS;
}

/*
 * Return: how long to wait for the socket in nanoseconds: 0 to look at it without waiting, -1 for
 * ever, -2 not to look at all.
 */
static int64_t patience(struct udrv_soft *c, struct nap *nap, bool work)
{
	uint64_t now;
	uint32_t ns, longest;

	if (!c->running) {
		nap->idle_since = 0;
		return -1;
	}
	if (work) {
		nap->idle_since = 0;
		nap->ns = NAP_MIN_NS;
		if (++nap->passes % SOCKET_EVERY)
			return -2;
		if (c->due_ns && soft_now_ns() >= c->due_ns)
			soft_tick(c, soft_now_ns());
		return 0;
	}
	now = soft_now_ns();
	if (c->due_ns && now >= c->due_ns)
		soft_tick(c, now);
	if (!nap->idle_since)
		nap->idle_since = now;
	if (now - nap->idle_since < c->cfg.spin_us * 1000ull) {
		if (now - nap->idle_since < YIELD_AFTER_NS ||
		    (c->injecting && soft_fault_soon(c, now)))
			cpu_relax();
		else
			sched_yield();
		return ++nap->passes % SOCKET_EVERY ? -2 : 0;
	}
	if (c->cfg.flags & UDRV_SOFT_TRAP_DOORBELLS) {
		if (!soft_bells_arm(c))
			return -2;
		c->counters->naps++;
		return c->due_ns ? bounded(c->due_ns, now) : -1;
	}
	longest = now - nap->idle_since < LONG_IDLE_NS ? NAP_MAX_NS : NAP_LONG_NS;
	ns = nap->ns;
	nap->ns = ns * 2 < longest ? ns * 2 : longest;
	c->counters->naps++;
	return ns;
}

/* Return: as conn_receive(), or UDRV_SOFT_STOPPED + 1 to stop. */
static int wait_for(struct udrv_soft *c, struct conn *conn, int stop_fd, int64_t wait_ns)
{
	struct pollfd pfd[3] = { { .fd = conn->sock, .events = POLLIN },
				 { .fd = stop_fd, .events = POLLIN },
				 { .fd = c->cfg.control_fd, .events = POLLIN } };
	struct timespec ts = { .tv_nsec = wait_ns > 0 ? (long)wait_ns : 0 };
	int n = ppoll(pfd, 3, wait_ns < 0 ? NULL : &ts, NULL);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (pfd[1].revents)
		return 2;
	if (pfd[2].revents)
		soft_control(c);
	return pfd[0].revents ? conn_receive(conn) : 0;
}

static int serve(struct udrv_soft *c, struct conn *conn, int stop_fd)
{
	struct nap nap = { .ns = NAP_MIN_NS };

	for (;;) {
		bool work = c->running && soft_queues_pass(c);
		int64_t wait = patience(c, &nap, work);
		int got;

		if (dma_lost()) {
			/* A queue, or the shadow doorbells: of a command's data, soft_execute() told. */
			dma_drop_lost(&c->dma);
			soft_fatal(c);
		}
		if (wait == -2)
			continue;
		if (c->injecting && wait)
			wait = soft_fault_patience(c, wait);
		got = wait_for(c, conn, stop_fd, wait);
		if (got == 0)
			continue;
		if (got == 2)
			return UDRV_SOFT_STOPPED;
		if (got == 1)
			got = server_handle(c, conn);
		if (got == -ECONNRESET || got == -EPIPE)
			return UDRV_SOFT_PEER_CLOSED;
		if (got < 0)
			return got;
	}
}

int udrv_soft_run(struct udrv_soft *c, int sock, int stop_fd)
{
	struct conn *conn = malloc(sizeof(*conn));
	int err;

	if (!conn)
		return -ENOMEM;
	err = dma_guard_enter(&c->dma);
	if (err) {
		free(conn);
		return err;
	}
	conn_init(conn, sock);
	err = serve(c, conn, stop_fd);
	conn_forget(conn);
	free(conn);
	/*
	 * The protocol would let the device keep its state for the next client. Its queues are in
	 * memory that is gone, so it is reset; the namespaces keep their data.
	 */
	soft_function_reset(c);
	for (uint32_t i = 0; i < c->nr_vectors; i++)
		soft_irq_arm(c, i, -1);
	dma_clear(&c->dma);
	dma_guard_leave();
	return err;
}

int udrv_soft_child(const void *config, size_t len)
{
	struct udrv_soft_config cfg;
	struct udrv_soft *c;
	char ready = 'R';
	int err;

	if (len != sizeof(cfg)) {
		fprintf(stderr, "configuration of %zu bytes where %zu belong\n", len, sizeof(cfg));
		return 2;
	}
	memcpy(&cfg, config, sizeof(cfg));
	signal(SIGINT, SIG_IGN);
	err = udrv_soft_new(&cfg, &c);
	if (err) {
		fprintf(stderr, "cannot make the controller: %s\n", strerror(-err));
		return 1;
	}
	if (cfg.ready_fd >= 0) {
		if (write(cfg.ready_fd, &ready, 1) != 1)
			fprintf(stderr, "nobody waits for the controller\n");
		close(cfg.ready_fd);
	}
	err = udrv_soft_run(c, cfg.sock_fd, -1);
	udrv_soft_free(c);
	if (err < 0) {
		fprintf(stderr, "the connection ended: %s\n", strerror(-err));
		return 1;
	}
	return 0;
}

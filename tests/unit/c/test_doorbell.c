// SPDX-License-Identifier: Apache-2.0
/* Shadow doorbells and posted writes: EventIdx arithmetic, what is written when, no lost wake-up. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include <udrv/wait.h>

#include "rig.h"

/* --- arithmetic -------------------------------------------------------------------------- */

/* The same by its definition: walk from `old` to `value` and look whether `event` is left behind. */
static int passes(uint16_t event, uint16_t value, uint16_t old)
{
	for (; old != value; old++) {
		if (old == event)
			return 1;
	}
	return 0;
}

TEST(need_event_is_what_a_walk_finds)
{
	static const uint16_t edges[] = { 0, 1, 2, 3, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffd, 0xfffe,
					  0xffff };
	uint64_t rng = 7;
	size_t i, j, k;

	for (i = 0; i < ARRAY_SIZE(edges); i++) {
		for (j = 0; j < ARRAY_SIZE(edges); j++) {
			for (k = 0; k < ARRAY_SIZE(edges); k++)
				CHECK_EQ(udrv_doorbell_need_event(edges[k], edges[j], edges[i]),
					 passes(edges[k], edges[j], edges[i]));
		}
	}
	for (i = 0; i < 2000; i++) {
		uint16_t event = (uint16_t)next_random(&rng), value = (uint16_t)next_random(&rng);
		uint16_t old = (uint16_t)next_random(&rng);

		CHECK_EQ(udrv_doorbell_need_event(event, value, old), passes(event, value, old));
		/* and close together, where the comparisons are tight */
		value = (uint16_t)(old + next_random(&rng) % 8);
		event = (uint16_t)(old + next_random(&rng) % 12 - 2);
		CHECK_EQ(udrv_doorbell_need_event(event, value, old), passes(event, value, old));
	}
}

/*
 * What a device relies on, in rings of every size: told "the value that I saw" it hears of the next
 * move whatever its length; told "the one before that" it hears of none in a whole lap.
 */
TEST(a_sleeping_device_hears_of_every_move_and_a_polling_one_of_none)
{
	static const uint32_t sizes[] = { 2, 3, 4, 7, 64, 1023, 65535, 65536 };
	uint64_t rng = 9;
	size_t i, n;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint32_t size = sizes[i];

		for (n = 0; n < 2000; n++) {
			uint32_t seen = (uint32_t)(next_random(&rng) % size);
			uint32_t first = (uint32_t)(next_random(&rng) % (size - 1));
			uint32_t more = 1 + (uint32_t)(next_random(&rng) % (size - 1 - first));
			uint32_t old = (seen + first) % size, value = (old + more) % size;

			if (n % 3 == 0)
				seen = n % 2 ? 0 : size - 1, old = seen, first = 0,
				value = (old + more) % size;
			CHECK(!udrv_doorbell_need_event((uint16_t)(seen - 1), (uint16_t)value,
							(uint16_t)old));
			if (!first)
				CHECK(udrv_doorbell_need_event((uint16_t)seen, (uint16_t)value,
							       (uint16_t)old));
		}
	}
}

/* --- a queue pair with shadow doorbells -------------------------------------------------- */

struct shadow {
	uint32_t sq, cq, sq_event, cq_event;
};

static struct rig *shadow_rig(uint32_t entries, struct shadow *s)
{
	struct rig *r = rig_new(entries, -1);

	memset(s, 0, sizeof(*s));
	r->config.sq_shadow = &s->sq;
	r->config.cq_shadow = &s->cq;
	r->config.sq_event = &s->sq_event;
	r->config.cq_event = &s->cq_event;
	CHECK_EQ(udrv_qp_init(r->qp, &r->config), 0);
	return r;
}

TEST(the_register_is_written_when_event_idx_asks_for_it)
{
	struct shadow s;
	struct rig *r = shadow_rig(8, &s);

	/* a new queue: EventIdx 0 is passed by the first move */
	CHECK_EQ(rig_submit(r, 0, 2), 2);
	CHECK_EQ(s.sq, 2);
	CHECK_EQ(r->sq_doorbell, 2);
	CHECK_EQ(r->shared->sq_doorbells, 1);
	CHECK_EQ(r->shared->sq_shadow, 0);
	/* the device polls: the shadow alone moves */
	s.sq_event = 1;
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK_EQ(s.sq, 3);
	CHECK_EQ(r->sq_doorbell, 2);
	CHECK_EQ(r->shared->sq_shadow, 1);
	/* it sleeps, having seen 3; only the low half of EventIdx counts */
	s.sq_event = 0xabcd0003;
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK_EQ(r->sq_doorbell, 4);
	CHECK_EQ(r->shared->sq_doorbells, 2);
	CHECK_EQ(r->shared->sq_rung, 4);

	s.cq_event = 0xffff;
	CHECK_EQ(rig_serve(r), 4);
	CHECK_EQ(rig_reap(r, 3), 3);
	CHECK_EQ(s.cq, 3);
	CHECK_EQ(r->cq_doorbell, 0);
	CHECK_EQ(r->shared->cq_shadow, 1);
	CHECK_EQ(r->shared->cq_doorbells, 0);
	s.cq_event = 3;
	CHECK_EQ(rig_reap(r, 3), 1);
	CHECK_EQ(r->cq_doorbell, 4);
	CHECK_EQ(r->shared->cq_doorbells, 1);
	rig_free(r);
}

TEST(without_shadow_doorbells_nothing_changes)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, 0, 3), 3);
	CHECK_EQ(rig_serve(r), 3);
	CHECK_EQ(rig_reap(r, 3), 3);
	CHECK_EQ(udrv_qp_ring(r->qp), 0);
	CHECK_EQ(r->shared->sq_doorbells, 1);
	CHECK_EQ(r->shared->cq_doorbells, 1);
	CHECK_EQ(r->shared->sq_shadow + r->shared->cq_shadow + r->shared->forced, 0);
	rig_free(r);
}

/* Any values of EventIdx: the shadow is always right, and the register is what was written last. */
TEST(a_device_that_lies_in_event_idx_costs_a_wake_up_at_most)
{
	struct shadow s;
	struct rig *r = shadow_rig(5, &s);
	uint64_t rng = 11;
	uint32_t n;

	for (n = 0; n < 5000; n++) {
		struct nvme_sqe sqe;

		s.sq_event = (uint32_t)next_random(&rng);
		s.cq_event = (uint32_t)next_random(&rng);
		CHECK(rig_submit(r, 0, 1 + n % 4) > 0);
		CHECK_EQ(s.sq, r->shared->sq_posted);
		CHECK_EQ(r->shared->sq_rung, r->shared->sq_posted);
		r->sq_doorbell = s.sq;	/* the device reads the shadow */
		while (rig_fetch(r, &sqe))
			rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
		CHECK(rig_reap(r, 4) > 0);
		CHECK_EQ(s.cq, r->shared->cq_head);
	}
	CHECK_EQ(udrv_qp_inflight(r->qp), 0);
	rig_free(r);
}

TEST(a_silent_device_is_rung_whatever_event_idx_says)
{
	struct shadow s;
	struct rig *r = shadow_rig(8, &s);

	s.sq_event = s.cq_event = 0xfff0;	/* for ever */
	CHECK_EQ(rig_submit(r, 0, 2), 2);
	CHECK_EQ(r->sq_doorbell, 0);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 8, UDRV_RING_AFTER_NS + 1000000, UDRV_SPIN_ONLY), 0);
	CHECK_EQ(r->sq_doorbell, 2);
	CHECK(r->shared->forced >= 1);
	/* and short waits add up */
	r->sq_doorbell = 0;
	while (!r->sq_doorbell) {
		CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 0, 8, 0, UDRV_SPIN_ONLY), 0);
		CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 8, UDRV_RING_AFTER_NS / 100, 0), 0);
	}
	CHECK_EQ(rig_serve(r), 2);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 2, 8, 1000000000, UDRV_SPIN_ONLY), 2);
	CHECK_EQ(udrv_qp_ring(r->qp), 0);
	CHECK_EQ(r->cq_doorbell, 2);
	rig_free(r);
}

TEST(an_interrupt_driven_wait_rings_too)
{
	struct shadow s;
	struct rig *r = shadow_rig(8, &s);
	int never[2];

	CHECK_EQ(pipe(never), 0);
	r->config.eventfd = never[0];
	CHECK_EQ(udrv_qp_init(r->qp, &r->config), 0);
	s.sq_event = s.cq_event = 0xfff0;
	CHECK_EQ(rig_submit(r, 0, 2), 2);
	CHECK_EQ(udrv_qp_wait(r->qp, &r->out, 1, 8, 2 * UDRV_RING_AFTER_NS, 0), 0);
	CHECK_EQ(r->sq_doorbell, 2);
	close(never[0]);
	close(never[1]);
	rig_free(r);
}

TEST(half_a_configuration_is_refused)
{
	struct shadow s;
	struct rig *r = shadow_rig(8, &s);
	uint8_t message[UDRV_POST_MAX + 1] = { 0 };
	struct udrv_qp_config good = r->config, c;

#define REFUSED(change)                                                                            \
	do {                                                                                       \
		c = good;                                                                          \
		change;                                                                            \
		CHECK_EQ(udrv_qp_init(r->qp, &c), -UDRV_EINVAL);                                   \
	} while (0)

	REFUSED(c.sq_shadow = NULL);
	REFUSED(c.cq_shadow = NULL);
	REFUSED(c.sq_event = NULL);
	REFUSED(c.cq_event = NULL);
	REFUSED(c.cq_event = (char *)&s.cq_event + 1);
	good.sq_doorbell = good.cq_doorbell = NULL;
	CHECK_EQ(udrv_qp_init(r->qp, &good), -UDRV_EINVAL);
	good.sq_post = good.cq_post = message;
	good.post_len = 36;
	good.post_at = 32;
	CHECK_EQ(udrv_qp_init(r->qp, &good), 0);
	REFUSED(c.post_at = 33);
	REFUSED(c.post_len = 3);
	REFUSED(c.post_len = UDRV_POST_MAX + 1);
	REFUSED(c.post_at = UINT32_MAX);
	REFUSED(c.post_fd = -1);
	REFUSED(c.sq_post = NULL);
	REFUSED(c.cq_post = NULL);
	REFUSED(c.sq_doorbell = &r->sq_doorbell);
	rig_free(r);
}

/* --- posted writes ----------------------------------------------------------------------- */

TEST(a_posted_write_is_the_message_with_the_value_in_it)
{
	struct rig *r = rig_new(8, -1);
	uint8_t sq[12] = "sq......end", cq[12] = "cq......end", got[64];
	uint32_t value;
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	r->config.sq_doorbell = r->config.cq_doorbell = NULL;
	r->config.sq_post = sq;
	r->config.cq_post = cq;
	r->config.post_fd = pair[0];
	r->config.post_len = 12;
	r->config.post_at = 3;
	CHECK_EQ(udrv_qp_init(r->qp, &r->config), 0);
	memset(sq + 3, 0xff, 4);	/* the caller's copy is not used any more */
	CHECK_EQ(rig_submit(r, 0, 5), 5);
	CHECK_EQ(r->shared->sq_doorbells, 1);
	CHECK_EQ(recv(pair[1], got, sizeof(got), MSG_DONTWAIT), 12);
	memcpy(&value, got + 3, 4);
	CHECK_EQ(value, 5);
	CHECK(!memcmp(got, "sq.", 3) && !memcmp(got + 7, ".end", 4));
	r->sq_doorbell = 5;
	CHECK_EQ(rig_serve(r), 5);
	CHECK_EQ(rig_reap(r, 8), 5);
	CHECK_EQ(recv(pair[1], got, sizeof(got), MSG_DONTWAIT), 12);
	CHECK(!memcmp(got, "cq.", 3));

	/* a peer that is gone: no signal, no wait */
	close(pair[1]);
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	close(pair[0]);
	rig_free(r);
}

TEST(a_peer_that_reads_nothing_does_not_keep_us)
{
	int pair[2];
	char byte = 0;
	struct udrv_doorbell db = { .post_len = 8, .post_at = 4 };

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	db.post_fd = pair[0];
	while (send(pair[0], &byte, 1, MSG_DONTWAIT) == 1)
		;
	CHECK_EQ(udrv_doorbell_write(&db, 1, 0), 1);
	close(pair[0]);
	close(pair[1]);
}

/* --- no lost wake-up --------------------------------------------------------------------- */

/*
 * A device in a thread that sleeps on its socket as soon as it may, and a driver that moves the
 * doorbell by one and waits for the device to have seen it. A lost wake-up would leave both asleep.
 */
struct sleeper {
	_Atomic uint32_t shadow;
	_Alignas(64) _Atomic uint32_t event;
	_Alignas(64) _Atomic uint32_t seen;
	uint64_t sleeps;
	uint32_t rounds;
	int sock;
};

static void *sleeping_device(void *arg)
{
	struct sleeper *d = arg;
	uint32_t seen = 0, moves = 0;
	uint64_t rng = 3;
	uint8_t message[8];

	while (moves < d->rounds) {
		uint32_t polls = (uint32_t)(next_random(&rng) % 4096), value = seen;

		while (polls-- && value == seen)
			value = atomic_load_explicit(&d->shadow, memory_order_acquire);
		if (value == seen) {
			atomic_store_explicit(&d->event, seen, memory_order_relaxed);
			atomic_thread_fence(memory_order_seq_cst);
			value = atomic_load_explicit(&d->shadow, memory_order_acquire);
			if (value == seen) {
				d->sleeps++;
				CHECK_EQ(recv(d->sock, message, sizeof(message), MSG_WAITALL),
					 (ssize_t)sizeof(message));
				continue;
			}
		}
		seen = value;
		moves++;
		atomic_store_explicit(&d->event, (seen - 1) & 0xffff, memory_order_relaxed);
		atomic_store_explicit(&d->seen, seen, memory_order_release);
		/* messages of moves that were seen without them */
		while (recv(d->sock, message, sizeof(message), MSG_DONTWAIT) > 0)
			;
	}
	return NULL;
}

TEST(no_wake_up_is_lost)
{
	enum { ROUNDS = 100000, ENTRIES = 64 };
	struct sleeper *d = rig_area(sizeof(*d), 64);
	struct udrv_doorbell db = { .post_len = 8, .post_at = 4 };
	uint32_t old = 0, i, rings = 0;
	uint64_t rng = 5;
	pthread_t thread;
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	d->rounds = ROUNDS;
	d->sock = pair[1];
	db.post_fd = pair[0];
	db.shadow = (volatile uint32_t *)&d->shadow;
	db.event = (volatile uint32_t *)&d->event;
	CHECK_EQ(pthread_create(&thread, NULL, sleeping_device, d), 0);
	for (i = 0; i < ROUNDS; i++) {
		uint32_t value = (old + 1) % ENTRIES, pause = (uint32_t)(next_random(&rng) % 64);

		while (pause--)
			udrv_cpu_relax();
		rings += (uint32_t)udrv_doorbell_write(&db, value, old);
		for (pause = 0; atomic_load_explicit(&d->seen, memory_order_acquire) != value;
		     pause++) {
			/* on one CPU the device needs ours */
			if (pause % 256 == 255)
				sched_yield();
		}
		old = value;
	}
	CHECK_EQ(pthread_join(thread, NULL), 0);
	printf("# %u rings and %llu sleeps in %u moves\n", rings, (unsigned long long)d->sleeps,
	       ROUNDS);
	CHECK(rings >= d->sleeps);
	CHECK(d->sleeps > 0);
	close(pair[0]);
	close(pair[1]);
	free(d);
}

static const struct test tests[] = {
	{ "need_event_is_what_a_walk_finds", need_event_is_what_a_walk_finds },
	{ "a_sleeping_device_hears_of_every_move_and_a_polling_one_of_none",
	  a_sleeping_device_hears_of_every_move_and_a_polling_one_of_none },
	{ "the_register_is_written_when_event_idx_asks_for_it",
	  the_register_is_written_when_event_idx_asks_for_it },
	{ "without_shadow_doorbells_nothing_changes", without_shadow_doorbells_nothing_changes },
	{ "a_device_that_lies_in_event_idx_costs_a_wake_up_at_most",
	  a_device_that_lies_in_event_idx_costs_a_wake_up_at_most },
	{ "a_silent_device_is_rung_whatever_event_idx_says",
	  a_silent_device_is_rung_whatever_event_idx_says },
	{ "an_interrupt_driven_wait_rings_too", an_interrupt_driven_wait_rings_too },
	{ "half_a_configuration_is_refused", half_a_configuration_is_refused },
	{ "a_posted_write_is_the_message_with_the_value_in_it",
	  a_posted_write_is_the_message_with_the_value_in_it },
	{ "a_peer_that_reads_nothing_does_not_keep_us",
	  a_peer_that_reads_nothing_does_not_keep_us },
	{ "no_wake_up_is_lost", no_wake_up_is_lost },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

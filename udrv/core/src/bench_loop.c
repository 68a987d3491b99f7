// SPDX-License-Identifier: Apache-2.0
#include <time.h>

#include <udrv/barrier.h>

#include "bench_loop.h"

/* The longest sleep: how late `stop` may be seen. */
#define MAX_SLEEP_NS 50000000u
/* Gaps in the schedule below this are spun through: a sleep would overshoot them. */
#define MIN_SLEEP_NS 20000u
/* Passes between two looks at whether the queue pair was closed under us. */
#define RECHECK_PASSES 1024u
/* Draws for a unit that nothing in flight overlaps, before waiting for completions instead. */
#define VERIFY_DRAWS 8

/* --- arrivals ------------------------------------------------------------------------------ */

void udrv_bench_next_arrival(struct udrv_bench_loop *l, uint32_t process, double rate)
{
	double mean_ns = (double)NS_PER_S / rate;

	if (process == UDRV_BENCH_LINEAR)	/* multiplied, not added up: no drift */
		l->arrival_ns = (double)l->arrivals * mean_ns;
	else
		l->arrival_ns += udrv_rng_exponential(&l->when) * mean_ns;
	l->arrivals++;
	l->next_ns = (uint64_t)l->arrival_ns;
}

void udrv_bench_seed(struct udrv_bench_loop *l, uint64_t seed)
{
	udrv_rng_seed(&l->where, seed);
	udrv_rng_seed(&l->when, ~seed);
}

void udrv_bench_schedule(uint32_t process, double rate, uint64_t seed, uint64_t *out, uint32_t n)
{
	struct udrv_bench_loop l = { 0 };
	uint32_t i;

	udrv_bench_seed(&l, seed);
	for (i = 0; i < n; i++) {
		udrv_bench_next_arrival(&l, process, rate);
		out[i] = l.next_ns;
	}
}

/* --- choosing and issuing ------------------------------------------------------------------ */

/* Choose the next command into slot s. Return: 0 if there is none now. */
static int choose(struct udrv_bench_loop *l, struct udrv_bench_slot *s)
{
	const struct udrv_bench_job *j = l->job;
	int draws = udrv_bench_verifies(l) ? VERIFY_DRAWS : 1;

	if (l->readback) {
		s->write = 0;
		return udrv_bench_take_written(l, &s->unit);
	}
	if (l->direction < 0)
		l->direction = udrv_rng_below(&l->where, 100) >= j->read_percent;
	s->write = (uint32_t)l->direction;
	if (!(j->flags & UDRV_BENCH_RANDOM)) {
		if (!udrv_bench_take_unit(l, l->cursor, l->direction))
			return 0;
		s->unit = l->cursor;
		if (++l->cursor == j->units)
			l->cursor = 0;
	} else {
		do {
			if (!draws--)
				return 0;
			s->unit = udrv_rng_below(&l->where, j->units);
		} while (!udrv_bench_take_unit(l, s->unit, l->direction));
	}
	l->direction = -1;
	return 1;
}

/* Fill rows for every command that is due and has a free piece. Return: how many. */
static uint32_t fill(struct udrv_bench_loop *l, uint64_t now)
{
	const struct udrv_bench_job *j = l->job;
	uint32_t n = 0;

	while (n < l->nr_free) {
		uint32_t piece = l->free[l->nr_free - 1 - n];
		struct udrv_bench_slot *s = &l->slots[piece];

		if (l->open && l->next_ns > now)
			break;
		if (l->max_ios && l->res->issued + n >= l->max_ios)
			break;
		if (!choose(l, s))
			break;
		if (udrv_bench_verifies(l))
			udrv_bench_prepare_data(l, s, piece);
		s->intent_ns = l->next_ns;
		if (l->open)
			udrv_bench_next_arrival(l, j->process, j->rate_iops);
		l->commands[n] = (struct udrv_command){
			.opcode = s->write ? NVME_CMD_WRITE : NVME_CMD_READ,
			.slba = j->start_block + s->unit * j->unit_blocks,
			.nlb = j->unit_blocks,
			.offset = (uint64_t)piece * j->buffer_stride,
			.user_data = piece,
		};
		n++;
	}
	return n;
}

/* Submit rows 0 .. n - 1. Return: 0, or -UDRV_E*. */
static int issue(struct udrv_bench_loop *l, uint32_t n)
{
	uint64_t before = udrv_bench_now(l), after;
	uint32_t bad, i;
	const struct udrv_queue *q = &l->job->queue;
	int ret = q->ops->submit(q->handle, &l->batch, 0, n, &bad);

	if (unlikely(ret < 0))
		return ret;
	after = udrv_bench_now(l);
	if (!l->inflight)
		l->progress_ns = before;
	n = (uint32_t)ret < n ? (uint32_t)ret : n;
	for (i = 0; i < n; i++) {
		struct udrv_bench_slot *s = &l->slots[l->commands[i].user_data];

		s->slat_ns = after - before;
		if (!l->open) {
			s->intent_ns = before;
			continue;
		}
		l->lag_ns = before > s->intent_ns ? before - s->intent_ns : 0;
		if (l->lag_ns > l->res->lag_max_ns)
			l->res->lag_max_ns = l->lag_ns;
	}
	l->nr_free -= n;
	l->inflight += n;
	l->res->issued += n;
	/* iodepth command ids were free at the start and nobody else is in here */
	return (uint32_t)ret == n && n ? 0 : -UDRV_EFULL;
}

/* --- completing ---------------------------------------------------------------------------- */

static void complete(struct udrv_bench_loop *l, uint32_t n, uint64_t now)
{
	struct udrv_bench_result *r = l->res;
	uint32_t i;

	for (i = 0; i < n; i++) {
		const struct udrv_completion *done = &l->out.rows[i];
		uint32_t piece = (uint32_t)done->user_data;
		const struct udrv_bench_slot *s = &l->slots[piece];
		struct udrv_bench_direction *d = &r->dir[s->write];
		int failed = done->status & 0x7ff;	/* SCT and SC: 0 is success */

		if (unlikely(failed)) {
			if (!(r->dir[0].errors + r->dir[1].errors)) {
				r->first_status = done->status;
				r->first_result = (uint32_t)done->result;
				r->first_opcode = s->write ? NVME_CMD_WRITE : NVME_CMD_READ;
				r->first_error_slba =
					l->job->start_block + s->unit * l->job->unit_blocks;
			}
			d->errors++;
		} else {
			d->ios++;
			d->bytes += l->unit_bytes;
			udrv_hist_record(&d->slat, s->slat_ns);
			udrv_hist_record(&d->clat, done->latency_ns);
			udrv_hist_record(&d->lat, now - s->intent_ns);
		}
		if (udrv_bench_verifies(l))
			udrv_bench_finish_unit(l, s, piece, failed);
		l->free[l->nr_free++] = piece;
	}
	l->inflight -= n;
	l->progress_ns = now;
}

void udrv_bench_publish(const struct udrv_bench_loop *l)
{
	struct udrv_bench_live *live = l->job->live;
	int d;

	/* relaxed: figures for a progress bar; nothing is ordered by them */
	for (d = 0; d < 2; d++) {
		__atomic_store_n(&live->ios[d], l->res->dir[d].ios, __ATOMIC_RELAXED);
		__atomic_store_n(&live->bytes[d], l->res->dir[d].bytes, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&live->errors, l->res->dir[0].errors + l->res->dir[1].errors,
			 __ATOMIC_RELAXED);
	__atomic_store_n(&live->inflight, l->inflight, __ATOMIC_RELAXED);
}

/* --- the loop ------------------------------------------------------------------------------ */

static int must_stop(const struct udrv_bench_loop *l, uint64_t now)
{
	const struct udrv_bench_job *j = l->job;
	uint64_t errors = l->res->dir[0].errors + l->res->dir[1].errors;

	/* relaxed: a stop that is seen one pass later is as good */
	if (l->ended || __atomic_load_n(&j->stop, __ATOMIC_RELAXED))
		return 1;
	if (j->runtime_ns && now >= j->runtime_ns)
		return 1;
	if (j->max_errors && errors >= j->max_errors)
		return 1;
	return l->max_ios && l->res->issued >= l->max_ios;
}

/* Issuing has ended: how far behind the schedule was it? */
static void judge_schedule(struct udrv_bench_loop *l, uint64_t now)
{
	const struct udrv_bench_job *j = l->job;
	struct udrv_bench_result *r = l->res;

	if (!l->open)
		return;
	if (l->max_ios && r->issued >= l->max_ios)
		r->lag_end_ns = l->lag_ns;	/* nothing is due any more: the last one's tells */
	else
		r->lag_end_ns = now > l->next_ns ? now - l->next_ns : 0;
	if (r->lag_end_ns > r->lag_max_ns)
		r->lag_max_ns = r->lag_end_ns;
	r->backlog = (uint64_t)((double)r->lag_end_ns * j->rate_iops / (double)NS_PER_S);
	r->saturated = r->backlog > 16 && r->backlog > (r->issued + r->backlog) / 100;
}

static uint64_t sooner(uint64_t ns, uint64_t now, uint64_t then)
{
	uint64_t left = then > now ? then - now : 0;

	return left < ns ? left : ns;
}

/* How long nothing but a completion needs to be looked at. */
static uint64_t quiet_ns(const struct udrv_bench_loop *l, uint64_t now, int stopping)
{
	const struct udrv_bench_job *j = l->job;
	uint64_t ns = MAX_SLEEP_NS;

	if (l->inflight)
		ns = sooner(ns, now, l->progress_ns + j->timeout_ns);
	if (stopping)
		return ns;
	if (j->runtime_ns)
		ns = sooner(ns, now, j->runtime_ns);
	if (l->open && l->nr_free)
		ns = sooner(ns, now, l->next_ns);
	return ns;
}

/* Look for completions, asleep for at most quiet ns if the job wants that. Return: as a reap. */
static int collect(struct udrv_bench_loop *l, uint64_t quiet)
{
	struct udrv_bench_job *j = l->job;
	const struct udrv_queue *q = &j->queue;
	int ret;

	if (j->spin_ns != UDRV_SPIN_ONLY && quiet >= MIN_SLEEP_NS) {
		if (l->inflight)
			return q->ops->wait(q->handle, &l->out, 1, j->iodepth, quiet, j->spin_ns);
		nanosleep(&(struct timespec){ .tv_nsec = (long)quiet }, NULL);
		return 0;
	}
	if (!l->inflight) {
		udrv_cpu_relax();
		return 0;
	}
	ret = q->ops->reap(q->handle, &l->out, 0, j->iodepth);
	l->res->polls++;
	if (!ret) {
		l->res->empty_polls++;
		udrv_cpu_relax();
	}
	return ret;
}

/* Notice udrv_qp_close(): the unlocked functions do not look. Return: 0, or -UDRV_E*. */
static int recheck(struct udrv_bench_loop *l, int *held)
{
	const struct udrv_queue *q = &l->job->queue;
	int ret;

	q->ops->leave(q->handle);
	ret = q->ops->enter(q->handle);
	*held = !ret;
	return ret;
}

int udrv_bench_loop(struct udrv_bench_loop *l, int *held)
{
	int stopping = 0, failed = 0, ret = 0;
	uint32_t pass = 0;

	for (;;) {
		uint64_t now = udrv_bench_now(l);
		uint32_t n = 0;

		if (!stopping && (failed || must_stop(l, now))) {
			stopping = 1;
			judge_schedule(l, now);
		}
		if (!stopping) {
			n = fill(l, now);
			if (n)
				failed = issue(l, n);
		}
		if (stopping && !l->inflight)
			return failed;
		if (l->inflight && now > l->progress_ns &&
		    now - l->progress_ns >= l->job->timeout_ns) {
			l->res->timed_out = 1;
			if (!stopping)
				judge_schedule(l, now);
			return failed;
		}
		/* A poll has nobody else to do it: see udrv_qp_ring(). */
		if (l->job->queue.ops->ring && l->inflight &&
		    now > l->progress_ns && now > l->rung_ns &&
		    now - l->progress_ns >= UDRV_RING_AFTER_NS &&
		    now - l->rung_ns >= UDRV_RING_AFTER_NS) {
			l->job->queue.ops->ring(l->job->queue.handle);
			l->rung_ns = now;
		}
		ret = collect(l, quiet_ns(l, now, stopping));
		if (unlikely(ret < 0))
			return ret;
		if (ret)
			complete(l, (uint32_t)ret, udrv_bench_now(l));
		if (n || ret)
			udrv_bench_publish(l);
		if (!(++pass % RECHECK_PASSES)) {
			ret = recheck(l, held);
			if (ret)
				return ret;
		}
	}
}

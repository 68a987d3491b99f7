// SPDX-License-Identifier: Apache-2.0
/*
 * How long a command takes: a pure function of the model, the command and the time. No clock, no
 * allocation, no libm: the same calls give the same numbers on any machine.
 *
 * The healthy drive is a number of dies behind fewer channels. A read occupies its die, then its
 * channel; a write its channel, then its die, and is done when the die is no further behind than
 * the buffer allows. So latency grows with depth, and reads wait behind writes.
 */
#include "fault.h"

#define NS_PER_US 1000u
#define KIB 1024.0

static uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* --- the healthy drive ----------------------------------------------------------------------- */

static uint64_t media_time(const struct soft_model *m, uint32_t ns, uint64_t index)
{
	double off = (fault_fraction(m->cfg.seed, index) * 2 - 1) * m->cfg.jitter;

	return (uint64_t)(ns * (1 + off));
}

static uint64_t read_unit(struct soft_model *m, uint32_t die, uint64_t transfer, uint64_t now,
			  uint64_t index)
{
	uint64_t *channel = &m->channel_free[die % m->cfg.channels];
	uint64_t sensed = later(now, m->die_free[die]) + media_time(m, m->cfg.read_ns, index);

	m->die_free[die] = sensed;
	*channel = later(sensed, *channel) + transfer;
	return *channel;
}

static uint64_t write_unit(struct soft_model *m, uint32_t die, uint64_t transfer, uint64_t now,
			   uint64_t index)
{
	uint64_t *channel = &m->channel_free[die % m->cfg.channels];
	uint64_t behind;

	*channel = later(now, *channel) + transfer;
	m->die_free[die] = later(*channel, m->die_free[die]) +
			   media_time(m, m->cfg.program_ns, index);
	behind = m->die_free[die] - *channel;
	return *channel + (behind > m->cfg.buffer_ns ? behind - m->cfg.buffer_ns : 0);
}

uint64_t model_latency(struct soft_model *m, const struct fault_event *e, uint64_t at,
		       uint64_t now_ns)
{
	uint64_t done = now_ns, index = m->commands++ * 0x10000;
	uint64_t end = at + e->bytes;

	if (!m->cfg.dies)
		return 0;
	/* At most MDTS / 512 turns, and a command of 64 Ki blocks without data is cut at that. */
	for (uint32_t n = 0; at < end && n < 4096; n++) {
		uint64_t stripe = at / m->cfg.stripe, next = (stripe + 1) * m->cfg.stripe;
		uint32_t die = (uint32_t)(stripe % m->cfg.dies);
		uint64_t part = (next < end ? next : end) - at;
		uint64_t transfer = part * m->cfg.transfer_ns / 4096;

		if (e->write)
			done = later(done, write_unit(m, die, transfer, now_ns, index + n));
		else
			done = later(done, read_unit(m, die, transfer, now_ns, index + n));
		at += part;
	}
	return done - now_ns + m->cfg.overhead_ns;
}

/* --- the faulty one -------------------------------------------------------------------------- */

/* Thirty years: six of them still fit beside a time. */
#define MOST_NS 1000000000000000000ull

static uint64_t times(uint64_t latency_ns, double factor)
{
	double added = (double)latency_ns * (factor - 1);

	return added < (double)MOST_NS ? (uint64_t)added : MOST_NS;
}

/* What is left in the bucket. */
static double drained(const struct fault_state *s, uint64_t now_ns)
{
	double rate = (double)s->fault.u[0] * KIB * 1e-9, level = s->level;

	if (s->drained_ns)
		level -= (double)(now_ns - s->drained_ns) * rate;
	return level > 0 ? level : 0;
}

double model_heat(const struct fault_state *s, uint64_t now_ns)
{
	return drained(s, now_ns) / ((double)s->fault.u[1] * KIB);
}

/* A bucket of bytes with a hole, and two levels: what begins at the upper ends at the lower one. */
static bool bucket_full(struct fault_state *s, const struct fault_event *e, uint64_t now_ns)
{
	const struct udrv_fault *f = &s->fault;
	bool fills = e->write || f->effect == UDRV_FAULT_THERMAL;

	s->level = drained(s, now_ns);
	s->drained_ns = now_ns;
	/* What it fell to before this command decides the end, what this one adds the beginning. */
	if (s->full && s->level <= (double)f->u[2] * KIB) {
		s->full = false;
		s->full_ns += now_ns - s->onset_ns;
	}
	if (fills)
		s->level += e->bytes;
	if (!s->full && s->level >= (double)f->u[1] * KIB) {
		s->full = true;
		s->onset_ns = now_ns;
		s->onsets++;
	}
	return s->full;
}

static uint64_t retries(const struct fault_state *s)
{
	const struct udrv_fault *f = &s->fault;
	uint64_t n = 1;

	while (n <= f->u[1] && fault_fraction(~f->seed, s->matched << 10 | n) < f->f[0])
		n++;
	return n;
}

static uint64_t held_back(struct fault_state *s, const struct fault_event *e, uint64_t latency_ns,
			  uint64_t now_ns)
{
	uint64_t need = (uint64_t)((double)e->bytes / ((double)s->fault.u[0] * KIB) * 1e9);

	s->free_ns = later(s->free_ns, now_ns) + need;
	return s->free_ns - now_ns > latency_ns ? s->free_ns - now_ns - latency_ns : 0;
}

uint64_t model_added(struct fault_state *s, const struct fault_event *e, uint64_t latency_ns,
		     uint64_t now_ns, uint64_t *onset_ns)
{
	const struct udrv_fault *f = &s->fault;
	uint64_t end;

	switch (f->effect) {
	case UDRV_FAULT_LATE:
		return f->u[0] * NS_PER_US;
	case UDRV_FAULT_FACTOR:
		return times(latency_ns, f->f[0]);
	case UDRV_FAULT_ADD:
		return f->u[0] * NS_PER_US +
		       (uint64_t)(fault_fraction(~f->seed, s->matched) *
				  (double)(f->u[1] * NS_PER_US));
	case UDRV_FAULT_THROTTLE:
		return (fault_random(~f->seed, s->matched) % f->u[1] + 1) * f->u[0] * NS_PER_US;
	case UDRV_FAULT_STALL:
		end = f->period_us ? *onset_ns + f->on_us * NS_PER_US :
				     s->loaded_ns + f->end_us * NS_PER_US;
		return end - now_ns > latency_ns ? end - now_ns - latency_ns : 0;
	case UDRV_FAULT_RETRY:
		return retries(s) * f->u[0] * NS_PER_US;
	case UDRV_FAULT_BANDWIDTH:
		return held_back(s, e, latency_ns, now_ns);
	case UDRV_FAULT_THERMAL:
	case UDRV_FAULT_GC:
	case UDRV_FAULT_SLC:
		if (!bucket_full(s, e, now_ns) ||
		    (f->effect == UDRV_FAULT_SLC && !e->write))
			return 0;
		*onset_ns = s->onset_ns;
		return times(latency_ns, f->f[0]);
	default:
		return 0;
	}
}

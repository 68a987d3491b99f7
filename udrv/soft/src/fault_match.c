// SPDX-License-Identifier: Apache-2.0
/* Which faults apply: a pure function of the fault, its state, the event and the time. */
#include "fault.h"

#include <stddef.h>

#define NS_PER_US 1000u
/* Times in a fault are microseconds; this many are 58 years, and fit as nanoseconds, added up. */
#define MAX_US (UINT64_MAX / NS_PER_US / 10)

uint64_t fault_random(uint64_t seed, uint64_t index)
{
	/* SplitMix64 (Steele, Lea, Flood 2014), the index-th of its sequence. */
	uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

double fault_fraction(uint64_t seed, uint64_t index)
{
	return (double)(fault_random(seed, index) >> 11) * 0x1p-53;
}

/* --- what is valid --------------------------------------------------------------------------- */

static bool window_valid(const struct udrv_fault *f)
{
	if (f->start_us > MAX_US || f->end_us <= f->start_us)
		return false;
	if (f->end_us > MAX_US && f->end_us != UDRV_FAULT_FOREVER)
		return false;
	if (!f->period_us)
		return !f->on_us;
	return f->period_us <= MAX_US && f->on_us >= 1 && f->on_us <= f->period_us;
}

static bool scope_valid(const struct udrv_fault *f)
{
	if (f->lba_last < f->lba_first || f->queue_last < f->queue_first || f->queue_last > 65535)
		return false;
	if (!f->every || !f->count || !(f->probability > 0 && f->probability <= 1))
		return false;
	if (f->dies ? f->die >= f->dies || !f->stripe : f->die || f->stripe)
		return false;
	return window_valid(f);
}

static bool bucket_valid(const struct udrv_fault *f)
{
	return f->f[0] >= 1 && f->f[0] <= 1000 && f->u[0] && f->u[0] <= 1ull << 40 &&
	       f->u[1] <= 1ull << 40 && f->u[2] < f->u[1];
}

static bool arguments_valid(const struct udrv_fault *f)
{
	switch (f->effect) {
	case UDRV_FAULT_DROP:
	case UDRV_FAULT_WRONG_PHASE:
	case UDRV_FAULT_SPURIOUS_INTERRUPT:
	case UDRV_FAULT_MISSING_INTERRUPT:
	case UDRV_FAULT_NEVER_READY:
	case UDRV_FAULT_SHUTDOWN_HANG:
	case UDRV_FAULT_MEDIA_ERROR:
		return true;
	case UDRV_FAULT_LATE:
	case UDRV_FAULT_DUPLICATE:
	case UDRV_FAULT_DELETED_QUEUE:
	case UDRV_FAULT_SLOW_READY:
	case UDRV_FAULT_SLOW_RESET:
		return f->u[0] <= MAX_US;
	case UDRV_FAULT_UNKNOWN_CID:
	case UDRV_FAULT_WRONG_SQID:
		return f->u[0] <= 65535 && f->u[1] <= 1;
	case UDRV_FAULT_WRONG_SQHD:
		return f->u[0] <= 65535;
	case UDRV_FAULT_CFS:
	case UDRV_FAULT_ALL_ONES:
		/* What waits for its time comes once: there is nothing to choose from. */
		if (f->u[0] && (f->after || f->every > 1 || f->probability < 1 || f->period_us ||
				f->end_us != UDRV_FAULT_FOREVER))
			return false;
		return f->u[0] <= 1 && f->u[1] <= MAX_US;
	case UDRV_FAULT_EVENT_STORM:
		return f->u[0] <= 2 && f->u[1] <= 255 && f->u[2] <= 255;
	case UDRV_FAULT_STATUS:
		/* SC, SCT and DNR; success is no fault */
		return !(f->u[0] & ~0x47ffull) && f->u[0] & 0x7ff && f->u[1] <= 1;
	case UDRV_FAULT_CORRUPT:
		return f->u[0] >= 1 && f->u[0] <= 4096;
	case UDRV_FAULT_TORN:
		return f->u[0] <= 65535;
	case UDRV_FAULT_FACTOR:
		return f->f[0] > 1 && f->f[0] <= 1000;
	case UDRV_FAULT_ADD:
		return f->u[0] <= MAX_US / 2 && f->u[1] <= MAX_US / 2 && f->u[0] + f->u[1];
	case UDRV_FAULT_THROTTLE:
		return f->u[0] && f->u[0] <= 1000000 && f->u[1] && f->u[1] <= 1000000;
	case UDRV_FAULT_STALL:
		return f->period_us || f->end_us != UDRV_FAULT_FOREVER;
	case UDRV_FAULT_RETRY:
		return f->u[0] && f->u[0] <= 1000000 && f->u[1] <= 1000 && f->f[0] >= 0 &&
		       f->f[0] <= 1;
	case UDRV_FAULT_BANDWIDTH:
		return f->u[0] && f->u[0] <= 1ull << 40;
	case UDRV_FAULT_THERMAL:
	case UDRV_FAULT_GC:
	case UDRV_FAULT_SLC:
		return bucket_valid(f);
	default:
		return false;
	}
}

bool fault_valid(const struct udrv_fault *f)
{
	return !(f->flags & ~UDRV_FAULT_HEALTHY) && scope_valid(f) && arguments_valid(f);
}

int udrv_fault_check(const struct udrv_fault *fault)
{
	return fault_valid(fault);
}

bool fault_needs_model(const struct udrv_fault *f)
{
	return f->effect == UDRV_FAULT_FACTOR || f->effect == UDRV_FAULT_THERMAL ||
	       f->effect == UDRV_FAULT_GC || f->effect == UDRV_FAULT_SLC;
}

bool fault_model_valid(const struct udrv_model *m)
{
	if (!m->dies)
		return true;
	return m->dies <= UDRV_MODEL_MAX_DIES && m->channels && m->channels <= m->dies &&
	       m->channels <= UDRV_MODEL_MAX_CHANNELS && m->stripe >= 512 &&
	       m->stripe <= 1u << 20 && m->jitter >= 0 && m->jitter <= 1;
}

/* --- what matches ---------------------------------------------------------------------------- */

static enum fault_on fault_on(const struct udrv_fault *f)
{
	switch (f->effect) {
	case UDRV_FAULT_CFS:
	case UDRV_FAULT_ALL_ONES:
		return f->u[0] ? FAULT_ON_TIME : FAULT_ON_COMMAND;
	case UDRV_FAULT_NEVER_READY:
	case UDRV_FAULT_SLOW_READY:
		return FAULT_ON_ENABLE;
	case UDRV_FAULT_SLOW_RESET:
		return FAULT_ON_RESET;
	case UDRV_FAULT_SHUTDOWN_HANG:
		return FAULT_ON_SHUTDOWN;
	default:
		return FAULT_ON_COMMAND;
	}
}

static bool in_scope(const struct udrv_fault *f, const struct fault_event *e)
{
	const uint64_t *ops = f->opcodes;
	bool ranged = f->lba_first || f->lba_last != UDRV_FAULT_FOREVER;

	if (e->sqid < f->queue_first || e->sqid > f->queue_last)
		return false;
	if ((ops[0] | ops[1] | ops[2] | ops[3]) && !(ops[e->opcode / 64] >> e->opcode % 64 & 1))
		return false;
	if (f->nsid && f->nsid != e->nsid)
		return false;
	if (ranged && (!e->blocks || e->slba > f->lba_last ||
		       e->slba + (e->blocks - 1) < f->lba_first))
		return false;
	/* The first block decides: a command that touches several dies belongs to its first one. */
	return !f->dies || (e->blocks && e->slba / f->stripe % f->dies == f->die);
}

static bool in_time(const struct fault_state *s, uint64_t now_ns, uint64_t *onset_ns)
{
	const struct udrv_fault *f = &s->fault;
	uint64_t begin = s->loaded_ns + f->start_us * NS_PER_US, into;

	if (now_ns < begin)
		return false;
	if (f->end_us != UDRV_FAULT_FOREVER && now_ns >= s->loaded_ns + f->end_us * NS_PER_US)
		return false;
	*onset_ns = begin;
	if (!f->period_us)
		return true;
	into = (now_ns - begin) % (f->period_us * NS_PER_US);
	*onset_ns = now_ns - into;
	return into < f->on_us * NS_PER_US;
}

bool fault_selects(struct fault_state *s, const struct fault_event *e, uint64_t now_ns,
		   uint64_t *onset_ns)
{
	const struct udrv_fault *f = &s->fault;

	if (e->on != fault_on(f) || s->applied >= f->count)
		return false;
	if (e->on == FAULT_ON_COMMAND && !in_scope(f, e))
		return false;
	if (!in_time(s, now_ns, onset_ns))
		return false;
	s->matched++;
	if (s->matched <= f->after || (s->matched - f->after - 1) % f->every)
		return false;
	return f->probability >= 1 || fault_fraction(f->seed, s->matched) < f->probability;
}

uint64_t fault_due(const struct fault_state *s)
{
	const struct udrv_fault *f = &s->fault;

	if (fault_on(f) != FAULT_ON_TIME || s->applied)
		return UINT64_MAX;
	return s->loaded_ns + f->start_us * NS_PER_US;
}

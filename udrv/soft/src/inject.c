// SPDX-License-Identifier: Apache-2.0
/*
 * The table of faults, completions that are due, and faults of the controller itself.
 */
#define _GNU_SOURCE
#include "ctrl.h"
#include "fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_US 1000u
/* A sleep ends this much before the next completion is due; the rest is polled. */
#define WAKE_EARLY_NS 80000
/* Another process that is given the CPU may keep it for some milliseconds. */
#define SOON_NS 200000
/* Where thermal throttling begins, above an idle drive: over the warning threshold. */
#define HOT_K 40
#define HOT_MOST 2.0

/* --- loaded and unloaded --------------------------------------------------------------------- */

static void update(struct udrv_soft *c)
{
	const struct soft_inject *in = c->inject;

	c->injecting = in->nr || in->model.cfg.dies || in->late.nr || in->removed ||
		       in->ready_ns || in->csts;
}

static int make_room(struct soft_inject *in)
{
	if (!in->late.at)
		in->late.at = calloc(LATE_MAX, sizeof(*in->late.at));
	return in->late.at ? 0 : -ENOMEM;
}

int soft_inject_load(struct udrv_soft *c, const struct udrv_fault *faults, uint32_t nr,
		     bool replace, uint32_t *bad)
{
	struct soft_inject *in = c->inject;
	uint32_t kept = replace ? 0 : in->nr;

	if (nr > UDRV_FAULT_MAX - kept)
		return -ENOSPC;
	for (uint32_t i = 0; i < nr; i++) {
		*bad = i;
		if (!fault_valid(&faults[i]))
			return -EINVAL;
		if (fault_needs_model(&faults[i]) && !in->model.cfg.dies)
			return -ENODATA;
	}
	if (make_room(in))
		return -ENOMEM;
	*bad = in->next_id;
	in->nr = kept;
	for (uint32_t i = 0; i < nr; i++)
		in->fault[in->nr++] = (struct fault_state){ .fault = faults[i],
							    .id = in->next_id++,
							    .loaded_ns = soft_now_ns() };
	update(c);
	return 0;
}

int soft_inject_unload(struct udrv_soft *c, uint32_t id)
{
	struct soft_inject *in = c->inject;
	uint32_t i = 0;

	if (!id) {
		in->nr = 0;
	} else {
		while (i < in->nr && in->fault[i].id != id)
			i++;
		if (i == in->nr)
			return -ENOENT;
		in->nr--;
		memmove(&in->fault[i], &in->fault[i + 1], (in->nr - i) * sizeof(in->fault[0]));
	}
	update(c);
	return 0;
}

static int read_table(struct udrv_soft *c)
{
	static struct udrv_fault faults[UDRV_FAULT_MAX];
	struct udrv_fault_table table;
	ssize_t want;
	uint32_t bad;

	if (pread(c->cfg.faults_fd, &table, sizeof(table), 0) != sizeof(table))
		return -EINVAL;
	if (table.magic != UDRV_FAULT_MAGIC || table.version != UDRV_FAULT_VERSION ||
	    table.count > UDRV_FAULT_MAX || !fault_model_valid(&table.model))
		return -EINVAL;
	want = (ssize_t)(table.count * sizeof(faults[0]));
	if (pread(c->cfg.faults_fd, faults, (size_t)want, sizeof(table)) != want)
		return -EINVAL;
	c->inject->model.cfg = table.model;
	return soft_inject_load(c, faults, table.count, false, &bad);
}

int soft_inject_open(struct udrv_soft *c)
{
	c->inject = calloc(1, sizeof(*c->inject));
	if (!c->inject)
		return -ENOMEM;
	c->inject->next_id = 1;
	c->inject->tear = UINT32_MAX;
	c->inject->truth.fd = c->cfg.truth_fd;
	return c->cfg.faults_fd < 0 ? 0 : read_table(c);
}

void soft_inject_close(struct udrv_soft *c)
{
	if (!c->inject)
		return;
	truth_flush(&c->inject->truth);
	free(c->inject->late.at);
	free(c->inject);
	c->inject = NULL;
}

static void tell_event(struct udrv_soft *c, struct fault_state *s, uint64_t onset_ns,
		       uint64_t now_ns)
{
	s->applied++;
	truth_add(&c->inject->truth,
		  &(struct udrv_truth){ .time_ns = now_ns, .onset_ns = onset_ns, .fault = s->id,
					.effect = (uint8_t)s->fault.effect,
					.kind = UDRV_TRUTH_CONTROLLER,
					.flags = (uint8_t)s->fault.flags });
}

void soft_fault_remove(struct udrv_soft *c, const struct udrv_fault *f, uint64_t now_ns)
{
	struct soft_inject *in = c->inject;

	in->removed = true;
	in->back_ns = f->u[1] ? now_ns + f->u[1] * NS_PER_US : UINT64_MAX;
	c->running = false;
}

/* --- time ------------------------------------------------------------------------------------ */

static void meet_time(struct udrv_soft *c, uint64_t now_ns)
{
	static const struct fault_event e = { .on = FAULT_ON_TIME };
	struct soft_inject *in = c->inject;

	for (uint32_t i = 0; i < in->nr; i++) {
		struct fault_state *s = &in->fault[i];
		uint64_t onset_ns;

		if (fault_due(s) > now_ns || !fault_selects(s, &e, now_ns, &onset_ns))
			continue;
		tell_event(c, s, onset_ns, now_ns);
		if (s->fault.effect == UDRV_FAULT_CFS)
			soft_fatal(c);
		else
			soft_fault_remove(c, &s->fault, now_ns);
	}
}

bool soft_fault_pass(struct udrv_soft *c)
{
	struct late_heap *h = &c->inject->late;
	uint64_t now_ns = soft_now_ns();
	struct soft_late late;
	bool work = false;

	meet_time(c, now_ns);
	while (c->running && h->nr && h->at[0].due_ns <= now_ns) {
		struct soft_cq *cq;

		late_pop(h, &late);
		cq = &c->cq[late.cqid];
		if (!cq->live || cq->epoch != late.epoch) {
			soft_fault_tell(c, &late, UDRV_TRUTH_LOST, 0, now_ns);
			continue;
		}
		cq->reserved--;
		soft_fault_post(c, &late, now_ns);
		work = true;
	}
	if (!c->inject->nr)
		update(c);
	return work;
}

int64_t soft_fault_patience(struct udrv_soft *c, int64_t wait_ns)
{
	const struct soft_inject *in = c->inject;
	uint64_t due = in->late.nr ? in->late.at[0].due_ns : UINT64_MAX, now = soft_now_ns();

	if (!c->running)
		return wait_ns;
	for (uint32_t i = 0; i < in->nr; i++) {
		if (fault_due(&in->fault[i]) < due)
			due = fault_due(&in->fault[i]);
	}
	if (due == UINT64_MAX)
		return wait_ns;
	if (due < now + WAKE_EARLY_NS)
		return 0;
	due -= now + WAKE_EARLY_NS;
	/* ppoll() takes what fits below a second here; the loop comes round again. */
	if (due > 999999999)
		due = 999999999;
	return wait_ns < 0 || due < (uint64_t)wait_ns ? (int64_t)due : wait_ns;
}

bool soft_fault_soon(const struct udrv_soft *c, uint64_t now_ns)
{
	const struct late_heap *h = &c->inject->late;

	return h->nr && h->at[0].due_ns < now_ns + SOON_NS;
}

bool soft_fault_abort(struct udrv_soft *c, uint16_t sqid, uint16_t cid)
{
	struct late_heap *h = &c->inject->late;

	for (uint32_t i = 0; i < h->nr; i++) {
		struct soft_late *late = &h->at[i];

		if (late->own_sqid != sqid || late->own_cid != cid || late->held || late->freed)
			continue;
		/* What it did to the data is done: 5.1 leaves that open. */
		late->status = NV_ABORTED;
		late->due_ns = soft_now_ns();
		late_renew(h);
		return true;
	}
	return false;
}

uint32_t soft_fault_heat(const struct udrv_soft *c, uint32_t *onsets, uint32_t *seconds)
{
	const struct soft_inject *in = c->inject;
	uint64_t now_ns = soft_now_ns();
	double most = 0;

	for (uint32_t i = 0; i < in->nr; i++) {
		const struct fault_state *s = &in->fault[i];
		double heat;

		if (s->fault.effect != UDRV_FAULT_THERMAL)
			continue;
		heat = model_heat(s, now_ns);
		if (heat > most)
			most = heat;
		*onsets += s->onsets;
		*seconds += (uint32_t)(s->full_ns / 1000000000u);
	}
	return (uint32_t)(HOT_K * (most < HOT_MOST ? most : HOT_MOST));
}

void soft_fault_sq_gone(struct udrv_soft *c, uint16_t sqid)
{
	struct late_heap *h = &c->inject->late;
	uint64_t now_ns = soft_now_ns();
	uint32_t kept = 0;

	for (uint32_t i = 0; i < h->nr; i++) {
		struct soft_late *late = &h->at[i];

		if (late->own_sqid == sqid && late->held) {
			late->held = false;
			late->due_ns = now_ns + late->hold_ns;
		} else if (late->own_sqid == sqid && late->due_ns != UINT64_MAX && !late->freed) {
			/* Deleting a queue ends its commands, and nothing of them comes later. */
			c->cq[late->cqid].reserved--;
			soft_fault_tell(c, late, UDRV_TRUTH_LOST, 0, now_ns);
			continue;
		}
		late->freed |= late->own_sqid == sqid;
		h->at[kept++] = *late;
	}
	h->nr = kept;
	late_renew(h);
}

void soft_fault_queues_gone(struct udrv_soft *c)
{
	struct late_heap *h = &c->inject->late;
	uint64_t now_ns = soft_now_ns();

	for (uint32_t i = 0; i < h->nr; i++)
		soft_fault_tell(c, &h->at[i], UDRV_TRUTH_LOST, 0, now_ns);
	h->nr = 0;
}

/* --- registers ------------------------------------------------------------------------------- */

bool soft_fault_registers(struct udrv_soft *c)
{
	struct soft_inject *in = c->inject;
	uint64_t now_ns = soft_now_ns();

	meet_time(c, now_ns);
	if (in->removed && now_ns >= in->back_ns) {
		in->removed = false;
		soft_function_reset(c); /* it was without power */
	}
	if (in->ready_ns && now_ns >= in->ready_ns) {
		in->ready_ns = 0;
		in->csts = 0;
		if (c->cc & NV_CC_EN)
			soft_enable(c);
	}
	return in->removed;
}

static struct fault_state *meet(struct udrv_soft *c, uint8_t on)
{
	const struct fault_event e = { .on = on };
	struct soft_inject *in = c->inject;
	uint64_t now_ns = soft_now_ns(), onset_ns;

	for (uint32_t i = 0; i < in->nr; i++) {
		if (fault_selects(&in->fault[i], &e, now_ns, &onset_ns)) {
			tell_event(c, &in->fault[i], onset_ns, now_ns);
			return &in->fault[i];
		}
	}
	return NULL;
}

bool soft_fault_enable(struct udrv_soft *c)
{
	struct soft_inject *in = c->inject;
	const struct fault_state *s = meet(c, FAULT_ON_ENABLE);

	in->csts = 0;
	in->ready_ns = 0;
	if (!s)
		return false;
	in->ready_ns = s->fault.effect == UDRV_FAULT_NEVER_READY ?
			       UINT64_MAX :
			       soft_now_ns() + s->fault.u[0] * NS_PER_US;
	return true;
}

void soft_fault_reset(struct udrv_soft *c)
{
	struct soft_inject *in = c->inject;
	const struct fault_state *s = meet(c, FAULT_ON_RESET);

	in->csts = 0;
	in->ready_ns = 0;
	if (!s)
		return;
	in->csts = NV_CSTS_RDY;
	in->ready_ns = soft_now_ns() + s->fault.u[0] * NS_PER_US;
}

bool soft_fault_shutdown(struct udrv_soft *c)
{
	return meet(c, FAULT_ON_SHUTDOWN) != NULL;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * What the controller calls while faults or the latency model are loaded. The plain path has one
 * branch for all of it, on udrv_soft.injecting.
 *
 * A command meets its faults in this order: the controller's, an interrupt out of nothing, status
 * and data (at execution), then what becomes of its completion. Latency adds up in the order of
 * the table, and each effect is noted with what it added itself.
 *
 * A completion that is not due has a place of its queue reserved (soft_cq.reserved), so that
 * posting it never fails for want of room.
 */
#define _GNU_SOURCE
#include "ctrl.h"
#include "fault.h"

#define NS_PER_US 1000u

struct hit {
	struct fault_state *s;
	uint64_t onset_ns;
	bool done;
};

struct command {
	struct soft_sq *sq;
	struct soft_cq *cq;
	const struct nv_sqe *cmd;
	struct fault_event e;
	uint64_t now_ns;
	uint32_t nr;
	struct hit hits[NOTES_MAX];
};

/* --- notes ----------------------------------------------------------------------------------- */

/* What concerns no completion: written down at once. */
static void tell(struct udrv_soft *c, const struct command *m, struct hit *h, uint8_t kind)
{
	const struct fault_state *s = h->s;

	h->s->applied++;
	h->done = true;
	truth_add(&c->inject->truth,
		  &(struct udrv_truth){ .time_ns = m->now_ns, .submit_ns = m->now_ns,
					.onset_ns = h->onset_ns, .slba = m->e.slba, .fault = s->id,
					.epoch = m->cq->epoch, .cqid = m->cq->qid,
					.sqid = m->sq->qid, .cid = m->cmd->cid,
					.effect = (uint8_t)s->fault.effect, .kind = kind,
					.opcode = m->e.opcode, .flags = (uint8_t)s->fault.flags });
}

static void note(struct soft_late *late, struct hit *h, uint64_t added_ns)
{
	h->s->applied++;
	h->done = true;
	late->notes[late->nr_notes++] = (struct soft_note){
		.fault = h->s->id,
		.effect = (uint8_t)h->s->fault.effect,
		.flags = (uint8_t)h->s->fault.flags,
		.onset_ns = h->onset_ns,
		.added_ns = added_ns,
	};
}

void soft_fault_tell(struct udrv_soft *c, const struct soft_late *late, uint8_t kind,
		       uint64_t nth, uint64_t now_ns)
{
	for (uint32_t i = 0; i < late->nr_notes; i++) {
		const struct soft_note *n = &late->notes[i];

		truth_add(&c->inject->truth,
			  &(struct udrv_truth){ .nth = nth, .time_ns = now_ns,
						.submit_ns = late->submit_ns,
						.onset_ns = n->onset_ns, .added_ns = n->added_ns,
						.slba = late->slba, .fault = n->fault,
						.epoch = late->epoch, .cqid = late->cqid,
						.sqid = late->own_sqid, .cid = late->own_cid,
						.effect = n->effect, .kind = kind,
						.opcode = late->opcode, .flags = n->flags });
	}
}

/* --- completions ----------------------------------------------------------------------------- */

void soft_fault_post(struct udrv_soft *c, const struct soft_late *late, uint64_t now_ns)
{
	struct soft_cq *cq = &c->cq[late->cqid];
	const struct soft_sq *own = &c->sq[late->own_sqid];
	uint16_t head = late->wrong_head ? late->head : (uint16_t)own->head;
	uint64_t nth = cq->posted;

	soft_post(c, cq, (uint32_t)late->sqid << 16 | head, late->cid, late->status, late->result,
		  late->wrong_phase, late->silent);
	if (c->running)
		soft_fault_tell(c, late, UDRV_TRUTH_COMPLETION, nth, now_ns);
	else
		soft_fault_tell(c, late, UDRV_TRUTH_LOST, 0, now_ns);
}

/* A place was there (soft_cq_room()); it is taken now, or kept. */
static void post_at(struct udrv_soft *c, struct soft_late *late, uint64_t latency_ns)
{
	if (!latency_ns) {
		soft_fault_post(c, late, late->submit_ns);
		return;
	}
	late->due_ns = late->held ? UINT64_MAX : late->submit_ns + latency_ns;
	c->cq[late->cqid].reserved++;
	late_push(&c->inject->late, late);
}

static bool room_for_another(const struct udrv_soft *c, const struct soft_cq *cq)
{
	/* One place is the command's own. */
	return soft_cq_room(cq) > 1 && c->inject->late.nr + 2 <= LATE_MAX;
}

/* An extra completion, or the command's own with a wrong name. */
static void misname(struct udrv_soft *c, struct command *m, struct hit *h, struct soft_late *late)
{
	const struct udrv_fault *f = &h->s->fault;
	struct soft_late extra = *late, *to = f->u[1] ? &extra : late;

	if (f->u[1] && !room_for_another(c, m->cq))
		return;
	extra.nr_notes = 0;
	if (f->effect == UDRV_FAULT_UNKNOWN_CID)
		to->cid = (uint16_t)f->u[0];
	else
		to->sqid = (uint16_t)f->u[0];
	note(to, h, 0);
	if (f->u[1])
		soft_fault_post(c, &extra, m->now_ns);
}

static void duplicate(struct udrv_soft *c, struct command *m, struct soft_late *late,
		      uint64_t latency_ns)
{
	for (uint32_t i = 0; i < m->nr; i++) {
		struct hit *h = &m->hits[i];
		struct soft_late extra = *late;

		if (h->s->fault.effect != UDRV_FAULT_DUPLICATE || !room_for_another(c, m->cq))
			continue;
		extra.nr_notes = 0;
		note(&extra, h, 0);
		/* In the heap even if due at once: the first one has to come before it. */
		post_at(c, &extra, latency_ns + h->s->fault.u[0] * NS_PER_US + 1);
	}
}

/* Return: what the command takes, nanoseconds. */
static uint64_t shape(struct udrv_soft *c, struct command *m, struct soft_late *late)
{
	uint32_t shift = soft_ns_active(c, m->e.nsid) ? c->media[m->e.nsid - 1].lba_shift : 0;
	uint64_t latency_ns = 0, added;

	if (m->sq->qid)
		latency_ns = model_latency(&c->inject->model, &m->e, m->e.slba << shift,
					   m->now_ns);
	for (uint32_t i = 0; i < m->nr; i++) {
		struct hit *h = &m->hits[i];

		switch (h->done ? 0 : h->s->fault.effect) {
		case UDRV_FAULT_UNKNOWN_CID:
		case UDRV_FAULT_WRONG_SQID:
			misname(c, m, h, late);
			break;
		case UDRV_FAULT_WRONG_SQHD:
			late->wrong_head = true;
			late->head = (uint16_t)h->s->fault.u[0];
			note(late, h, 0);
			break;
		case UDRV_FAULT_WRONG_PHASE:
			late->wrong_phase = true;
			note(late, h, 0);
			break;
		case UDRV_FAULT_MISSING_INTERRUPT:
			if (!m->cq->interrupts)
				break;
			late->silent = true;
			note(late, h, 0);
			break;
		case UDRV_FAULT_DELETED_QUEUE:
			if (!m->sq->qid || late->held)
				break;
			late->held = true;
			late->hold_ns = h->s->fault.u[0] * NS_PER_US;
			note(late, h, 0);
			break;
		default:
			if (h->s->fault.effect < UDRV_FAULT_FACTOR &&
			    h->s->fault.effect != UDRV_FAULT_LATE)
				break;
			added = model_added(h->s, &m->e, latency_ns, m->now_ns, &h->onset_ns);
			if (added)
				note(late, h, added);
			if (added && h->s->fault.effect == UDRV_FAULT_THERMAL &&
			    h->onset_ns == m->now_ns)
				soft_check_temperature(c);
			latency_ns += added;
			break;
		}
	}
	return late->held ? UINT64_MAX : latency_ns;
}

/* --- execution ------------------------------------------------------------------------------- */

static bool transfers(const struct nv_sqe *cmd, uint16_t sqid)
{
	return sqid && (cmd->opcode & 3) && (cmd->opcode & 3) != 3;
}

static void describe(const struct udrv_soft *c, struct command *m)
{
	const struct nv_sqe *cmd = m->cmd;
	struct fault_event *e = &m->e;

	*e = (struct fault_event){ .on = FAULT_ON_COMMAND, .opcode = cmd->opcode,
				   .sqid = m->sq->qid, .nsid = cmd->nsid };
	if (!m->sq->qid)
		return;
	switch (cmd->opcode) {
	case NV_IO_READ:
	case NV_IO_WRITE:
	case 0x04: /* Write Uncorrectable */
	case 0x05: /* Compare */
	case NV_IO_WRITE_ZEROES:
	case 0x0c: /* Verify */
		e->slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
		e->blocks = (cmd->cdw12 & 0xffff) + 1;
		break;
	default:
		return;
	}
	e->write = cmd->opcode == NV_IO_WRITE;
	/* Without data on the wire: overhead only, whatever the number of blocks. */
	if (transfers(cmd, m->sq->qid) && soft_ns_active(c, cmd->nsid))
		e->bytes = e->blocks << c->media[cmd->nsid - 1].lba_shift;
}

static void flip(uint8_t *at, uint64_t bit)
{
	at[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void corrupt(struct udrv_soft *c, struct command *m, struct hit *h, struct soft_late *late)
{
	const struct udrv_fault *f = &h->s->fault;
	struct soft_media *media;

	if (!m->e.bytes || !soft_ns_active(c, m->e.nsid))
		return;
	media = &c->media[m->e.nsid - 1];
	if (m->cmd->opcode != NV_IO_READ && m->cmd->opcode != NV_IO_WRITE)
		return;
	for (uint64_t i = 0; i < f->u[0]; i++) {
		uint64_t bit = fault_random(~f->seed, h->s->matched << 13 | i) %
			       (m->e.bytes * 8ull);

		if (m->e.write) {
			soft_media_flip(media, (m->e.slba << media->lba_shift) + bit / 8, bit % 8);
			continue;
		}
		for (uint32_t s = 0; s < c->nr_segments; s++) {
			if (bit < c->segment[s].iov_len * 8) {
				flip(c->segment[s].iov_base, bit);
				break;
			}
			bit -= c->segment[s].iov_len * 8;
		}
	}
	note(late, h, 0);
}

void soft_fault_tear(struct udrv_soft *c, uint32_t lba_shift)
{
	uint64_t left = (uint64_t)c->inject->tear << lba_shift;
	uint32_t i = 0;

	for (; i < c->nr_segments && left; i++) {
		if (c->segment[i].iov_len > left)
			c->segment[i].iov_len = (size_t)left;
		left -= c->segment[i].iov_len;
	}
	c->nr_segments = i;
}

/* Status and data. Return: enum nv_status. */
static uint16_t execute(struct udrv_soft *c, struct command *m, struct soft_late *late)
{
	struct hit *torn = NULL;
	uint16_t forced = 0, status = NV_OK;
	bool run = true;

	for (uint32_t i = 0; i < m->nr; i++) {
		struct hit *h = &m->hits[i];
		const struct udrv_fault *f = &h->s->fault;

		if (f->effect == UDRV_FAULT_STATUS && !forced) {
			forced = (uint16_t)f->u[0];
			run = f->u[1];
			note(late, h, 0);
		} else if (f->effect == UDRV_FAULT_MEDIA_ERROR && !forced && m->e.blocks) {
			forced = m->e.write ? NV_WRITE_FAULT : NV_READ_ERROR;
			run = false;
			c->stat.media_errors++;
			note(late, h, 0);
		} else if (f->effect == UDRV_FAULT_TORN && m->e.write && f->u[0] < m->e.blocks) {
			torn = h;
		}
	}
	if (run) {
		if (torn)
			c->inject->tear = (uint32_t)torn->s->fault.u[0];
		status = soft_execute(c, m->sq->qid, m->cmd, &late->result);
		c->inject->tear = UINT32_MAX;
	}
	if (run && status == NV_OK) {
		if (torn)
			note(late, torn, 0);
		for (uint32_t i = 0; i < m->nr; i++) {
			if (m->hits[i].s->fault.effect == UDRV_FAULT_CORRUPT)
				corrupt(c, m, &m->hits[i], late);
		}
	}
	if (forced && status != NV_NO_COMPLETION)
		status = forced;
	return status;
}

/* --- the command hook ------------------------------------------------------------------------ */

/* The controller's own faults, and interrupts. Return: whether the command goes on. */
static bool meet_controller(struct udrv_soft *c, struct command *m)
{
	for (uint32_t i = 0; i < m->nr; i++) {
		struct hit *h = &m->hits[i];

		switch (h->s->fault.effect) {
		case UDRV_FAULT_CFS:
			tell(c, m, h, UDRV_TRUTH_CONTROLLER);
			soft_fatal(c);
			return false;
		case UDRV_FAULT_ALL_ONES:
			tell(c, m, h, UDRV_TRUTH_CONTROLLER);
			soft_fault_remove(c, &h->s->fault, m->now_ns);
			return false;
		case UDRV_FAULT_EVENT_STORM:
			if (!c->event.nr_parked)
				break;
			/* As if the log page had been read. */
			c->event.masked[h->s->fault.u[0]] = false;
			soft_event_raise(c, (enum nv_event_type)h->s->fault.u[0],
					 (uint32_t)h->s->fault.u[1], (uint32_t)h->s->fault.u[2]);
			tell(c, m, h, UDRV_TRUTH_CONTROLLER);
			break;
		case UDRV_FAULT_SPURIOUS_INTERRUPT:
			if (m->cq->interrupts && soft_irq_raise(c, m->cq->vector))
				tell(c, m, h, UDRV_TRUTH_CONTROLLER);
			break;
		default:
			break;
		}
	}
	return true;
}

static void select_faults(struct udrv_soft *c, struct command *m)
{
	struct soft_inject *in = c->inject;

	for (uint32_t i = 0; i < in->nr && m->nr < NOTES_MAX; i++) {
		struct hit *h = &m->hits[m->nr];

		h->done = false;
		h->s = &in->fault[i];
		if (fault_selects(h->s, &m->e, m->now_ns, &h->onset_ns))
			m->nr++;
	}
}

void soft_fault_command(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
			const struct nv_sqe *cmd)
{
	struct command m = { .sq = sq, .cq = cq, .cmd = cmd, .now_ns = soft_now_ns() };
	struct soft_late late = { .submit_ns = m.now_ns, .epoch = cq->epoch, .cqid = cq->qid,
				  .sqid = sq->qid, .own_sqid = sq->qid, .cid = cmd->cid,
				  .own_cid = cmd->cid, .opcode = cmd->opcode };
	uint16_t sqid = sq->qid, status;
	uint64_t latency_ns;

	describe(c, &m);
	late.slba = m.e.slba;
	/* An event request waits for its event however long that takes: no fault applies to it. */
	if (sqid || cmd->opcode != NV_ADM_ASYNC_EVENT)
		select_faults(c, &m);
	c->counters->queue[sqid].commands++;
	if (!meet_controller(c, &m))
		return;
	status = execute(c, &m, &late);
	if (status == NV_NO_COMPLETION)
		return;
	late.status = soft_note_status(c, sqid, cmd, status);
	for (uint32_t i = 0; i < m.nr; i++) {
		if (m.hits[i].s->fault.effect == UDRV_FAULT_DROP) {
			note(&late, &m.hits[i], 0);
			soft_fault_tell(c, &late, UDRV_TRUTH_LOST, 0, m.now_ns);
			return;
		}
	}
	latency_ns = shape(c, &m, &late);
	if (!late.held)
		duplicate(c, &m, &late, latency_ns);
	post_at(c, &late, latency_ns);
}

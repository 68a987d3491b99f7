// SPDX-License-Identifier: Apache-2.0
/*
 * A drive in virtual time: a closed loop of places in flight around the model and the faults. Each
 * place is either going to submit or waiting for its completion, so a heap of as many events as
 * there are places is all there is.
 */
#include <udrv/soft_sim.h>

#include <errno.h>
#include <stdlib.h>

#include "fault.h"

#define NS_PER_US 1000u
#define READ 0x02u
#define WRITE 0x01u
#define MAX_SIM_QUEUES 64u
#define TEN_YEARS_NS 315360000000000000u
#define MEDIA_READ_ERROR 0x281u
#define MEDIA_WRITE_FAULT 0x280u

/**
 * struct place - one of the host's places for a command in flight
 * @at_ns:	when the next thing happens to it
 * @order:	of events at one time
 * @busy:	that is a completion; else the host submits
 */
struct place {
	uint64_t at_ns;
	uint64_t order;
	uint64_t submit_ns;
	uint64_t slba;
	uint32_t index;
	uint16_t blocks;
	uint16_t depth;
	uint16_t status;
	uint8_t opcode;
	uint8_t nr_notes;
	bool busy;
	struct soft_note notes[NOTES_MAX];
};

struct sim_queue {
	uint64_t posted;
	uint32_t in_flight;
};

struct udrv_sim {
	struct udrv_sim_config cfg;
	struct soft_model model;
	struct fault_state fault[UDRV_FAULT_MAX];
	struct sim_queue queue[MAX_SIM_QUEUES];
	uint64_t cycle_ns;
	uint64_t order;
	uint64_t drawn;
	uint64_t next_block;
	uint32_t nr; /* places */
	struct place place[UDRV_SIM_MAX_DEPTH];
	struct place *heap[UDRV_SIM_MAX_DEPTH];
};

/* --- chance ---------------------------------------------------------------------------------- */

static uint64_t draw(struct udrv_sim *s)
{
	return fault_random(s->cfg.seed, s->drawn++);
}

static double fraction(struct udrv_sim *s)
{
	return (double)(draw(s) >> 11) * 0x1p-53;
}

/*
 * -ln(u) for u in (0, 1], to 1e-7. Not libm's: that may differ by a bit from one version to the
 * next, and then so would everything that follows.
 */
static double minus_log(double u)
{
	const double ln2 = 0.69314718055994530942;
	double sum = 0, x, x2, term;

	while (u < 0.70710678118654752440) {
		u *= 2;
		sum += ln2;
	}
	/* ln u = 2 artanh((u - 1) / (u + 1)), where the argument is at most 0.1716 */
	x = (u - 1) / (u + 1);
	x2 = x * x;
	term = x * (1 + x2 * (1.0 / 3 + x2 * (1.0 / 5 + x2 * (1.0 / 7 + x2 / 9))));
	return sum - 2 * term;
}

/* --- events ---------------------------------------------------------------------------------- */

static bool before(const struct place *a, const struct place *b)
{
	return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->order < b->order);
}

/* The event at the top was moved to a later time. */
static void sift_top(struct udrv_sim *s)
{
	struct place *moved = s->heap[0];
	uint32_t i = 0;

	moved->order = s->order++;
	for (;;) {
		uint32_t least = 2 * i + 1;

		if (least + 1 < s->nr && before(s->heap[least + 1], s->heap[least]))
			least++;
		if (least >= s->nr || !before(s->heap[least], moved))
			break;
		s->heap[i] = s->heap[least];
		i = least;
	}
	s->heap[i] = moved;
}

/* The load at a time, and when the next one begins. */
static const struct udrv_sim_load *load_at(const struct udrv_sim *s, uint64_t at_ns,
					   uint64_t *next_ns)
{
	uint64_t into = at_ns % s->cycle_ns, from = at_ns - into;
	uint32_t i = 0;

	for (;;) {
		uint64_t ns = s->cfg.load[i].duration_us * NS_PER_US;

		*next_ns = from + ns;
		if (into < ns)
			return &s->cfg.load[i];
		into -= ns;
		from += ns;
		i++;
	}
}

/* --- commands -------------------------------------------------------------------------------- */

static uint64_t place_command(struct udrv_sim *s, const struct udrv_sim_load *load)
{
	uint64_t room = s->cfg.blocks / load->blocks, slba;

	if (!load->sequential)
		return draw(s) % room * load->blocks;
	slba = s->next_block + load->blocks <= s->cfg.blocks ? s->next_block : 0;
	s->next_block = slba + load->blocks;
	return slba;
}

static void note(struct place *p, struct fault_state *f, uint64_t onset_ns, uint64_t added_ns)
{
	f->applied++;
	p->notes[p->nr_notes++] = (struct soft_note){ .fault = f->id,
						      .effect = (uint8_t)f->fault.effect,
						      .flags = (uint8_t)f->fault.flags,
						      .onset_ns = onset_ns,
						      .added_ns = added_ns };
}

static void tell(struct udrv_sim *s, struct udrv_sim_columns *out, const struct place *p,
		 uint8_t kind, uint64_t now_ns)
{
	uint16_t qid = (uint16_t)(p->index % s->cfg.queues + 1);

	for (uint32_t i = 0; i < p->nr_notes; i++) {
		const struct soft_note *n = &p->notes[i];

		out->truth[out->nr_truth++] = (struct udrv_truth){
			.nth = kind == UDRV_TRUTH_COMPLETION ? s->queue[qid - 1].posted : 0,
			.time_ns = now_ns, .submit_ns = p->submit_ns, .onset_ns = n->onset_ns,
			.added_ns = n->added_ns, .slba = p->slba, .fault = n->fault, .cqid = qid,
			.sqid = qid, .cid = (uint16_t)p->index, .effect = n->effect, .kind = kind,
			.opcode = p->opcode, .flags = n->flags,
		};
	}
}

/* Return: whether the command will have a completion. */
static bool meet_faults(struct udrv_sim *s, struct place *p, const struct fault_event *e,
			uint64_t now_ns, uint64_t *latency_ns)
{
	for (uint32_t i = 0; i < s->cfg.nr_faults && p->nr_notes < NOTES_MAX; i++) {
		struct fault_state *f = &s->fault[i];
		uint64_t onset_ns, added;

		if (!fault_selects(f, e, now_ns, &onset_ns))
			continue;
		switch (f->fault.effect) {
		case UDRV_FAULT_DROP:
			p->nr_notes = 0;
			note(p, f, onset_ns, 0);
			return false;
		case UDRV_FAULT_STATUS:
			p->status = (uint16_t)f->fault.u[0];
			note(p, f, onset_ns, 0);
			break;
		case UDRV_FAULT_MEDIA_ERROR:
			p->status = e->write ? MEDIA_WRITE_FAULT : MEDIA_READ_ERROR;
			note(p, f, onset_ns, 0);
			break;
		default:
			added = model_added(f, e, *latency_ns, now_ns, &onset_ns);
			if (added)
				note(p, f, onset_ns, added);
			*latency_ns += added;
			break;
		}
	}
	return true;
}

static void submit(struct udrv_sim *s, struct place *p, const struct udrv_sim_load *load,
		   struct udrv_sim_columns *out)
{
	struct sim_queue *q = &s->queue[p->index % s->cfg.queues];
	struct fault_event e = { .on = FAULT_ON_COMMAND,
				 .sqid = (uint16_t)(p->index % s->cfg.queues + 1), .nsid = 1,
				 .blocks = load->blocks,
				 .bytes = load->blocks << s->cfg.lba_shift };
	uint64_t now_ns = p->at_ns, latency_ns;

	e.write = fraction(s) >= load->reads;
	e.opcode = e.write ? WRITE : READ;
	e.slba = place_command(s, load);
	p->submit_ns = now_ns;
	p->slba = e.slba;
	p->blocks = (uint16_t)load->blocks;
	p->opcode = e.opcode;
	p->status = 0;
	p->nr_notes = 0;
	latency_ns = model_latency(&s->model, &e, e.slba << s->cfg.lba_shift, now_ns);
	if (!meet_faults(s, p, &e, now_ns, &latency_ns)) {
		tell(s, out, p, UDRV_TRUTH_LOST, now_ns);
		p->at_ns = now_ns + s->cfg.timeout_us * NS_PER_US;
		return;
	}
	p->depth = (uint16_t)++q->in_flight;
	p->busy = true;
	p->at_ns = now_ns + latency_ns;
}

static void complete(struct udrv_sim *s, struct place *p, struct udrv_sim_columns *out)
{
	struct sim_queue *q = &s->queue[p->index % s->cfg.queues];
	uint64_t units = (p->at_ns - p->submit_ns) / UDRV_SIM_LATENCY_UNIT, next_ns;
	const struct udrv_sim_load *load = load_at(s, p->at_ns, &next_ns);
	uint64_t i = out->nr++;

	tell(s, out, p, UDRV_TRUTH_COMPLETION, p->at_ns);
	out->submit_ns[i] = p->submit_ns;
	out->slba[i] = p->slba;
	out->latency[i] = units < UINT32_MAX ? (uint32_t)units : UINT32_MAX;
	out->nlb[i] = p->blocks;
	out->depth[i] = p->depth;
	out->qid[i] = (uint16_t)(p->index % s->cfg.queues + 1);
	out->status[i] = p->status;
	out->opcode[i] = p->opcode;
	out->flags[i] = units < UINT32_MAX ? 0 : UDRV_SIM_SATURATED;
	out->ns_index[i] = 0;
	q->posted++;
	q->in_flight--;
	p->busy = false;
	p->at_ns += (uint64_t)(minus_log(1 - fraction(s)) *
			       (double)(load->think_us * NS_PER_US));
}

/* --- the drive ------------------------------------------------------------------------------- */

static bool load_valid(const struct udrv_sim_load *l, const struct udrv_sim_config *cfg)
{
	return l->duration_us && l->duration_us <= TEN_YEARS_NS / NS_PER_US &&
	       l->think_us <= TEN_YEARS_NS / NS_PER_US / 64 && l->depth <= UDRV_SIM_MAX_DEPTH &&
	       l->blocks && l->blocks <= 65535 && l->blocks <= cfg->blocks &&
	       l->sequential <= 1 && l->reads >= 0 && l->reads <= 1;
}

static bool effect_valid(const struct udrv_fault *f)
{
	return fault_valid(f) && (f->effect == UDRV_FAULT_DROP || f->effect == UDRV_FAULT_LATE ||
				  f->effect == UDRV_FAULT_STATUS ||
				  f->effect == UDRV_FAULT_MEDIA_ERROR ||
				  f->effect >= UDRV_FAULT_FACTOR);
}

static bool config_valid(const struct udrv_sim_config *cfg)
{
	if (cfg->end_ns > TEN_YEARS_NS || cfg->timeout_us > TEN_YEARS_NS / NS_PER_US ||
	    !cfg->timeout_us || !cfg->blocks || cfg->blocks > UINT64_MAX >> 13 ||
	    (cfg->lba_shift != 9 && cfg->lba_shift != 12) || !cfg->queues ||
	    cfg->queues > MAX_SIM_QUEUES || !cfg->nr_loads || cfg->nr_loads > UDRV_SIM_MAX_LOADS ||
	    cfg->nr_faults > UDRV_FAULT_MAX)
		return false;
	/* Without a model a command takes no time, and a closed loop would turn for ever at one. */
	if (!cfg->model.dies || !fault_model_valid(&cfg->model) || !cfg->model.overhead_ns)
		return false;
	for (uint32_t i = 0; i < cfg->nr_loads; i++) {
		if (!load_valid(&cfg->load[i], cfg))
			return false;
	}
	for (uint32_t i = 0; i < cfg->nr_faults; i++) {
		if (!effect_valid(&cfg->fault[i]))
			return false;
	}
	return true;
}

int udrv_sim_new(const struct udrv_sim_config *cfg, struct udrv_sim **sim)
{
	struct udrv_sim *s;

	if (!config_valid(cfg))
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->cfg = *cfg;
	s->model.cfg = cfg->model;
	for (uint32_t i = 0; i < cfg->nr_loads; i++) {
		s->cycle_ns += cfg->load[i].duration_us * NS_PER_US;
		if (cfg->load[i].depth > s->nr)
			s->nr = cfg->load[i].depth;
	}
	for (uint32_t i = 0; i < cfg->nr_faults; i++)
		s->fault[i] = (struct fault_state){ .fault = cfg->fault[i], .id = i + 1 };
	/* In the order of a heap: the host sends them one after the other, a nanosecond apart. */
	for (uint32_t i = 0; i < s->nr; i++) {
		s->place[i] = (struct place){ .index = i, .at_ns = i, .order = s->order++ };
		s->heap[i] = &s->place[i];
	}
	*sim = s;
	return 0;
}

int udrv_sim_run(struct udrv_sim *s, struct udrv_sim_columns *out)
{
	out->nr = 0;
	out->nr_truth = 0;
	while (out->nr < out->capacity && out->nr_truth + NOTES_MAX <= out->truth_capacity) {
		const struct udrv_sim_load *load;
		struct place *p = s->heap[0];
		uint64_t next_ns;

		if (!s->nr)
			return 0;
		load = p->busy ? NULL : load_at(s, p->at_ns, &next_ns);
		if (p->busy)
			complete(s, p, out);
		else if (p->at_ns >= s->cfg.end_ns)
			s->heap[0] = s->heap[--s->nr];
		else if (p->index >= load->depth)
			p->at_ns = next_ns;
		else
			submit(s, p, load, out);
		if (s->nr)
			sift_top(s);
	}
	return 1;
}

void udrv_sim_free(struct udrv_sim *sim)
{
	free(sim);
}

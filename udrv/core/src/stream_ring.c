// SPDX-License-Identifier: Apache-2.0
/* stream_ring.c - the ring of chunks, and records that are written one by one. */
#include "stream_priv.h"

/* Take chunk i from whoever has it, to fill it with rows from s->seq on. Return: 0 if it is held. */
static int reuse_chunk(struct udrv_stream *s, uint32_t i)
{
	struct udrv_stream_shared *sh = s->shared;
	struct udrv_chunk *c = &s->chunks[i];
	const uint64_t generation = c->generation, rows = c->rows;

	if (generation) {
		uint64_t taken = 0;

		/* relaxed: a first look, so that to find all of them held stays cheap */
		if (__atomic_load_n(&s->reader->hold[i], __ATOMIC_RELAXED) == generation)
			return 0;
		__atomic_store_n(&c->generation, generation | UDRV_CHUNK_BUSY, __ATOMIC_RELAXED);
		/* our store before our load: pairs with udrv_ring_take(), see record.h */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&s->reader->hold[i], __ATOMIC_RELAXED) == generation) {
			__atomic_store_n(&c->generation, generation, __ATOMIC_RELEASE);
			return 0;
		}
		/* acquire: how many rows were taken, before the hold that we do not see any more */
		if (__atomic_load_n(&s->reader->taken[i].generation, __ATOMIC_ACQUIRE) == generation)
			taken = __atomic_load_n(&s->reader->taken[i].rows, __ATOMIC_RELAXED);
		if (taken > rows)
			taken = rows;	/* a consumer's word */
		sh->counters.delivered += taken;
		sh->counters.overrun += rows - taken;
	}
	c->base = s->seq;
	c->rows = 0;
	/* release: base and rows before the number that a consumer waits for */
	__atomic_store_n(&c->generation, ++sh->generation, __ATOMIC_RELEASE);
	s->chunk = c;
	s->fill = 0;
	return 1;
}

void udrv_stream_open_chunk(struct udrv_stream *s)
{
	uint32_t tries = s->shared->chunks;

	while (tries--) {
		const uint32_t i = s->next_chunk;

		s->next_chunk = i + 1 == s->shared->chunks ? 0 : i + 1;
		if (reuse_chunk(s, i))
			return;
	}
}

/* One row by itself: sampled, not delivered, or ended by the host. `t` may be NULL. */
static void write_row(struct udrv_stream *s, const struct udrv_tracker *t, uint64_t lat,
		      uint16_t status, uint8_t flags)
{
	static const struct udrv_tracker none;
	struct udrv_chunk *c = s->chunk;
	const uint32_t r = s->fill++;

	if (lat >> UDRV_RECORD_UNIT_SHIFT > UINT32_MAX)
		flags |= UDRV_RECORD_SATURATED;
	c->submit_ns[r] = t ? submit_ns(s, t->submit_ticks) : 0;
	t = t ? t : &none;
	c->slba[r] = t->slba;
	c->latency[r] = latency_units(lat);
	c->nlb[r] = about_nlb(t->about);
	c->depth[r] = (uint32_t)t->depth < 0xffff ? (uint16_t)t->depth : 0xffff;
	c->status[r] = status;
	c->ns_index[r] = (uint16_t)udrv_stream_ns_index(s->shared, about_nsid(t->about));
	c->opcode[r] = about_opcode(t->about);
	c->flags[r] = flags;
}

/*
 * Whether completion s->seq is to be a record, and there is a chunk for it; counted if not. The caller
 * adds 1 to s->seq afterwards.
 */
static int wanted(struct udrv_stream *s)
{
	struct udrv_stream_counters *counters = &s->shared->counters;

	if (!s->records)
		return 0;
	if (s->seq % s->stride) {
		counters->sampled_out++;
		return 0;
	}
	if (!s->chunk)
		udrv_stream_open_chunk(s);
	if (!s->chunk)
		counters->ring_full++;
	return !!s->chunk;
}

void udrv_stream_single(struct udrv_stream *s, const struct udrv_tracker *t, uint64_t lat,
			uint16_t status, uint8_t flags)
{
	if (wanted(s)) {
		write_row(s, t, lat, status, flags);
		publish(s);
	}
	s->seq++;
}

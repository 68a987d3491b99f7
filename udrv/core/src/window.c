// SPDX-License-Identifier: Apache-2.0
/* window.c - windows, as far as they are not touched by every completion. */
#include <string.h>

#include "stream_priv.h"

static uint64_t ns_to_ticks(uint64_t ns)
{
	return (uint64_t)(((unsigned __int128)ns << 32) / udrv_clock.mult);
}

void udrv_window_rotate(struct udrv_stream *s, uint64_t now)
{
	struct udrv_stream_shared *sh = s->shared;
	const uint64_t rotation = sh->rotation + 1;
	struct udrv_window *w = &sh->window[rotation % UDRV_WINDOWS];
	const uint64_t now_ns = udrv_monotonic_ns();
	const uint64_t start = now_ns - now_ns % s->period_ns;

	if (s->window)
		s->window->seen = sh->counters.seen - sh->seen_before;
	sh->seen_before = sh->counters.seen;
	/* the old one's number before anything of it is overwritten: pairs with udrv_window_read() */
	__atomic_store_n(&w->rotation, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	w->start_ns = start;
	w->end_ns = start + s->period_ns;
	w->seen = 0;
	w->host_late = 0;
	w->rejected = 0;
	w->ended = 0;
	w->max_gap_ns = 0;
	__atomic_store_n(&w->rotation, rotation, __ATOMIC_RELEASE);
	__atomic_store_n(&sh->rotation, rotation, __ATOMIC_RELEASE);
	s->window = w;
	s->open_cells = &s->cells[(rotation % UDRV_WINDOWS) * sh->cells];
	/* of both clocks anew: they drift apart by some ppm */
	s->anchor_ticks = now;
	s->anchor_ns = now_ns;
	s->end_ticks = now + ns_to_ticks(w->end_ns - now_ns);
	s->key = &s->none;
}

/* The 99th percentile of a cell, or UINT64_MAX if it has none. */
static uint64_t p99(const struct udrv_cell *c)
{
	uint64_t rank = c->count - c->count / 100, seen = 0;
	uint32_t i;

	if (!c->count)
		return UINT64_MAX;
	for (i = c->low; i < c->high; i++) {
		seen += c->bucket[i];
		if (seen >= rank)
			break;
	}
	return udrv_hist_bucket_high(i);
}

/* A key's cell becomes part of the open window. */
static __attribute__((noinline)) void begin_cell(struct udrv_stream *s, struct udrv_cell *c)
{
	const uint64_t rotation = s->shared->rotation;
	const struct udrv_cell *before = &s->cells[((rotation - 1) % UDRV_WINDOWS) *
						   s->shared->cells + (c - s->open_cells)];

	if (c->count)	/* of the window that was here before: only what it touched */
		memset(&c->bucket[c->low], 0, (c->high - c->low + 1) * sizeof(c->bucket[0]));
	c->count = 0;
	c->sum_ns = 0;
	c->max_ns = 0;
	c->sum_sq = 0;
	c->errors = 0;
	c->low = UDRV_HIST_BUCKETS - 1;
	c->high = 0;
	c->threshold_ns = before->rotation == rotation - 1 ? p99(before) : UINT64_MAX;
	c->rotation = rotation;
}

/* A cell for a key that has none. Return: its index + 1, 0 if all are taken. */
static __attribute__((noinline)) uint32_t new_cell(struct udrv_stream *s, uint32_t key)
{
	struct udrv_stream_shared *sh = s->shared;

	if (sh->nr_keys == sh->cells - 1)
		return 0;
	s->keys[sh->nr_keys] = key;
	/* release: the key before its number; pairs with udrv_window_read() */
	__atomic_store_n(&sh->nr_keys, sh->nr_keys + 1, __ATOMIC_RELEASE);
	s->cell_of[key] = (uint16_t)sh->nr_keys;
	return sh->nr_keys;
}

static struct udrv_bands *find_bands(struct udrv_stream *s, uint32_t ns)
{
	const uint64_t rotation = s->shared->rotation;
	struct udrv_bands *b = &s->all_bands[(rotation % UDRV_WINDOWS) * UDRV_WINDOW_NAMESPACES + ns];

	if (b->rotation != rotation) {
		memset(b, 0, sizeof(*b));
		b->rotation = rotation;
	}
	return b;
}

uint32_t udrv_stream_ns_index(const struct udrv_stream_shared *sh, uint32_t nsid)
{
	uint32_t i;

	for (i = 0; i < sh->nr_namespaces; i++)
		if (sh->ns[i].nsid == nsid)
			return i;
	return UDRV_NS_UNKNOWN;
}

static uint32_t kind(uint8_t opcode)
{
	switch (opcode) {
	case NVME_CMD_READ:
		return UDRV_OP_READ;
	case NVME_CMD_WRITE:
		return UDRV_OP_WRITE;
	case NVME_CMD_FLUSH:
		return UDRV_OP_FLUSH;
	}
	return UDRV_OP_OTHER;
}

static udrv_u64x2 twice(uint64_t v)
{
	return (udrv_u64x2){ v, v };
}

void udrv_window_make_key(struct udrv_stream *s, struct udrv_stream_key *key,
			  const struct udrv_tracker *t, uint64_t select)
{
	const uint64_t about = t->about;
	const uint32_t ns = udrv_stream_ns_index(s->shared, about_nsid(about));
	const uint32_t op = kind(about_opcode(about)), late = select >> 4 & 1;
	const uint64_t flags = select >> 5 | (late ? UDRV_RECORD_HOST_LATE : 0);
	uint32_t index = 0;

	if (ns != UDRV_NS_UNKNOWN) {
		const uint32_t k = UDRV_KEY(ns, op, udrv_log2_class(t->len, 9), select & 15, late);

		index = s->cell_of[k];
		if (!index)
			index = new_cell(s, k);
	}
	if (!index)
		index = s->shared->cells;	/* the rest's */
	key->cell = &s->open_cells[index - 1];
	if (key->cell->rotation != s->shared->rotation)
		begin_cell(s, key->cell);
	key->about = about;
	key->select = select;
	key->rotation = s->shared->rotation;
	key->threshold_ns = key->cell->threshold_ns;
	/* what the host delayed tells nothing of blocks, and a raw command's nobody checked */
	if (late || ns == UDRV_NS_UNKNOWN || op > UDRV_OP_WRITE || about_raw(about)) {
		key->bands = &s->nowhere;
		key->band_mult = 0;
	} else {
		key->bands = find_bands(s, ns);
		key->band_mult = s->ns_mult[ns];
	}
	key->nlb16 = twice(about_nlb(about) * 0x0001000100010001ull);
	key->ns16 = twice(ns * 0x0001000100010001ull);
	key->opcode8 = twice(about_opcode(about) * 0x0101010101010101ull);
	key->flags8 = twice(flags * 0x0101010101010101ull);
}

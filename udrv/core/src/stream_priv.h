/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream_priv.h - what the files of a stream share.
 *
 *   stream.c		its beginning; hanging it on a queue
 *   stream_pass.c	the data path: rows to windows and records
 *   stream_ring.c	chunks, and records one by one
 *   window.c		windows: beginning one, finding a key's cell
 *   stream_read.c	the readers' side
 */
#ifndef UDRV_STREAM_PRIV_H
#define UDRV_STREAM_PRIV_H

#include <udrv/stream.h>

/* The pass of a stream with records, or with windows alone. */
udrv_stream_pass_fn *udrv_stream_pass_for(int records);

/* Begin the window that `now` lies in. */
void udrv_window_rotate(struct udrv_stream *s, uint64_t now);

/* Make the key of tracker `t` and `select` at hand in *key: its cell, its bands, its columns. */
void udrv_window_make_key(struct udrv_stream *s, struct udrv_stream_key *key,
			  const struct udrv_tracker *t, uint64_t select);

/* The index of a namespace, or UDRV_NS_UNKNOWN. */
uint32_t udrv_stream_ns_index(const struct udrv_stream_shared *sh, uint32_t nsid);

static inline uint32_t about_nsid(uint64_t about)
{
	return (uint32_t)(about >> 32);
}

static inline uint8_t about_opcode(uint64_t about)
{
	return (uint8_t)about;
}

static inline uint32_t about_raw(uint64_t about)
{
	return (uint32_t)about >> 8 & UDRV_ABOUT_RAW;
}

/* The column nlb: what is no count of blocks is 0. */
static inline uint16_t about_nlb(uint64_t about)
{
	const uint32_t nlb = (uint32_t)about >> 8;

	return about_raw(about) ? 0 : nlb < 0xffff ? (uint16_t)nlb : 0xffff;
}

/* Open a chunk that nobody holds, if there is one. */
void udrv_stream_open_chunk(struct udrv_stream *s);

/* Completion s->seq, which is to be a record by itself if one is wanted. `t` may be NULL. */
void udrv_stream_single(struct udrv_stream *s, const struct udrv_tracker *t, uint64_t lat,
			uint16_t status, uint8_t flags);

/* What is in the open chunk can be read; a full one is done with. */
static inline void publish(struct udrv_stream *s)
{
	/* release: the rows before their number; pairs with the acquire in udrv_ring_take() */
	__atomic_store_n(&s->chunk->rows, s->fill, __ATOMIC_RELEASE);
	if (s->fill == UDRV_RECORD_ROWS)
		s->chunk = NULL;
}

static inline uint32_t latency_units(uint64_t ns)
{
	ns >>= UDRV_RECORD_UNIT_SHIFT;
	return likely(ns <= UINT32_MAX) ? (uint32_t)ns : UINT32_MAX;
}

static inline uint64_t submit_ns(const struct udrv_stream *s, uint64_t ticks)
{
	/* before the anchor or after it */
	const int64_t since = (int64_t)(ticks - s->anchor_ticks);

	return s->anchor_ns + (uint64_t)(((__int128)since * (int64_t)udrv_clock.mult) >> 32);
}

/*
 * The producer's two marks around what readers copy (`pass_mark` is odd between them).
 * begin: the mark before all that follows; end: all of it before the mark. Pairs with the loads, and
 * the barriers between them, of udrv_window_read().
 */
static inline void pass_begin(struct udrv_stream_shared *sh)
{
	__atomic_store_n(&sh->pass_mark, sh->pass_mark + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void pass_end(struct udrv_stream_shared *sh)
{
	__atomic_store_n(&sh->pass_mark, sh->pass_mark + 1, __ATOMIC_RELEASE);
}

#endif /* UDRV_STREAM_PRIV_H */

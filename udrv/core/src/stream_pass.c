// SPDX-License-Identifier: Apache-2.0
/*
 * stream_pass.c - the data path of a stream: completions that were consumed between two looks at the
 * clock become counts in a window, and records.
 *
 * Neighbours mostly have the same doorbell (submit time, depth) and the same shape (`about`), so also
 * the same latency: such a run is one addition to its cell. What differs from row to row is the
 * block: it is counted in its band, and is the one column that is written row by row.
 */
#include <string.h>

#include "qp_priv.h"
#include "stream_priv.h"

/* --- records ------------------------------------------------------------------------------- */

static inline void store16(void *to, udrv_u64x2 v)
{
	memcpy(to, &v, sizeof(v));
}

/* `bytes` of a column are v; up to 15 bytes more are written. */
static inline void fill(void *column, udrv_u64x2 v, uint32_t bytes)
{
	char *to = column, *const end = to + bytes;

	do
		store16(to, v);
	while ((to += 16) < end);
}

/* The columns of a run of n rows of a key from row `r` on, but for slba. */
static inline void fill_columns(const struct udrv_stream *s, const struct udrv_stream_key *key,
				struct udrv_chunk *c, uint32_t r, uint32_t n, uint64_t ticks,
				uint32_t depth, uint64_t lat)
{
	const uint64_t submit = submit_ns(s, ticks), units = latency_units(lat) * 0x100000001ull;
	const uint64_t depths = (uint64_t)(depth < 0xffff ? depth : 0xffff) * 0x0001000100010001ull;

	fill(&c->submit_ns[r], (udrv_u64x2){ submit, submit }, n * 8);
	fill(&c->latency[r], (udrv_u64x2){ units, units }, n * 4);
	fill(&c->depth[r], (udrv_u64x2){ depths, depths }, n * 2);
	fill(&c->nlb[r], key->nlb16, n * 2);
	fill(&c->ns_index[r], key->ns16, n * 2);
	fill(&c->status[r], (udrv_u64x2){ 0, 0 }, n * 2);
	fill(&c->opcode[r], key->opcode8, n);
	fill(&c->flags[r], key->flags8, n);
	if (unlikely(lat >> UDRV_RECORD_UNIT_SHIFT > UINT32_MAX))
		for (; n; n--)
			c->flags[r + n - 1] |= UDRV_RECORD_SATURATED;
}

/* --- windows ------------------------------------------------------------------------------- */

static inline uint64_t mul_high(uint64_t a, uint64_t b)
{
	return (uint64_t)(((unsigned __int128)a * b) >> 64);
}

/* n completions of `lat` nanoseconds each. */
static inline void count_run(struct udrv_cell *c, uint64_t lat, uint32_t n)
{
	const uint32_t i = udrv_hist_index(lat);
	const double v = (double)(int64_t)lat;

	c->bucket[i] += n;
	c->count += n;
	c->sum_ns += lat * n;
	c->sum_sq += v * v * (double)(int32_t)n;
	if (unlikely(lat > c->max_ns))
		c->max_ns = lat;
	if (unlikely(i < c->low))
		c->low = i;
	if (unlikely(i > c->high))
		c->high = i;
}

/* Some of the n rows have a status. */
static __attribute__((noinline, cold)) void statuses(struct udrv_stream *s, struct udrv_chunk *c,
						      const struct udrv_completion *row, uint32_t r,
						      uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		const uint16_t status = row[i].status;

		s->key->cell->errors += !!status;
		if (c)
			c->status[r + i] = status;
	}
}

/* Depths of one shape never share a place. */
static inline uint32_t hash(uint64_t about, uint64_t select)
{
	return ((uint32_t)((about * 0x9e3779b97f4a7c15ull) >> 58) ^ (uint32_t)select) &
	       (UDRV_STREAM_KEYS - 1);
}

/* A word of the tracker at a byte offset: an index and a displacement, which one instruction has. */
#define tracker_word(trackers, at, field) \
	(*(const uint64_t *)((trackers) + (at) + offsetof(struct udrv_tracker, field)))
/* Likewise of a band. */
#define band_word(bands, at, field) \
	((uint64_t *)((bands) + (at) + offsetof(struct udrv_bands, field)))

/*
 * n > 0 delivered rows, and with `records` as many rows of the open chunk, which has the room. flags: of
 * the records, << 5.
 *
 * Rows of one doorbell have one submit time, which no other doorbell has; mostly they are of one shape,
 * too. What differs then is the block.
 */
static inline __attribute__((always_inline)) void
take(struct udrv_stream *s, struct udrv_completion *row, uint32_t n, const uint32_t *given,
     uint64_t now, uint64_t late_below, uint64_t flags, const int records)
{
	const char *const trackers = (const char *)s->trackers;
	struct udrv_chunk *const c = records ? s->chunk : NULL;
	uint64_t at = *given;	/* the row's tracker */

	for (;;) {
		const struct udrv_tracker *const t = (const struct udrv_tracker *)(trackers + at);
		const uint64_t ticks = t->submit_ticks, depth = t->depth;
		const uint64_t lat = opaque(udrv_ticks_to_ns(now - ticks));
		const uint64_t late = lat < late_below;
		const uint64_t most = depth & UDRV_DEPTH_MIXED ? 1 : n;
		uint64_t *const slba_at = records ? &c->slba[s->fill] : NULL;
		struct udrv_stream_key *key = s->key;
		uint64_t one, mult, select, i = 0;
		char *bands;
		uint16_t status = 0;

		if (unlikely(depth != s->depth)) {
			s->depth = depth;
			s->bucket = udrv_log2_class((uint32_t)depth, 0);
		}
		select = flags | late << 4 | s->bucket;
		if (unlikely(t->about != key->about || select != key->select)) {
			s->key = key = &s->at_hand[hash(t->about, select)];
			if (unlikely(t->about != key->about || select != key->select ||
				     key->rotation != s->shared->rotation))
				udrv_window_make_key(s, key, t, select);
		}
		bands = (char *)key->bands;
		mult = key->band_mult;
		one = 1 + ((uint64_t)(lat > key->threshold_ns) << 32);
		do {
			const uint64_t slba = tracker_word(trackers, at, slba);
			/* masked: whatever the namespace's size was when the command was checked */
			const uint64_t band = mul_high(slba, mult) & (UDRV_BANDS - 1) * 8;

			row[i].latency_ns = lat;
			status |= row[i].status;
			*band_word(bands, band, count_above) += one;
			*band_word(bands, band, sum_ns) += lat;
			if (unlikely(lat > *band_word(bands, band, max_ns)))
				*band_word(bands, opaque(band), max_ns) = lat;
			if (records)
				slba_at[i] = slba;
			if (++i == most)
				break;
			at = given[i];
		} while (tracker_word(trackers, at, submit_ticks) == ticks);
		count_run(key->cell, lat, (uint32_t)i);
		if (late) {
			s->shared->counters.host_late += i;
			s->window->host_late += i;
		}
		if (records) {
			fill_columns(s, key, c, s->fill, (uint32_t)i, ticks, (uint32_t)depth, lat);
			s->fill += (uint32_t)i;
		}
		if (unlikely(status))
			statuses(s, c, row, s->fill - (uint32_t)i, (uint32_t)i);
		n -= (uint32_t)i;
		if (!n)
			return;
		row += i;
		given += i;
		at = *given;
	}
}

/* take() where it is not the whole of a pass. */
static __attribute__((noinline)) void take_windows(struct udrv_stream *s,
						    struct udrv_completion *row, uint32_t n,
						    const uint32_t *given, uint64_t now,
						    uint64_t late_below, uint64_t flags)
{
	take(s, row, n, given, now, late_below, flags, 0);
}

static __attribute__((noinline)) void take_both(struct udrv_stream *s, struct udrv_completion *row,
						 uint32_t n, const uint32_t *given, uint64_t now,
						 uint64_t late_below, uint64_t flags)
{
	take(s, row, n, given, now, late_below, flags, 1);
}

/* As take(), sampled or all, with as many chunks as it needs. */
static __attribute__((noinline)) void take_rows(struct udrv_stream *s, struct udrv_completion *row,
						 uint32_t n, const uint32_t *given, uint64_t now,
						 uint64_t late_below, uint64_t flags)
{
	uint32_t i;

	if (!s->records) {
		take_windows(s, row, n, given, now, late_below, flags);
		s->seq += n;
		return;
	}
	if (s->stride != 1) {
		take_windows(s, row, n, given, now, late_below, flags);
		for (i = 0; i < n; i++) {
			const uint64_t lat = row[i].latency_ns;

			udrv_stream_single(s, tracker_at(s->trackers, given[i]), lat, row[i].status,
			       (uint8_t)(flags >> 5 | (lat < late_below ? UDRV_RECORD_HOST_LATE : 0)));
		}
		return;
	}
	while (n) {
		uint32_t m = n;

		if (!s->chunk)
			udrv_stream_open_chunk(s);
		if (!s->chunk) {
			take_windows(s, row, n, given, now, late_below, flags);
			s->shared->counters.ring_full += n;
			s->seq += n;
			return;
		}
		if (m > UDRV_RECORD_ROWS - s->fill)
			m = UDRV_RECORD_ROWS - s->fill;
		take_both(s, row, m, given, now, late_below, flags);
		publish(s);
		s->seq += m;
		row += m;
		given += m;
		n -= m;
	}
}

/* --- a pass -------------------------------------------------------------------------------- */

void udrv_stream_note(struct udrv_stream *s, uint32_t row, int late)
{
	if (s->nr_odd < UDRV_STREAM_PASS)	/* no pass has more completions */
		s->odd[s->nr_odd++] = (struct udrv_stream_odd){ row, !!late };
}

/* A pass with completions that were not delivered, each at its place. */
static __attribute__((noinline, cold)) void
take_odd(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
	 const uint32_t *given, uint64_t now, uint64_t late_below, uint64_t flags)
{
	struct udrv_stream_counters *counters = &s->shared->counters;
	uint32_t i, done = 0;

	for (i = 0; i < s->nr_odd; i++) {
		const struct udrv_stream_odd *odd = &s->odd[i];

		if (odd->row > done) {
			take_rows(s, row + done, odd->row - done, given, now, late_below, flags);
			given += odd->row - done;
			done = odd->row;
		}
		if (odd->late) {	/* nobody gets it, but it says how slow the device was */
			const uint32_t records = s->records;
			struct udrv_completion nobodys = { 0 };
			const struct udrv_tracker *t = tracker_at(s->trackers, *given);

			s->records = 0;
			take_rows(s, &nobodys, 1, given, now, late_below, flags);
			s->records = records;
			s->seq--;
			udrv_stream_single(s, t, nobodys.latency_ns, 0,
			       (uint8_t)(flags >> 5 | UDRV_RECORD_LATE |
					 (nobodys.latency_ns < late_below ?
					  UDRV_RECORD_HOST_LATE : 0)));
			counters->late++;
			given++;
		} else {
			udrv_stream_single(s, NULL, 0, 0, (uint8_t)(flags >> 5 | UDRV_RECORD_REJECTED));
			counters->rejected++;
			s->window->rejected++;
		}
	}
	s->nr_odd = 0;
	if (rows > done)
		take_rows(s, row + done, rows - done, given, now, late_below, flags);
}

/* Nobody has to look at a queue without commands: a gap begins with the oldest one. */
static __attribute__((noinline, cold)) void note_gap(struct udrv_window *w, uint64_t gap_ns,
						      uint64_t oldest_ns)
{
	if (gap_ns > oldest_ns)
		gap_ns = oldest_ns;
	if (gap_ns > w->max_gap_ns)
		w->max_gap_ns = gap_ns;
}

static inline __attribute__((always_inline)) void
pass(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows, uint32_t n,
     const uint32_t *given, const int records)
{
	struct udrv_stream_shared *const sh = s->shared;
	uint64_t now, gap_ns;
	struct udrv_window *w;
	int plain = !s->nr_odd;

	if (records)
		plain &= s->chunk && s->stride == 1 && rows <= UDRV_RECORD_ROWS - s->fill;
	pass_begin(sh);	/* before the clock: a reader that sees no mark knows that the end has passed */
	now = udrv_ticks_after_loads();
	if (unlikely(now >= s->end_ticks))
		udrv_window_rotate(s, now);
	w = s->window;
	gap_ns = udrv_ticks_to_ns(now - s->polled);
	if (likely(plain)) {
		take(s, row, rows, given, now, gap_ns * 10, s->slept, records);
		if (records)
			publish(s);
	} else {
		s->seq = s->first_seq + sh->counters.seen;
		if (s->nr_odd)
			take_odd(s, row, rows, given, now, gap_ns * 10, s->slept);
		else
			take_rows(s, row, rows, given, now, gap_ns * 10, s->slept);
	}
	if (unlikely(gap_ns > w->max_gap_ns))
		note_gap(w, gap_ns, rows ? row->latency_ns : 0);
	sh->counters.seen += n;
	s->slept = 0;
	s->looked = now;
	pass_end(sh);
}

static void pass_windows(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
			 uint32_t n, const uint32_t *given)
{
	pass(s, row, rows, n, given, 0);
}

static void pass_records(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
			 uint32_t n, const uint32_t *given)
{
	pass(s, row, rows, n, given, 1);
}

udrv_stream_pass_fn *udrv_stream_pass_for(int records)
{
	return records ? pass_records : pass_windows;
}

void udrv_stream_ended(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
		       const uint32_t *given)
{
	struct udrv_stream_shared *const sh = s->shared;
	const uint64_t now = udrv_ticks();

	pass_begin(sh);
	if (now >= s->end_ticks)
		udrv_window_rotate(s, now);
	s->seq = s->first_seq + sh->counters.seen;
	sh->counters.seen += rows;
	s->window->ended += rows;
	for (; rows; rows--, row++, given++)
		udrv_stream_single(s, tracker_at(s->trackers, *given), row->latency_ns, row->status,
		       UDRV_RECORD_HOST_ENDED);
	s->polled = now;	/* the rings are new */
	pass_end(sh);
}

void udrv_stream_woke(struct udrv_stream *s, uint64_t slept_ns, uint64_t asked_ns)
{
	if (slept_ns > asked_ns + asked_ns / 8)
		return;	/* it should have run before: all of the sleep counts as not looked at */
	s->slept = UDRV_RECORD_SLEPT << 5;
	s->polled = udrv_ticks();
}

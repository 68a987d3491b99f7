// SPDX-License-Identifier: Apache-2.0
/*
 * stream_read.c - the readers' side of a stream, in the driver's process or in another. Nothing here is
 * on the data path, and nothing here makes it wait.
 */
#include <string.h>

#include "stream_priv.h"

static const struct udrv_chunk *chunk_at(const struct udrv_stream_shared *sh, uint32_t i)
{
	return (const struct udrv_chunk *)((const char *)sh + sh->chunks_offset) + i;
}

int udrv_stream_check(const void *shared, size_t size)
{
	const struct udrv_stream_shared *sh = shared;
	uint64_t cells, chunks;

	/* acquire: pairs with the release at the end of udrv_stream_init() */
	if (size < sizeof(*sh) ||
	    __atomic_load_n(&sh->magic, __ATOMIC_ACQUIRE) != UDRV_STREAM_MAGIC ||
	    sh->abi != UDRV_STREAM_ABI || sh->record_version != UDRV_RECORD_VERSION ||
	    sh->size > size || sh->cells < 2 || sh->cells > UDRV_WINDOW_MAX_CELLS ||
	    sh->chunks > UDRV_RING_MAX_CHUNKS || !sh->stride || !sh->period_ns)
		return -UDRV_EINVAL;
	cells = (uint64_t)UDRV_WINDOWS * sh->cells * sizeof(struct udrv_cell);
	chunks = (uint64_t)sh->chunks * sizeof(struct udrv_chunk);
	if (sh->keys_offset % 4 || sh->keys_offset > size ||
	    sh->cells * sizeof(uint32_t) > size - sh->keys_offset ||
	    sh->bands_offset % 8 || sh->bands_offset > size ||
	    UDRV_WINDOWS * UDRV_WINDOW_NAMESPACES * sizeof(struct udrv_bands) >
		    size - sh->bands_offset ||
	    sh->cells_offset % 8 || sh->cells_offset > size || cells > size - sh->cells_offset ||
	    sh->chunks_offset % 8 || sh->chunks_offset > size || chunks > size - sh->chunks_offset)
		return -UDRV_EINVAL;
	return 0;
}

/* --- records ------------------------------------------------------------------------------- */

/* Rows of chunk i, generation g, that were handed on already. */
static uint64_t taken_of(const struct udrv_ring_reader *reader, uint32_t i, uint64_t g,
			 uint64_t rows)
{
	uint64_t taken = 0;

	if (__atomic_load_n(&reader->taken[i].generation, __ATOMIC_ACQUIRE) == g)
		taken = __atomic_load_n(&reader->taken[i].rows, __ATOMIC_RELAXED);
	return taken < rows ? taken : rows;
}

/*
 * The chunk to take next: the oldest one with rows not taken yet, from generation `from` on. Return: its
 * index and its generation in *found, or -UDRV_EAGAIN. *busy: an older one is about to be reused.
 */
static int oldest(const struct udrv_stream_shared *sh, const struct udrv_ring_reader *reader,
		  uint64_t from, uint64_t *found, int *busy)
{
	uint64_t best = UINT64_MAX, best_busy = UINT64_MAX;
	uint32_t i;
	int index = -UDRV_EAGAIN;

	for (i = 0; i < sh->chunks; i++) {
		const struct udrv_chunk *c = chunk_at(sh, i);
		/* acquire: base and rows after it; pairs with reuse_chunk() */
		const uint64_t marked = __atomic_load_n(&c->generation, __ATOMIC_ACQUIRE);
		const uint64_t g = marked & ~UDRV_CHUNK_BUSY;
		const uint64_t rows = __atomic_load_n(&c->rows, __ATOMIC_ACQUIRE);

		if (!g || g < from || taken_of(reader, i, g, rows) >= rows)
			continue;
		if (marked & UDRV_CHUNK_BUSY) {
			best_busy = g < best_busy ? g : best_busy;
		} else if (g < best) {
			best = g;
			index = (int)i;
		}
	}
	*found = best;
	*busy = best_busy < best;
	return index;
}

int udrv_ring_take(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		   uint64_t *generation, uint32_t *first, uint32_t *end, uint64_t *base)
{
	const uint64_t from = reader->next > *generation ? reader->next : *generation;
	uint64_t best, rows, taken, before;
	const struct udrv_chunk *c;
	uint32_t tries = 0;
	int index, busy;

	/* for a moment only, unless the producer was stopped in it: then its turn is over */
	do
		index = oldest(sh, reader, from, &best, &busy);
	while (busy && ++tries < 1000);
	if (index < 0)
		return index;
	c = chunk_at(sh, index);
	before = reader->hold[index];
	__atomic_store_n(&reader->hold[index], best, __ATOMIC_RELAXED);
	/* our store before our load: pairs with reuse_chunk(), see record.h */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&c->generation, __ATOMIC_ACQUIRE) != best) {
		/* one that was held before cannot have gone: so nobody looks at what is there now */
		__atomic_store_n(&reader->hold[index], before == best ? before : 0, __ATOMIC_RELEASE);
		return -UDRV_EAGAIN;
	}
	/* acquire: the rows after their number; pairs with publish() */
	rows = __atomic_load_n(&c->rows, __ATOMIC_ACQUIRE);
	if (rows > UDRV_RECORD_ROWS)
		rows = UDRV_RECORD_ROWS;
	taken = taken_of(reader, index, best, rows);
	/* release: pairs with the acquire in reuse_chunk(), which must not see rows of another one */
	__atomic_store_n(&reader->taken[index].rows, rows, __ATOMIC_RELAXED);
	__atomic_store_n(&reader->taken[index].generation, best, __ATOMIC_RELEASE);
	reader->next = best;
	*generation = best;
	*first = (uint32_t)taken;
	*end = (uint32_t)rows;
	*base = c->base;
	return index;
}

int udrv_ring_take_all(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		       struct udrv_taken *out, uint32_t max)
{
	uint32_t n;

	for (n = 0; n < max; n++, out++) {
		uint64_t generation = 0;
		int index = udrv_ring_take(sh, reader, &generation, &out->first, &out->end,
					   &out->base);

		if (index < 0)
			break;
		out->index = (uint32_t)index;
	}
	return (int)n;
}

void udrv_ring_release(struct udrv_ring_reader *reader, uint32_t index)
{
	/* release: our reads of the rows before the producer may overwrite them */
	if (index < UDRV_RING_MAX_CHUNKS)
		__atomic_store_n(&reader->hold[index], 0, __ATOMIC_RELEASE);
}

/* --- counters and windows ------------------------------------------------------------------ */

/* A look at what the producer writes, between two passes: its mark, or 0 if it does not hold still. */
static uint64_t still(const struct udrv_stream_shared *sh)
{
	uint32_t tries;

	for (tries = 0; tries < 10000; tries++) {
		/* acquire: pairs with the release of pass_end() */
		const uint64_t mark = __atomic_load_n(&sh->pass_mark, __ATOMIC_ACQUIRE);

		if (!(mark & 1))
			return mark + 2;	/* never 0 */
	}
	return 0;
}

static int moved(const struct udrv_stream_shared *sh, uint64_t mark)
{
	/* acquire: the copy before this load; pairs with the release of pass_begin() */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return __atomic_load_n(&sh->pass_mark, __ATOMIC_RELAXED) + 2 != mark;
}

int udrv_stream_count(const struct udrv_stream_shared *sh, const struct udrv_ring_reader *reader,
		      struct udrv_stream_counters *out, uint64_t *waiting)
{
	uint32_t tries, i;

	for (tries = 0; tries < 64; tries++) {
		const uint64_t mark = still(sh);

		*out = sh->counters;
		*waiting = 0;
		for (i = 0; i < sh->chunks; i++) {
			const struct udrv_chunk *c = chunk_at(sh, i);
			const uint64_t g = __atomic_load_n(&c->generation, __ATOMIC_ACQUIRE) &
					   ~UDRV_CHUNK_BUSY;
			const uint64_t rows = __atomic_load_n(&c->rows, __ATOMIC_ACQUIRE);
			const uint64_t taken = g ? taken_of(reader, i, g, rows) : 0;

			out->delivered += taken;
			if (g < __atomic_load_n(&reader->next, __ATOMIC_RELAXED))
				out->overrun += rows - taken;	/* its turn is over */
			else
				*waiting += g ? rows - taken : 0;
		}
		if (mark && !moved(sh, mark))
			return 0;
	}
	return -UDRV_EAGAIN;
}

/* Copy the rows of window `rotation` as they are. Return: how many. */
static uint32_t copy_rows(const struct udrv_stream_shared *sh, uint64_t rotation,
			  struct udrv_window_row *rows, uint32_t *hist, uint32_t max)
{
	const uint32_t *keys = (const uint32_t *)((const char *)sh + sh->keys_offset);
	const struct udrv_cell *cells = (const struct udrv_cell *)
		((const char *)sh + sh->cells_offset) + (rotation % UDRV_WINDOWS) * sh->cells;
	/* acquire: keys before their number; pairs with find_cell() */
	uint32_t nr_keys = __atomic_load_n(&sh->nr_keys, __ATOMIC_ACQUIRE), i, n = 0;

	for (i = 0; i < sh->cells && n < max; i++) {
		const struct udrv_cell *c = &cells[i];
		uint32_t low = c->low, high = c->high;

		if (c->rotation != rotation || (i >= nr_keys && i != sh->cells - 1))
			continue;
		if (high >= UDRV_HIST_BUCKETS)	/* torn, or a false word: `moved` will tell */
			high = UDRV_HIST_BUCKETS - 1;
		if (low > high)
			low = high;
		rows[n] = (struct udrv_window_row){
			.key = keys[i], .low = low, .high = high, .count = c->count,
			.sum_ns = c->sum_ns, .max_ns = c->max_ns, .sum_sq = c->sum_sq,
			.errors = c->errors, .threshold_ns = c->threshold_ns,
		};
		if (hist) {
			uint32_t *to = hist + (size_t)n * UDRV_HIST_BUCKETS;

			memset(to, 0, UDRV_HIST_BUCKETS * sizeof(*to));
			memcpy(to + low, &c->bucket[low], (high - low + 1) * sizeof(*to));
		}
		n++;
	}
	return n;
}

int udrv_window_read(const struct udrv_stream_shared *sh, uint64_t rotation,
		     struct udrv_window *window, struct udrv_window_row *rows, uint32_t *hist,
		     struct udrv_bands *bands, uint32_t max)
{
	const struct udrv_window *w = &sh->window[rotation % UDRV_WINDOWS];
	const struct udrv_bands *all = (const struct udrv_bands *)
		((const char *)sh + sh->bands_offset) +
		(rotation % UDRV_WINDOWS) * UDRV_WINDOW_NAMESPACES;
	uint32_t tries, i, n;

	for (tries = 0; tries < 64; tries++) {
		/* acquire: pairs with the release in udrv_window_rotate() */
		const uint64_t open = __atomic_load_n(&sh->rotation, __ATOMIC_ACQUIRE);
		const uint64_t mark = still(sh);
		uint64_t now;

		if (!rotation || rotation > open)
			return -UDRV_EAGAIN;
		if (open - rotation >= UDRV_WINDOWS)
			return -UDRV_ERANGE;
		*window = *w;
		if (rotation == open)
			window->seen = sh->counters.seen - sh->seen_before;
		n = copy_rows(sh, rotation, rows, hist, max);
		for (i = 0; bands && i < UDRV_WINDOW_NAMESPACES; i++) {
			bands[i] = all[i];
			if (bands[i].rotation != rotation)
				memset(&bands[i], 0, sizeof(bands[i]));
		}
		/* one that is closed does not change until it is reused; an open one with each pass */
		if (rotation == open) {
			if (mark && !moved(sh, mark))
				return (int)n;
			continue;
		}
		/*
		 * acquire: the copy before this load; pairs with the release fence in
		 * udrv_window_rotate(), which takes the number away before it overwrites anything
		 */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		now = __atomic_load_n(&w->rotation, __ATOMIC_RELAXED);
		if (window->rotation == rotation && now == rotation)
			return (int)n;
		return -UDRV_ERANGE;
	}
	return -UDRV_EAGAIN;
}

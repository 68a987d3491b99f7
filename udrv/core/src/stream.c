// SPDX-License-Identifier: Apache-2.0
/* stream.c - the beginning of a stream, and hanging it on a queue pair. */
#include <string.h>

#include "stream_priv.h"

static const struct udrv_stream_ops ops = {
	.note = udrv_stream_note,
	.woke = udrv_stream_woke,
};

/* Where the parts lie; all begin on cache lines. */
struct layout {
	size_t keys;
	size_t bands;
	size_t cells;
	size_t chunks;
	size_t size;
};

static size_t lines(size_t bytes)
{
	return (bytes + UDRV_CACHELINE - 1) & ~(size_t)(UDRV_CACHELINE - 1);
}

static struct layout layout_of(uint32_t cells, uint32_t chunks)
{
	struct layout l;

	l.keys = sizeof(struct udrv_stream_shared);
	l.bands = l.keys + lines(cells * sizeof(uint32_t));
	l.cells = l.bands + UDRV_WINDOWS * UDRV_WINDOW_NAMESPACES * sizeof(struct udrv_bands);
	l.chunks = l.cells + (size_t)UDRV_WINDOWS * cells * sizeof(struct udrv_cell);
	l.size = l.chunks + chunks * sizeof(struct udrv_chunk);
	return l;
}

static uint32_t chunks_of(const struct udrv_stream_config *c)
{
	return c->flags & UDRV_STREAM_RECORDS ? c->chunks : 0;
}

size_t udrv_stream_size(const struct udrv_stream_config *c)
{
	if (c->period_ns < UDRV_STREAM_MIN_PERIOD_NS || c->period_ns > UDRV_STREAM_MAX_PERIOD_NS ||
	    c->cells < 2 || c->cells > UDRV_WINDOW_MAX_CELLS || !c->stride || c->qid > 0xffff ||
	    (c->flags & UDRV_STREAM_RECORDS && (c->chunks < 2 || c->chunks > UDRV_RING_MAX_CHUNKS)))
		return 0;
	return layout_of(c->cells, chunks_of(c)).size;
}

size_t udrv_stream_handle_size(void)
{
	return sizeof(struct udrv_stream);
}

int udrv_stream_init(struct udrv_stream *s, const struct udrv_stream_config *c, void *shared,
		     void *reader, uint64_t seq)
{
	struct udrv_stream_shared *sh = shared;
	const size_t size = udrv_stream_size(c);
	struct layout l;
	uint32_t i, r;

	if (!size || (uintptr_t)s % UDRV_CACHELINE || (uintptr_t)shared % UDRV_CACHELINE || !shared ||
	    (c->flags & UDRV_STREAM_RECORDS && (!reader || (uintptr_t)reader % 8)))
		return -UDRV_EINVAL;
	l = layout_of(c->cells, chunks_of(c));
	s->shared = sh;
	s->ops = &ops;
	s->reader = reader;
	s->keys = (uint32_t *)((char *)shared + l.keys);
	s->all_bands = (struct udrv_bands *)((char *)shared + l.bands);
	s->cells = (struct udrv_cell *)((char *)shared + l.cells);
	s->chunks = (struct udrv_chunk *)((char *)shared + l.chunks);
	s->period_ns = c->period_ns;
	s->records = c->flags & UDRV_STREAM_RECORDS;
	s->stride = c->stride;
	s->pass = udrv_stream_pass_for(s->records != 0);
	s->first_seq = seq;
	s->none.about = UINT64_MAX;	/* no command has 2^24 - 1 blocks */
	s->key = &s->none;
	s->polled = udrv_ticks();

	sh->abi = UDRV_STREAM_ABI;
	sh->record_version = UDRV_RECORD_VERSION;
	sh->flags = c->flags;
	sh->qid = c->qid;
	sh->size = (uint32_t)size;
	sh->chunks = chunks_of(c);
	sh->chunks_offset = (uint32_t)l.chunks;
	sh->cells = c->cells;
	sh->cells_offset = (uint32_t)l.cells;
	sh->bands_offset = (uint32_t)l.bands;
	sh->keys_offset = (uint32_t)l.keys;
	sh->stride = c->stride;
	sh->clock_source = udrv_clock.source;
	sh->period_ns = c->period_ns;
	sh->serial = c->serial;
	s->keys[c->cells - 1] = UDRV_KEY_REST;
	for (i = 0; i < sh->chunks; i++) {
		s->chunks[i].stride = c->stride;
		for (r = 0; r < sizeof(s->chunks[i].qid) / sizeof(s->chunks[i].qid[0]); r++)
			s->chunks[i].qid[r] = (uint16_t)c->qid;
	}
	/* release: all of it before the word by which a reader knows a stream; see udrv_stream_check() */
	__atomic_store_n(&sh->magic, UDRV_STREAM_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

int udrv_stream_add_namespace(struct udrv_stream *s, uint32_t nsid, uint64_t nsze,
			      uint32_t lba_shift)
{
	struct udrv_stream_shared *sh = s->shared;
	const uint32_t i = sh->nr_namespaces;
	/* a multiplication instead of a division: exact up to 2^32 blocks, near enough above */
	const uint64_t blocks = nsze > UDRV_BANDS * 8 ? nsze : UDRV_BANDS * 8 + 1;
	const unsigned __int128 one = (unsigned __int128)UDRV_BANDS * 8 << 64;	/* a band's offset */

	if (i == UDRV_WINDOW_NAMESPACES)
		return -UDRV_EFULL;
	sh->ns[i] = (struct udrv_stream_namespace){ nsze, nsid, lba_shift };
	s->ns_mult[i] = (uint64_t)((one + blocks - 1) / blocks);
	sh->nr_namespaces = i + 1;
	return (int)i;
}

int udrv_qp_set_stream(struct udrv_qp *qp, struct udrv_stream *s)
{
	int ret;

	if (s && qp->flags & UDRV_QP_UNTIMED)
		return -UDRV_EINVAL;
	if (s) {
		ret = udrv_qp_enter(qp);
		if (ret)
			return ret;
		s->trackers = qp->trackers;
		s->polled = udrv_ticks();
		qp->flags |= UDRV_QP_STREAM;
	} else {
		if (qp->fork_generation != udrv_fork_generation)
			return -UDRV_EFORKED;
		/* acquire: as udrv_qp_enter(), but a closed pair may be taken off its stream, too */
		if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
			return -UDRV_EBUSY;
		qp->flags &= ~(uint32_t)UDRV_QP_STREAM;
	}
	qp->stream = s;
	udrv_qp_leave(qp);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * record.h - the completion record, columns version 1, and the ring that it is handed over in.
 *
 * One producer (whoever reaps the queue) writes rows into the columns of the chunk that is open, and
 * publishes their number. One consumer, mostly another process, reads them in place. The producer
 * never waits and believes nothing that the consumer wrote: of `struct udrv_ring_reader` it only
 * asks whether a word is equal to one of its own.
 *
 * Consumer: to look at a chunk, store its generation into `hold`, full barrier, and read the
 * generation again: if it is still the same, the chunk is neither overwritten nor reused until
 * `hold` is anything else. `taken` says how many rows were handed on.
 * Producer: to reuse a chunk, mark its generation, full barrier, read `hold`. The two stores
 * and two loads are in opposite order, so at least one of both sees the other, and steps back.
 *
 * seq, the number of a completion, is base + row * stride: completions consumed on that completion
 * queue, rejected ones included. Every loss shows as a gap, and which kind it was in the counters.
 */
#ifndef UDRV_RECORD_H
#define UDRV_RECORD_H

#include <udrv/compiler.h>

#define UDRV_RECORD_VERSION 1
#define UDRV_RECORD_ROWS 4096	/* of a chunk */
#define UDRV_RECORD_UNIT_SHIFT 4	/* latency is in units of 16 ns */

/* Of the column `flags`. */
enum udrv_record_flag {
	UDRV_RECORD_SATURATED = 1,	/* latency was more than its column holds: 68.7 s */
	UDRV_RECORD_HOST_LATE = 2,	/* up to more than a tenth of it may be the host's: see stream.h */
	UDRV_RECORD_SLEPT = 4,		/* the host slept until the interrupt: its way is in it */
	UDRV_RECORD_LATE = 8,		/* came after its command was given up; not delivered */
	UDRV_RECORD_REJECTED = 16,	/* of no command in flight: only seq and qid mean anything */
	UDRV_RECORD_HOST_ENDED = 32,	/* ended by the host when it reset the controller */
};

#define UDRV_NS_UNKNOWN 0xffff	/* ns_index of a namespace that the stream was not told of */

/*
 * A chunk. Each column has room for one vector store more than it has rows: a run of equal values is
 * written in whole ones, and what is past the run is written again or never published.
 */
struct udrv_chunk {
	uint64_t generation;	/* from 1; 0: never used; UDRV_CHUNK_BUSY */
	uint64_t base;		/* seq of row 0 */
	uint32_t rows;		/* published */
	uint32_t stride;	/* 1: every completion; n: every n-th */
	uint64_t __reserved[5];

	uint64_t submit_ns[UDRV_RECORD_ROWS + 8];	/* CLOCK_MONOTONIC, of the doorbell write */
	uint64_t slba[UDRV_RECORD_ROWS + 8];
	uint32_t latency[UDRV_RECORD_ROWS + 16];
	uint16_t nlb[UDRV_RECORD_ROWS + 32];	/* blocks; 65535 for 65536; 0: moves none */
	uint16_t depth[UDRV_RECORD_ROWS + 32];	/* in flight after its doorbell, itself included */
	uint16_t qid[UDRV_RECORD_ROWS + 32];
	uint16_t status[UDRV_RECORD_ROWS + 32];	/* as udrv_completion.status */
	uint16_t ns_index[UDRV_RECORD_ROWS + 32];
	uint8_t opcode[UDRV_RECORD_ROWS + 64];
	uint8_t flags[UDRV_RECORD_ROWS + 64];
};
static_assert(offsetof(struct udrv_chunk, submit_ns) == UDRV_CACHELINE &&
	      offsetof(struct udrv_chunk, latency) % UDRV_CACHELINE == 0 &&
	      offsetof(struct udrv_chunk, flags) % UDRV_CACHELINE == 0 &&
	      sizeof(struct udrv_chunk) % UDRV_CACHELINE == 0, "columns begin on cache lines");

/* In `generation`: the producer is about to reuse it, unless it finds it held. */
#define UDRV_CHUNK_BUSY (1ull << 63)

#define UDRV_RING_MAX_CHUNKS 64

/* What the consumer writes: a page of its own, which the producer maps too. */
struct udrv_ring_reader {
	uint64_t hold[UDRV_RING_MAX_CHUNKS];	/* generation of a chunk with live views, or 0 */
	struct {
		uint64_t generation;
		uint64_t rows;		/* handed on, of that generation */
	} taken[UDRV_RING_MAX_CHUNKS];
	uint64_t next;			/* older generations are not taken any more: in order, always */
	uint64_t __reserved[7];
};
static_assert(sizeof(struct udrv_ring_reader) <= 4096, "one page a queue");

#endif /* UDRV_RECORD_H */

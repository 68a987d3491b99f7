/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dma.h - the client's memory, as far as it shared it
 *
 * A table of mappings sorted by I/O virtual address, which never overlap. Nothing outside of it
 * can be reached: every access goes through dma_at(), which checks its bounds and its rights.
 */
#ifndef UDRV_SOFT_DMA_H
#define UDRV_SOFT_DMA_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#define DMA_MAX_MAPS 4096u
#define DMA_READ 1u /* the device may read */
#define DMA_WRITE 2u /* the device may write */

/**
 * struct dma_map - one mapping
 * @iova:	first address, multiple of 4096
 * @size:	bytes, multiple of 4096
 * @host:	where it lies in this process; NULL if the client shared no file for it
 * @rights:	DMA_READ, DMA_WRITE
 * @lost:	the client cut its file: dma_drop_lost() has to see to it
 */
struct dma_map {
	uint64_t iova;
	uint64_t size;
	uint8_t *host;
	uint32_t rights;
	bool lost;
};

/**
 * struct dma_table - all mappings
 * @nr:		how many
 * @gen:	changes whenever a mapping goes, and makes every struct dma_ref stale
 * @maps:	ascending by iova
 */
struct dma_table {
	uint32_t nr;
	uint32_t gen;
	struct dma_map maps[DMA_MAX_MAPS];
};

/**
 * struct dma_ref - the mapping that was hit last, kept by each user of the table
 *
 * Queues and buffers stay in the same few mappings, so the common look-up is two comparisons.
 * All zeroes is a valid initial state (an empty range never matches).
 */
struct dma_ref {
	uint64_t iova;
	uint64_t size;
	uint8_t *host;
	uint32_t rights;
	uint32_t gen;
};

/**
 * dma_add() - map part of a client's file
 * @fd:		the file (a regular one, or a memfd), or -1: known, but out of reach
 * @offset:	where the mapping starts in it
 *
 * The descriptor stays the caller's; the mapping does not need it any more.
 *
 * Return: 0, or a negative errno: -EINVAL (alignment, overflow, not a regular file, the file is
 * shorter than that), -EEXIST (overlaps another one), -ENOSPC (table full), or mmap's own.
 */
int dma_add(struct dma_table *t, uint64_t iova, uint64_t size, uint32_t rights, int fd,
	    uint64_t offset);

/* dma_remove() - undo exactly one dma_add(). Return: 0 or -ENOENT. */
int dma_remove(struct dma_table *t, uint64_t iova, uint64_t size);

/* dma_clear() - undo all. */
void dma_clear(struct dma_table *t);

void *dma_at_slow(struct dma_table *t, struct dma_ref *ref, uint64_t iova, uint32_t len,
		  uint32_t rights);

/**
 * dma_at() - where a piece of the client's memory lies
 * @ref:	the caller's cache
 * @len:	bytes; the piece must lie in one mapping
 * @rights:	what the caller is going to do
 *
 * Return: the address, valid until the table changes, or NULL if any byte is out of reach.
 */
static inline void *dma_at(struct dma_table *t, struct dma_ref *ref, uint64_t iova, uint32_t len,
			   uint32_t rights)
{
	uint64_t at = iova - ref->iova;

	if (ref->gen == t->gen && iova >= ref->iova && at < ref->size && len <= ref->size - at &&
	    (ref->rights & rights) == rights)
		return ref->host + at;
	return dma_at_slow(t, ref, iova, len, rights);
}

/**
 * dma_guard_enter() - survive a client that shrinks a file which it shared
 *
 * Most files can be cut while they are mapped (F_SEAL_SHRINK is the client's to set), so all of them
 * are guarded. Until dma_guard_leave(), a SIGBUS in one of the table's mappings replaces that
 * mapping by empty memory of our own and is remembered; any other SIGBUS goes where it would have
 * gone. There is one guard in a process.
 *
 * Return: 0, or a negative errno (-EBUSY: another controller of this process has it).
 */
int dma_guard_enter(struct dma_table *t);
void dma_guard_leave(void);

/* Written by the handler, in the thread that it interrupts. */
extern volatile sig_atomic_t dma_guard_hits;

/* dma_lost() - whether a mapping was lost since the last dma_drop_lost(): what was read is no data */
static inline bool dma_lost(void)
{
	return dma_guard_hits != 0;
}

/* dma_drop_lost() - from now on the mappings that were lost are out of reach */
void dma_drop_lost(struct dma_table *t);

#endif /* UDRV_SOFT_DMA_H */

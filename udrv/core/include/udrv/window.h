/* SPDX-License-Identifier: Apache-2.0 */
/*
 * window.h - completions of one queue, counted by key over a period.
 *
 * A key is namespace, kind of opcode, size class, depth bucket, and whether the host was late (see
 * stream.h). Its cell has count, sum, sum of squares, maximum, errors, and the histogram of hist.h.
 * Beside the cells there are 64 equal bands of the blocks of each namespace.
 *
 * There are UDRV_WINDOWS windows in shared memory: one is open, the others are those before it. A
 * reader copies and then looks whether the window was reused meanwhile; it writes nothing. A window
 * begins at a multiple of the period (CLOCK_MONOTONIC), and with the first completion in it: periods
 * without any have none. What is counted does not depend on whether records are kept.
 */
#ifndef UDRV_WINDOW_H
#define UDRV_WINDOW_H

#include <udrv/hist.h>

#define UDRV_WINDOWS 4
#define UDRV_BANDS 64
#define UDRV_WINDOW_NAMESPACES 16
#define UDRV_WINDOW_MAX_CELLS 1024

/* Kinds of opcodes. */
enum udrv_window_op {
	UDRV_OP_READ = 0,
	UDRV_OP_WRITE,
	UDRV_OP_FLUSH,
	UDRV_OP_OTHER,
};

/*
 * A key in one word. size: 0 up to 512 bytes, then one more each time it doubles, 15: more than 8 MiB.
 * depth: 0 for 1, then likewise, 15: more than 16384.
 */
#define UDRV_KEY(ns, op, size, depth, late) \
	((uint32_t)(ns) << 11 | (uint32_t)(op) << 9 | (uint32_t)(size) << 5 | \
	 (uint32_t)(depth) << 1 | (uint32_t)(late))
#define UDRV_KEYS (UDRV_WINDOW_NAMESPACES << 11)
/* What found no free cell, and namespaces that the stream was not told of. */
#define UDRV_KEY_REST UDRV_KEYS

struct udrv_cell {
	uint64_t rotation;	/* the window that it belongs to */
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	double sum_sq;
	uint64_t errors;	/* completions with a status */
	uint64_t threshold_ns;	/* p99 of the key in the window before; UINT64_MAX: there was none */
	uint32_t low;		/* buckets below and above these are 0 */
	uint32_t high;
	uint32_t bucket[UDRV_HIST_BUCKETS];
};
static_assert(sizeof(struct udrv_cell) % UDRV_CACHELINE == 0, "cells begin on cache lines");

struct udrv_bands {
	/*
	 * Low half: completions; high half: those above the threshold of their key. A window has fewer
	 * than 2^32: one addition for both.
	 */
	uint64_t count_above[UDRV_BANDS];
	uint64_t sum_ns[UDRV_BANDS];
	uint64_t max_ns[UDRV_BANDS];
	uint64_t rotation;
	uint64_t __reserved[7];
};

struct udrv_window {
	uint64_t rotation;	/* its number, from 1; 0 while it is between two */
	uint64_t start_ns;	/* CLOCK_MONOTONIC; a multiple of the period */
	uint64_t end_ns;
	uint64_t seen;		/* completions consumed, rejected ones included */
	uint64_t host_late;
	uint64_t rejected;
	uint64_t ended;		/* by the host, at a reset; in no cell */
	uint64_t max_gap_ns;	/* the longest time that nobody looked at the queue */
};

/* Of a value of `bytes` (or a depth, shift 0): how many times 1 << shift is doubled to reach it. */
static inline uint32_t udrv_log2_class(uint32_t value, uint32_t shift)
{
	const uint32_t units = value ? (value - 1) >> shift : 0;
	const uint32_t class = units ? 32 - (uint32_t)__builtin_clz(units) : 0;

	return class < 15 ? class : 15;
}

/* What a reader gets of a cell. */
struct udrv_window_row {
	uint32_t key;
	uint32_t low;
	uint32_t high;
	uint32_t __reserved;
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	double sum_sq;
	uint64_t errors;
	uint64_t threshold_ns;
};

#endif /* UDRV_WINDOW_H */

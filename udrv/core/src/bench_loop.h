/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_loop.h - what the files of the load generator share, and nobody else needs.
 *
 *   bench.c		the job: checks, memory layout, cost
 *   bench_loop.c	schedule, issue, completion
 *   bench_verify.c	what a verifying job writes, knows and checks
 */
#ifndef UDRV_BENCH_LOOP_H
#define UDRV_BENCH_LOOP_H

#include <udrv/bench.h>
#include <udrv/bench_rng.h>

#define NS_PER_S 1000000000u

/* One piece of the buffer, and the command that uses it. */
struct udrv_bench_slot {
	uint64_t intent_ns;
	uint64_t slat_ns;
	uint64_t unit;
	uint32_t generation;
	uint32_t write;
};

struct udrv_bench_loop {
	struct udrv_bench_job *job;
	struct udrv_bench_result *res;
	struct udrv_bench_slot *slots;
	struct udrv_batch batch;
	struct udrv_completions out;
	uint32_t *free;		/* LIFO: the piece used last is the warmest */
	struct udrv_command *commands;
	struct udrv_rng where;	/* offsets and mix */
	struct udrv_rng when;	/* arrivals: apart, so that the rate does not change the offsets */
	uint64_t start_ticks;
	uint64_t cursor;	/* next unit of a sequential job */
	uint64_t progress_ns;	/* last completion, or first submission after none was in flight */
	uint64_t rung_ns;	/* last udrv_qp_ring() */
	uint64_t unit_bytes;
	uint64_t arrivals;
	double arrival_ns;
	uint64_t next_ns;	/* intended start of the next command */
	uint64_t lag_ns;	/* of the last command issued */
	uint32_t nr_free;
	uint32_t inflight;
	uint64_t max_ios;	/* 0: none */
	uint32_t *table;	/* the verify table, NULL if this run does not verify or has none */
	int readback;
	int open;		/* there is a schedule */
	int direction;		/* drawn but not used yet: 0 read, 1 write, -1 none */
	int ended;		/* read-back: no unit left */
};

static inline uint64_t udrv_bench_now(const struct udrv_bench_loop *l)
{
	return udrv_ticks_to_ns(udrv_ticks() - l->start_ticks);
}

static inline int udrv_bench_verifies(const struct udrv_bench_loop *l)
{
	return l->job->flags & UDRV_BENCH_VERIFY;
}

/* bench_loop.c */
void udrv_bench_seed(struct udrv_bench_loop *l, uint64_t seed);
/* Set next_ns to the intended start of the next command. */
void udrv_bench_next_arrival(struct udrv_bench_loop *l, uint32_t process, double rate);
/* Runs with the pair entered; *held tells whether it still is. Return: 0, -UDRV_E*, -errno. */
int udrv_bench_loop(struct udrv_bench_loop *l, int *held);

/* Copy the counters to where another thread may look at them. */
void udrv_bench_publish(const struct udrv_bench_loop *l);

/* bench_verify.c */
/* Take the unit for this direction if nothing in flight forbids it. Return: whether taken. */
int udrv_bench_take_unit(struct udrv_bench_loop *l, uint64_t unit, int write);
/* Take the next unit of a read-back. Return: 0, and `ended` set, if there is none. */
int udrv_bench_take_written(struct udrv_bench_loop *l, uint64_t *unit);
/* Put the pattern into a write's data; make a read's data anything but what it should become. */
void udrv_bench_prepare_data(const struct udrv_bench_loop *l, struct udrv_bench_slot *s,
			     uint32_t piece);
/* Leave the unit; check what was read; keep the table at what the device now holds. */
void udrv_bench_finish_unit(struct udrv_bench_loop *l, const struct udrv_bench_slot *s,
			    uint32_t piece, int failed);

#endif /* UDRV_BENCH_LOOP_H */

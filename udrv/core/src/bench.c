// SPDX-License-Identifier: Apache-2.0
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "bench_loop.h"

/* --- set-up ------------------------------------------------------------------------------ */

static size_t column_bytes(size_t elements, size_t size)
{
	return (elements * size + UDRV_CACHELINE - 1) & ~(size_t)(UDRV_CACHELINE - 1);
}

/* Lay the columns out from `base`, or only add them up when it is NULL. */
static size_t lay_out(struct udrv_bench_loop *l, char *base, uint32_t depth)
{
	size_t at = 0;

#define COLUMN(pointer) do {							\
		if (base)							\
			(pointer) = (void *)(base + at);			\
		at += column_bytes(depth, sizeof(*(pointer)));			\
	} while (0)
	COLUMN(l->slots);
	COLUMN(l->free);
	COLUMN(l->commands);
	COLUMN(l->out.rows);
#undef COLUMN
	return at;
}

size_t udrv_bench_scratch_size(uint32_t iodepth)
{
	struct udrv_bench_loop l;

	if (!iodepth || iodepth > UDRV_BENCH_MAX_DEPTH)
		return 0;
	return lay_out(&l, NULL, iodepth);
}

void udrv_bench_result_reset(struct udrv_bench_result *r)
{
	int d;

	memset(r, 0, sizeof(*r));
	for (d = 0; d < 2; d++) {
		udrv_hist_reset(&r->dir[d].slat);
		udrv_hist_reset(&r->dir[d].clat);
		udrv_hist_reset(&r->dir[d].lat);
	}
}

static int job_is_valid(const struct udrv_bench_job *j)
{
	const struct udrv_batch *b = j->base;
	uint64_t bytes;

	if (!j->queue.ops || !j->queue.handle || !b || !j->live || !j->scratch || ((uintptr_t)j->scratch & 63))
		return 0;
	if (!j->iodepth || j->iodepth > UDRV_BENCH_MAX_DEPTH || j->read_percent > 100 ||
	    !j->unit_blocks || j->unit_blocks > 65536 || !j->units || !j->timeout_ns ||
	    b->lba_shift < 9 || b->lba_shift > 16)
		return 0;
	bytes = (uint64_t)j->unit_blocks << b->lba_shift;
	if (j->buffer_stride < bytes || (uint64_t)j->iodepth * j->buffer_stride > b->len)
		return 0;
	if (j->units > b->nsze / j->unit_blocks ||
	    j->start_block > b->nsze - j->units * j->unit_blocks)
		return 0;
	if (j->process > UDRV_BENCH_POISSON ||
	    (j->process && !(j->rate_iops > 0.0 && j->rate_iops <= UDRV_BENCH_MAX_RATE)))
		return 0;
	if (j->flags & UDRV_BENCH_READBACK)
		return (j->flags & UDRV_BENCH_VERIFY) && j->verify_table && j->buffer;
	if (!j->runtime_ns && !j->max_ios)
		return 0;
	if (j->flags & UDRV_BENCH_VERIFY)
		return j->buffer && (j->verify_table || j->read_percent == 100);
	return 1;
}

/* --- what it cost -------------------------------------------------------------------------- */

struct cost {
	struct rusage usage;
	uint64_t cpu_ns;
	struct udrv_queue_cost queue;
};

static uint64_t timeval_ns(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * NS_PER_S + (uint64_t)tv->tv_usec * 1000;
}

static void read_cost(struct cost *c, const struct udrv_queue *q)
{
	struct timespec ts;

	getrusage(RUSAGE_THREAD, &c->usage);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	c->cpu_ns = (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
	q->ops->cost(q->handle, &c->queue);
}

static void record_cost(struct udrv_bench_result *r, const struct cost *a, const struct cost *b)
{
	r->cpu_ns = b->cpu_ns - a->cpu_ns;
	r->user_ns = timeval_ns(&b->usage.ru_utime) - timeval_ns(&a->usage.ru_utime);
	r->system_ns = timeval_ns(&b->usage.ru_stime) - timeval_ns(&a->usage.ru_stime);
	r->voluntary_switches = (uint64_t)(b->usage.ru_nvcsw - a->usage.ru_nvcsw);
	r->involuntary_switches = (uint64_t)(b->usage.ru_nivcsw - a->usage.ru_nivcsw);
	r->sq_doorbells = b->queue.sq_doorbells - a->queue.sq_doorbells;
	r->cq_doorbells = b->queue.cq_doorbells - a->queue.cq_doorbells;
	r->system_calls = b->queue.system_calls - a->queue.system_calls;
}

int udrv_bench_run(struct udrv_bench_job *j)
{
	struct udrv_bench_loop l = { .job = j, .res = j->result, .direction = -1 };
	const struct udrv_queue *q = &j->queue;
	struct cost before, after;
	int held, slack, ret;
	uint32_t i;

	if (!j->result)
		return -UDRV_EINVAL;
	udrv_bench_result_reset(j->result);
	if (!job_is_valid(j))
		return -UDRV_EINVAL;

	lay_out(&l, j->scratch, j->iodepth);
	l.batch = *j->base;
	l.batch.capacity = j->iodepth;
	l.batch.commands = l.commands;
	l.out.capacity = j->iodepth;
	l.unit_bytes = (uint64_t)j->unit_blocks << l.batch.lba_shift;
	for (i = 0; i < j->iodepth; i++)
		l.free[i] = j->iodepth - 1 - i;
	l.nr_free = j->iodepth;
	udrv_bench_seed(&l, j->seed);
	l.readback = !!(j->flags & UDRV_BENCH_READBACK);
	l.open = j->process && !l.readback;
	l.max_ios = l.readback ? 0 : j->max_ios;
	l.table = j->flags & UDRV_BENCH_VERIFY ? j->verify_table : NULL;
	if (l.open)
		udrv_bench_next_arrival(&l, j->process, j->rate_iops);

	ret = q->ops->enter(q->handle);
	if (ret)
		return ret;
	held = 1;
	if (q->ops->room(q->handle) < j->iodepth) {
		q->ops->leave(q->handle);
		return -UDRV_EFULL;
	}
	/* the kernel rounds sleeps up by 50 us unless told not to; 0 means "as it was" */
	slack = prctl(PR_GET_TIMERSLACK);
	prctl(PR_SET_TIMERSLACK, 1UL);
	read_cost(&before, q);
	l.start_ticks = udrv_ticks();

	ret = udrv_bench_loop(&l, &held);

	l.res->elapsed_ns = udrv_bench_now(&l);
	read_cost(&after, q);
	record_cost(l.res, &before, &after);
	if (slack > 0)
		prctl(PR_SET_TIMERSLACK, (unsigned long)slack);
	l.res->unfinished = l.inflight;
	udrv_bench_publish(&l);
	if (held)
		q->ops->leave(q->handle);
	return ret;
}

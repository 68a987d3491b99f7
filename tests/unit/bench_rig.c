// SPDX-License-Identifier: Apache-2.0
/*
 * The load generator under the sanitizers, against a device in a thread that completes in random
 * order. Every area has its exact size, so that one element too many is seen. argv: a seed.
 */
#include <pthread.h>
#include <sched.h>

#include <udrv/barrier.h>
#include <udrv/bench.h>

#include "c/harness.h"

#define ENTRIES 96u
#define BLOCKS 2048u
#define SHIFT 9u
#define QID 4u

struct device {
	struct nvme_sqe *sq;
	volatile struct nvme_cqe *cq;
	volatile uint32_t sq_doorbell;
	volatile uint32_t cq_doorbell;
	char *storage;
	uint64_t random;
	uint32_t fail_one_in;
	uint32_t most;		/* outstanding at once */
	uint64_t commands;
	uint64_t failed;
	int end;
};

static void *area(size_t size, size_t align)
{
	void *p = NULL;

	CHECK_EQ(posix_memalign(&p, align, size), 0);
	memset(p, 0, size);
	return p;
}

static void move(struct device *d, const struct nvme_sqe *sqe)
{
	uint64_t slba = sqe->cdw10 | (uint64_t)sqe->cdw11 << 32;
	size_t left = ((sqe->cdw12 & 0xffff) + 1ul) << SHIFT;
	const uint64_t *list = (const uint64_t *)(uintptr_t)sqe->prp2;
	char *medium = d->storage + (slba << SHIFT);
	uint64_t at = sqe->prp1;
	size_t first = NVME_PAGE_SIZE - (at & NVME_PAGE_MASK), n = left < first ? left : first;
	size_t rest = left - n;
	int one = rest <= NVME_PAGE_SIZE;

	CHECK(slba + (sqe->cdw12 & 0xffff) + 1 <= BLOCKS);
	for (;;) {
		if ((sqe->cdw0 & 0xff) == NVME_CMD_WRITE)
			memcpy(medium, (void *)(uintptr_t)at, n);
		else
			memcpy((void *)(uintptr_t)at, medium, n);
		medium += n;
		left -= n;
		if (!left)
			return;
		at = one ? sqe->prp2 : *list++;
		n = left < NVME_PAGE_SIZE ? left : NVME_PAGE_SIZE;
	}
}

static void *serve(void *arg)
{
	struct device *d = arg;
	struct nvme_sqe waiting[ENTRIES];
	uint32_t n = 0, head = 0, tail = 0, phase = 1;

	while (!__atomic_load_n(&d->end, __ATOMIC_ACQUIRE)) {
		uint32_t rung = d->sq_doorbell, pick, status = 0;

		udrv_dma_rmb();	/* the ring after its doorbell */
		while (head != rung) {
			waiting[n++] = d->sq[head];
			head = (head + 1) % ENTRIES;
			d->commands++;
		}
		if (n > d->most)
			d->most = n;
		/* now and then nothing, so that commands gather */
		if (!n || next_random(&d->random) % 3 == 0) {
			sched_yield();
			continue;
		}
		pick = (uint32_t)(next_random(&d->random) % n);
		if (d->fail_one_in && next_random(&d->random) % d->fail_one_in == 0) {
			status = 0x281;
			d->failed++;
		} else {
			move(d, &waiting[pick]);
		}
		d->cq[tail].dw0 = 0;
		d->cq[tail].dw1 = 0;
		d->cq[tail].dw2 = head | QID << 16;
		udrv_dma_wmb();	/* data and entry before the phase */
		d->cq[tail].dw3 = waiting[pick].cdw0 >> 16 | phase << 16 | status << 17;
		if (++tail == ENTRIES) {
			tail = 0;
			phase ^= 1;
		}
		waiting[pick] = waiting[--n];
	}
	return NULL;
}

static void one_job(uint64_t *seed)
{
	static const uint32_t processes[] = {
		UDRV_BENCH_CLOSED, UDRV_BENCH_LINEAR, UDRV_BENCH_POISSON,
	};
	struct device *d = area(sizeof(*d), 64);
	struct udrv_bench_job *j = area(sizeof(*j), 64);
	struct udrv_batch *base = area(sizeof(*base), 64);
	struct udrv_qp_config c = { .qid = QID, .entries = ENTRIES, .eventfd = -1 };
	struct udrv_bench_result *r = area(sizeof(*r), 64);
	struct udrv_qp *qp;
	uint64_t ios;
	pthread_t thread;

	d->random = next_random(seed) | 1;
	d->fail_one_in = next_random(seed) % 2 ? 7 : 0;
	d->storage = area((size_t)BLOCKS << SHIFT, 64);
	d->sq = area(ENTRIES * 64, NVME_PAGE_SIZE);
	d->cq = area(ENTRIES * 16, NVME_PAGE_SIZE);
	c.max_transfer = UDRV_QP_PRP_MAX_TRANSFER;
	c.shared = area(udrv_qp_shared_size(ENTRIES), 64);
	c.sq = d->sq;
	c.cq = (void *)(uintptr_t)d->cq;
	c.prp = area((ENTRIES - 1) * NVME_PAGE_SIZE, NVME_PAGE_SIZE);
	c.prp_iova = (uintptr_t)c.prp;
	c.sq_doorbell = (void *)(uintptr_t)&d->sq_doorbell;
	c.cq_doorbell = (void *)(uintptr_t)&d->cq_doorbell;
	qp = udrv_qp_new();
	CHECK_EQ(udrv_qp_init(qp, &c), 0);
	udrv_qp_as_queue(qp, &j->queue);

	j->iodepth = 1 + next_random(seed) % (ENTRIES - 1);
	j->unit_blocks = 1 + next_random(seed) % 24;
	j->buffer_stride = ((j->unit_blocks << SHIFT) + NVME_PAGE_MASK) & ~NVME_PAGE_MASK;
	j->units = 1 + next_random(seed) % (BLOCKS / j->unit_blocks);
	j->start_block = next_random(seed) % (BLOCKS - j->units * j->unit_blocks + 1);
	j->flags = next_random(seed) % 4;	/* RANDOM, VERIFY */
	j->read_percent = next_random(seed) % 101;
	j->process = processes[next_random(seed) % 3];
	j->rate_iops = 1e6;
	j->max_ios = 1 + next_random(seed) % 2000;
	j->timeout_ns = 20000000000u;
	j->spin_ns = UDRV_SPIN_ONLY;
	j->seed = next_random(seed);
	j->buffer = area((size_t)j->iodepth * j->buffer_stride, NVME_PAGE_SIZE);
	j->scratch = area(udrv_bench_scratch_size(j->iodepth), 64);
	j->live = area(sizeof(*j->live), 64);
	j->verify_table = area(j->units * sizeof(*j->verify_table), 64);
	j->result = r;
	base->nsid = 1;
	base->lba_shift = SHIFT;
	base->nsze = BLOCKS;
	base->iova = (uintptr_t)j->buffer;
	base->len = (uint64_t)j->iodepth * j->buffer_stride;
	j->base = base;

	CHECK_EQ(pthread_create(&thread, NULL, serve, d), 0);
	CHECK_EQ(udrv_bench_run(j), 0);
	ios = r->dir[0].ios + r->dir[1].ios + r->dir[0].errors + r->dir[1].errors;
	CHECK_EQ(ios, j->max_ios);
	CHECK_EQ(ios, d->commands);
	CHECK_EQ(r->dir[0].errors + r->dir[1].errors, d->failed);
	CHECK_EQ(r->unfinished, 0);
	CHECK_EQ(r->verify_failures, 0);
	CHECK(d->most <= j->iodepth);
	if (j->flags & UDRV_BENCH_VERIFY) {
		d->fail_one_in = 0;
		j->flags |= UDRV_BENCH_READBACK;
		CHECK_EQ(udrv_bench_run(j), 0);
		CHECK_EQ(r->verify_failures, 0);
		CHECK_EQ(r->blocks_unchecked, 0);
		CHECK_EQ(r->blocks_checked, r->dir[0].ios * j->unit_blocks);
	}
	__atomic_store_n(&d->end, 1, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	free(d->storage);
	free(d->sq);
	free((void *)(uintptr_t)d->cq);
	free(c.shared);
	free(c.prp);
	udrv_qp_free(qp);
	free(j->buffer);
	free(j->scratch);
	free(j->live);
	free(j->verify_table);
	free(j);
	free(base);
	free(r);
	free(d);
}

int main(int argc, char **argv)
{
	uint64_t seed;
	int i;

	CHECK_EQ(argc, 2);
	seed = strtoull(argv[1], NULL, 0) * 2654435761u + 1;
	CHECK_EQ(udrv_core_init(), 0);
	for (i = 0; i < 10; i++)
		one_job(&seed);
	return 0;
}

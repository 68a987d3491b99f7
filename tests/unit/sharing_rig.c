// SPDX-License-Identifier: Apache-2.0
/*
 * Two jobs of the load generator in two threads, for counting their stores (test_bench_sharing.py).
 *
 * The device of a job is its own thread, between submission and reap, so that nothing needs to be
 * waited for. Prints the areas of each job as lines "JOB NAME ADDRESS BYTES", a marker's among them:
 * it is written just before and just after the job.
 */
#include <inttypes.h>
#include <pthread.h>

#include <udrv/bench.h>

#include "c/harness.h"

#define ENTRIES 64u
#define DEPTH 32u
#define IOS 400u
#define SHIFT 12u
#define BLOCKS 4096u

struct rig {
	uint64_t marker;
	struct udrv_queue queue;	/* the pair as queue.h has it */
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	uint32_t *sq_doorbell, *cq_doorbell;
	uint32_t head, tail, phase;
	struct udrv_bench_job *job;
};

/* As Python allocates them: whole pages or whole cache lines. */
static void *area(unsigned int job, const char *name, size_t size, size_t unit)
{
	size_t whole = (size + unit - 1) & ~(unit - 1);
	void *p = aligned_alloc(unit, whole);

	CHECK(p != NULL);
	memset(p, 0, whole);
	printf("%u %s %" PRIuPTR " %zu\n", job, name, (uintptr_t)p, whole);
	return p;
}

static void play_device(struct rig *r)
{
	while (r->head != *r->sq_doorbell) {
		uint32_t cid = r->sq[r->head].cdw0 >> 16;

		r->cq[r->tail] = (struct nvme_cqe){ .dw2 = 1u << 16,
						    .dw3 = cid | r->phase << 16 };
		if (++r->tail == ENTRIES) {
			r->tail = 0;
			r->phase ^= 1;
		}
		if (++r->head == ENTRIES)
			r->head = 0;
	}
}

static int enter(void *r)
{
	return ((struct rig *)r)->queue.ops->enter(((struct rig *)r)->queue.handle);
}

static void leave(void *r)
{
	((struct rig *)r)->queue.ops->leave(((struct rig *)r)->queue.handle);
}

static int submit(void *r, const struct udrv_batch *b, uint32_t first, uint32_t n, uint32_t *bad)
{
	int ret = ((struct rig *)r)->queue.ops->submit(((struct rig *)r)->queue.handle, b, first, n,
						       bad);

	play_device(r);
	return ret;
}

static int reap(void *r, const struct udrv_completions *out, uint32_t first, uint32_t max)
{
	return ((struct rig *)r)->queue.ops->reap(((struct rig *)r)->queue.handle, out, first, max);
}

static uint32_t room(const void *r)
{
	return ((const struct rig *)r)->queue.ops->room(((const struct rig *)r)->queue.handle);
}

static void cost(const void *r, struct udrv_queue_cost *c)
{
	((const struct rig *)r)->queue.ops->cost(((const struct rig *)r)->queue.handle, c);
}

static void *run(void *arg)
{
	struct rig *r = arg;
	char *frame = __builtin_frame_address(0);
	int ret;

	*(volatile uint64_t *)&r->marker = (uintptr_t)frame;
	ret = udrv_bench_run(r->job);
	*(volatile uint64_t *)&r->marker = 0;
	CHECK_EQ(ret, 0);
	CHECK_EQ(r->job->result->dir[0].ios, IOS);
	return NULL;
}

static struct rig *set_up(unsigned int n)
{
	static const struct udrv_queue_ops ops = {
		.enter = enter, .leave = leave, .submit = submit, .reap = reap, .room = room,
		.cost = cost,
	};
	struct udrv_qp_config c = { .qid = 1, .entries = ENTRIES, .eventfd = -1,
				    .max_transfer = UDRV_QP_PRP_MAX_TRANSFER };
	struct rig *r = area(n, "rig", sizeof(*r), 64);
	struct udrv_qp *qp = area(n, "udrv_qp", sizeof(*qp), 64);
	struct udrv_batch *base = area(n, "base", sizeof(*base), 64);
	struct udrv_bench_job *j = r->job = area(n, "job", sizeof(*j), 64);

	printf("%u marker %" PRIuPTR " 8\n", n, (uintptr_t)&r->marker);
	r->phase = 1;
	r->sq = c.sq = area(n, "sq", ENTRIES * 64, NVME_PAGE_SIZE);
	r->cq = c.cq = area(n, "cq", ENTRIES * 16, NVME_PAGE_SIZE);
	c.shared = area(n, "udrv_qp_shared", udrv_qp_shared_size(ENTRIES), NVME_PAGE_SIZE);
	c.prp = area(n, "prp", (ENTRIES - 1) * NVME_PAGE_SIZE, NVME_PAGE_SIZE);
	c.prp_iova = 1u << 30;
	/* a device's registers are 4 bytes apart by the specification, DSTRD = 0 */
	r->sq_doorbell = c.sq_doorbell = area(n, "sq_doorbell", 4, 64);
	r->cq_doorbell = c.cq_doorbell = area(n, "cq_doorbell", 4, 64);
	CHECK_EQ(udrv_qp_init(qp, &c), 0);
	udrv_qp_as_queue(qp, &r->queue);
	j->queue = (struct udrv_queue){ &ops, r };
	j->iodepth = DEPTH;
	j->unit_blocks = 1;
	j->buffer_stride = 1u << SHIFT;
	j->units = BLOCKS;
	j->flags = UDRV_BENCH_RANDOM;
	j->read_percent = 100;
	j->max_ios = IOS;
	j->timeout_ns = 20000000000u;
	j->spin_ns = UDRV_SPIN_ONLY;
	j->seed = n;
	j->scratch = area(n, "scratch", udrv_bench_scratch_size(DEPTH), 64);
	j->live = area(n, "live", sizeof(*j->live), 64);
	j->result = area(n, "result", sizeof(*j->result), 64);
	base->nsid = 1;
	base->lba_shift = SHIFT;
	base->nsze = BLOCKS;
	base->iova = 1ull << 32;
	base->len = DEPTH << SHIFT;
	j->base = base;
	return r;
}

int main(void)
{
	struct rig *rigs[2];
	pthread_t threads[2];
	unsigned int i;

	CHECK_EQ(udrv_core_init(), 0);
	for (i = 0; i < 2; i++)
		rigs[i] = set_up(i);
	fflush(stdout);
	for (i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, run, rigs[i]), 0);
	for (i = 0; i < 2; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	return 0;
}

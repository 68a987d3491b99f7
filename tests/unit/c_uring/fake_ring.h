/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_ring.h - the kernel's end of a ring in plain memory: what liburing's functions would do, so
 * that a test decides what io_uring_enter() takes, says and completes.
 */
#ifndef UDRV_TEST_FAKE_RING_H
#define UDRV_TEST_FAKE_RING_H

#include <errno.h>

#include <udrv/uring_qp.h>

#include "../c/harness.h"

#define FAKE_MAX 64

static struct {
	unsigned sq_head, sq_tail, sq_flags, cq_head, cq_tail;
	unsigned array[FAKE_MAX];
	uint8_t sqes[FAKE_MAX * 128] __cacheline_aligned;
	uint8_t cqes[2 * FAKE_MAX * 32] __cacheline_aligned;
	unsigned entries, setup_flags;
	unsigned refuse_flags;		/* set-up flags that this kernel does not know */
	int enter_error;		/* of the next calls */
	unsigned take_at_most;		/* SQEs of one call; 0: all */
	int complete_at_once;
	unsigned enters;
	uint64_t seen[4096];		/* user_data of the SQEs taken, in order */
	uint8_t sqe[4096][128] __cacheline_aligned;
	unsigned nr_seen;
} fake;

static void fake_cqe(uint64_t user_data, int32_t res, uint64_t big)
{
	unsigned mask = 2 * fake.entries - 1, shift = fake.setup_flags & IORING_SETUP_CQE32 ? 5 : 4;
	struct io_uring_cqe *cqe = (void *)(fake.cqes + ((size_t)(fake.cq_tail & mask) << shift));

	cqe->user_data = user_data;
	cqe->res = res;
	cqe->flags = 0;
	if (shift == 5)
		cqe->big_cqe[0] = big;
	__atomic_store_n(&fake.cq_tail, fake.cq_tail + 1, __ATOMIC_RELEASE);
}

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
	if (p->flags & fake.refuse_flags)
		return -EINVAL;
	for (fake.entries = 1; fake.entries < entries; fake.entries *= 2)
		;
	CHECK(fake.entries <= FAKE_MAX);
	fake.setup_flags = p->flags;
	p->features = IORING_FEAT_EXT_ARG;
	memset(ring, 0, sizeof(*ring));
	ring->ring_fd = 1000;
	ring->sq.khead = &fake.sq_head;
	ring->sq.ktail = &fake.sq_tail;
	ring->sq.kflags = &fake.sq_flags;
	ring->sq.array = fake.array;
	ring->sq.sqes = (void *)fake.sqes;
	ring->sq.ring_mask = fake.entries - 1;
	ring->cq.khead = &fake.cq_head;
	ring->cq.ktail = &fake.cq_tail;
	ring->cq.cqes = (void *)fake.cqes;
	ring->cq.ring_mask = 2 * fake.entries - 1;
	return 0;
}

int io_uring_enter2(unsigned fd, unsigned to_submit, unsigned min, unsigned flags, sigset_t *sig,
		    size_t sz)
{
	unsigned shift = fake.setup_flags & IORING_SETUP_SQE128 ? 7 : 6, n = 0;

	(void)fd, (void)min, (void)flags, (void)sig, (void)sz;
	fake.enters++;
	if (fake.enter_error)
		return fake.enter_error;
	CHECK_EQ(to_submit, fake.sq_tail - fake.sq_head);
	while (n < to_submit && !(fake.take_at_most && n == fake.take_at_most)) {
		unsigned i = fake.array[fake.sq_head & (fake.entries - 1)];
		struct io_uring_sqe *sqe = (void *)(fake.sqes + ((size_t)i << shift));

		CHECK(fake.nr_seen < ARRAY_SIZE(fake.seen));
		memcpy(fake.sqe[fake.nr_seen], sqe, (size_t)1 << shift);
		fake.seen[fake.nr_seen++] = sqe->user_data;
		if (fake.complete_at_once)
			fake_cqe(sqe->user_data, shift == 7 ? 0 : (int32_t)sqe->len, 0);
		fake.sq_head++;
		n++;
	}
	return (int)n;
}

void io_uring_queue_exit(struct io_uring *ring) { (void)ring; }
int io_uring_ring_dontfork(struct io_uring *ring) { (void)ring; return 0; }
int io_uring_register_files_sparse(struct io_uring *r, unsigned n) { (void)r, (void)n; return 0; }
int io_uring_register_eventfd(struct io_uring *r, int fd) { (void)r, (void)fd; return 0; }
int io_uring_enable_rings(struct io_uring *r) { (void)r; return 0; }
int io_uring_register_ring_fd(struct io_uring *r) { (void)r; return -EINVAL; }
int io_uring_register_buffers_sparse(struct io_uring *r, unsigned n) { (void)r, (void)n; return 0; }

int io_uring_register_files_update(struct io_uring *r, unsigned off, const int *files, unsigned n)
{
	(void)r, (void)off, (void)files;
	return (int)n;
}

int io_uring_register_buffers_update_tag(struct io_uring *r, unsigned off, const struct iovec *iov,
					 const __u64 *tags, unsigned n)
{
	(void)r, (void)off, (void)iov, (void)tags;
	return (int)n;
}

#endif /* UDRV_TEST_FAKE_RING_H */

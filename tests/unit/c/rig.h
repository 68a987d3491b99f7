/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig.h - a queue pair over plain memory, and the device at its other end.
 *
 * Every area is allocated at its exact size, so that the address sanitizer sees one byte too many.
 * The device side shares no code with qp.c: it reads what is in memory, as a device does.
 */
#ifndef UDRV_TEST_RIG_H
#define UDRV_TEST_RIG_H

#include <udrv/qp.h>

#include "harness.h"

#define RIG_QID 7
#define RIG_MAX_TRANSFER UDRV_QP_PRP_MAX_TRANSFER
#define RIG_PRP_IOVA 0x7f0000000000ull
#define RIG_IOVA 0x10000000000ull	/* of the data buffer */
#define RIG_LEN (64ull << 20)
#define RIG_NSZE (1ull << 40)
#define RIG_COLUMNS 256

struct rig {
	struct udrv_qp *qp;
	struct udrv_qp_config config;
	struct udrv_qp_shared *shared;
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	uint64_t *prp;
	uint32_t sq_doorbell;
	uint32_t cq_doorbell;
	uint32_t entries;

	/* the device's own state */
	uint32_t sq_head;
	uint32_t cq_tail;
	uint32_t cq_phase;

	struct udrv_batch batch;
	struct udrv_command cmd[RIG_COLUMNS];

	struct udrv_completions out;
	struct udrv_completion done[RIG_COLUMNS];
};

/* A page-aligned area of exactly `size` bytes, zeroed. */
static inline void *rig_area(size_t size, size_t align)
{
	void *p = NULL;

	CHECK_EQ(posix_memalign(&p, align, size), 0);
	memset(p, 0, size);
	return p;
}

static inline struct rig *rig_new(uint32_t entries, int eventfd)
{
	struct rig *r = rig_area(sizeof(*r), 64);
	uint32_t i;

	CHECK_EQ(udrv_core_init(), 0);
	r->entries = entries;
	r->shared = rig_area(udrv_qp_shared_size(entries), 64);
	r->sq = rig_area(entries * 64ul, NVME_PAGE_SIZE);
	r->cq = rig_area(entries * 16ul, NVME_PAGE_SIZE);
	r->prp = rig_area((entries - 1ul) * NVME_PAGE_SIZE, NVME_PAGE_SIZE);
	r->cq_phase = 1;
	r->config = (struct udrv_qp_config){
		.qid = RIG_QID,
		.entries = (uint16_t)entries,
		.eventfd = eventfd,
		.max_transfer = RIG_MAX_TRANSFER,
		.shared = r->shared,
		.sq = r->sq,
		.cq = r->cq,
		.prp = r->prp,
		.prp_iova = RIG_PRP_IOVA,
		.sq_doorbell = &r->sq_doorbell,
		.cq_doorbell = &r->cq_doorbell,
	};
	r->qp = udrv_qp_new();
	CHECK(r->qp);
	CHECK_EQ(udrv_qp_init(r->qp, &r->config), 0);

	r->batch = (struct udrv_batch){
		.capacity = RIG_COLUMNS,
		.nsid = 3,
		.lba_shift = 9,
		.pool_id = 5,
		.nsze = RIG_NSZE,
		.iova = RIG_IOVA,
		.len = RIG_LEN,
		.pool_offset = 0x1000,
		.slot = 11,
		.commands = r->cmd,
	};
	for (i = 0; i < RIG_COLUMNS; i++) {
		r->cmd[i].opcode = NVME_CMD_READ;
		r->cmd[i].slba = i * 8;
		r->cmd[i].nlb = 8;
		r->cmd[i].offset = i * 4096ull;
		r->cmd[i].user_data = 0xfeed00000000ull + i;
	}
	r->out = (struct udrv_completions){
		.capacity = RIG_COLUMNS,
		.rows = r->done,
	};
	return r;
}

static inline void rig_free(struct rig *r)
{
	udrv_qp_free(r->qp);
	free(r->shared);
	free(r->sq);
	free(r->cq);
	free(r->prp);
	free(r);
}

static inline int rig_submit(struct rig *r, uint32_t first, uint32_t count)
{
	uint32_t bad = UINT32_MAX;

	return udrv_qp_submit(r->qp, &r->batch, first, count, &bad);
}

static inline int rig_reap(struct rig *r, uint32_t max)
{
	return udrv_qp_reap(r->qp, &r->out, 0, max);
}

/* Device: fetch the next command that the doorbell announced. Return: 0 if there is none. */
static inline int rig_fetch(struct rig *r, struct nvme_sqe *sqe)
{
	CHECK(r->sq_doorbell < r->entries);
	if (r->sq_head == r->sq_doorbell)
		return 0;
	*sqe = r->sq[r->sq_head];
	r->sq_head = (r->sq_head + 1) % r->entries;
	return 1;
}

/* Device: post any completion, true or false. */
static inline void rig_post(struct rig *r, uint16_t cid, uint16_t sqid, uint16_t status,
			    uint64_t result)
{
	struct nvme_cqe *cqe = &r->cq[r->cq_tail];

	cqe->dw0 = (uint32_t)result;
	cqe->dw1 = (uint32_t)(result >> 32);
	cqe->dw2 = r->sq_head | (uint32_t)sqid << 16;
	cqe->dw3 = cid | r->cq_phase << 16 | (uint32_t)status << 17;
	r->cq_tail = (r->cq_tail + 1) % r->entries;
	if (!r->cq_tail)
		r->cq_phase ^= 1;
}

static inline uint16_t sqe_cid(const struct nvme_sqe *sqe)
{
	return (uint16_t)(sqe->cdw0 >> 16);
}

/* Device: fetch and complete everything, first come first served. Return: how many. */
static inline int rig_serve(struct rig *r)
{
	struct nvme_sqe sqe;
	int n = 0;

	for (; rig_fetch(r, &sqe); n++)
		rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
	return n;
}

/*
 * Walk a command's PRPs as a controller does (NVMe base specification, "Physical Region Page
 * Entry and List"). They must describe exactly the bytes iova .. iova + len - 1, in order.
 */
static inline void check_prps(const struct rig *r, const struct nvme_sqe *sqe, uint64_t iova,
			      uint64_t len)
{
	uint64_t here = NVME_PAGE_SIZE - (sqe->prp1 & NVME_PAGE_MASK);
	uint64_t done, list_offset, i;
	const uint64_t *list;

	CHECK_EQ(sqe->prp1, iova);
	CHECK_EQ(sqe->prp1 & 3, 0);
	if (here >= len) {
		CHECK_EQ(sqe->prp2, 0);
		return;
	}
	done = here;
	if (len - done <= NVME_PAGE_SIZE) {
		CHECK_EQ(sqe->prp2, iova + done);
		CHECK_EQ(sqe->prp2 & NVME_PAGE_MASK, 0);
		return;
	}
	/* the list is the command's own page, and none but it */
	CHECK_EQ(sqe->prp2, RIG_PRP_IOVA + (uint64_t)sqe_cid(sqe) * NVME_PAGE_SIZE);
	list_offset = sqe->prp2 - RIG_PRP_IOVA;
	list = (const uint64_t *)((const char *)r->prp + list_offset);
	for (i = 0; done < len; i++, done += NVME_PAGE_SIZE) {
		CHECK(i < NVME_PAGE_SIZE / 8);
		CHECK_EQ(list[i], iova + done);
		CHECK_EQ(list[i] & NVME_PAGE_MASK, 0);
	}
}

#endif /* UDRV_TEST_RIG_H */

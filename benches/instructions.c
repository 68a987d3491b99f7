// SPDX-License-Identifier: Apache-2.0
/*
 * Submit and complete on a device that is this process: what benches/instructions.py counts.
 *
 * usage: instructions DEPTH BYTES ROUNDS
 *
 * callgrind collects inside of udrv_qp_submit() and udrv_qp_reap() only, so what plays the device
 * below is not counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <udrv/qp.h>

#define LBA_SHIFT 9

static void *pages(size_t size)
{
	void *p;

	size = (size + NVME_PAGE_MASK) & ~(size_t)NVME_PAGE_MASK;
	p = aligned_alloc(NVME_PAGE_SIZE, size);
	if (!p)
		abort();
	return memset(p, 0, size);
}

int main(int argc, char **argv)
{
	uint32_t depth, bytes, rounds, entries, i, sq_head = 0, cq_tail = 0, phase = 1, bad;
	uint32_t doorbells[2] = { 0, 0 };
	struct udrv_completions out;
	struct udrv_qp_config config;
	struct udrv_batch batch;
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	struct udrv_qp *qp = udrv_qp_new();

	if (argc != 4 || !qp || udrv_core_init())
		return 2;
	depth = (uint32_t)atoi(argv[1]);
	bytes = (uint32_t)atoi(argv[2]);
	rounds = (uint32_t)atoi(argv[3]);
	entries = depth + 1;	/* so that the rings wrap */

	sq = pages(entries * sizeof(*sq));
	cq = pages(entries * sizeof(*cq));
	config = (struct udrv_qp_config){
		.qid = 1, .entries = (uint16_t)entries, .eventfd = -1,
		.max_transfer = UDRV_QP_PRP_MAX_TRANSFER,
		.shared = pages(udrv_qp_shared_size(entries)), .sq = sq, .cq = cq,
		.prp = pages((size_t)depth * NVME_PAGE_SIZE), .prp_iova = 1u << 30,
		.sq_doorbell = &doorbells[0], .cq_doorbell = &doorbells[1],
	};
	if (udrv_qp_init(qp, &config))
		return 2;

	batch = (struct udrv_batch){
		.capacity = depth, .nsid = 1, .lba_shift = LBA_SHIFT, .nsze = 1u << 30,
		.iova = 1ull << 32, .len = (uint64_t)depth * bytes,
		.opcode = memset(pages(depth), NVME_CMD_READ, depth), .slba = pages(depth * 8),
		.nlb = pages(depth * 4), .offset = pages(depth * 8), .user_data = pages(depth * 8),
	};
	for (i = 0; i < depth; i++) {
		((uint64_t *)batch.slba)[i] = (uint64_t)i * 7919;
		((uint32_t *)batch.nlb)[i] = bytes >> LBA_SHIFT;
		((uint64_t *)batch.offset)[i] = (uint64_t)i * bytes;
		((uint64_t *)batch.user_data)[i] = i;
	}
	out = (struct udrv_completions){
		.capacity = depth, .user_data = pages(depth * 8), .result = pages(depth * 8),
		.latency_ns = pages(depth * 8), .status = pages(depth * 2),
	};

	while (rounds--) {
		if (udrv_qp_submit(qp, &batch, 0, depth, &bad) != (int)depth)
			return 1;
		while (sq_head != doorbells[0]) {
			uint32_t cid = sq[sq_head].cdw0 >> 16;

			cq[cq_tail] = (struct nvme_cqe){ .dw2 = 1u << 16, .dw3 = cid | phase << 16 };
			if (++cq_tail == entries) {
				cq_tail = 0;
				phase ^= 1;
			}
			if (++sq_head == entries)
				sq_head = 0;
		}
		if (udrv_qp_reap(qp, &out, 0, depth) != (int)depth)
			return 1;
	}
	return udrv_qp_inflight(qp) != 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Submit and complete on a device that is this process: what benches/instructions.py counts.
 *
 * usage: instructions DEPTH BYTES ROUNDS TIMED ORDER STREAM
 *
 * ORDER 1 is the dearest order for a queue pair: no command has the shape of the one before (reads and
 * writes in turn), and no completion its slot (two batches of half of DEPTH, completed in turn).
 * ORDER 2 is the dearest for a stream: each command has a doorbell of its own, and so a submit time,
 * a depth and a latency that no other has. STREAM is 1 for windows, 2 for windows and records.
 *
 * callgrind collects inside of udrv_qp_submit() and udrv_qp_reap() only, so what plays the device
 * below is not counted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <udrv/hist.h>
#include <udrv/qp.h>
#include <udrv/stream.h>

#define LBA_SHIFT 9
#define ENTRIES 256	/* create_queue()'s default */

static void *pages(size_t size)
{
	void *p;

	size = (size + NVME_PAGE_MASK) & ~(size_t)NVME_PAGE_MASK;
	p = aligned_alloc(NVME_PAGE_SIZE, size);
	if (!p)
		abort();
	return memset(p, 0, size);
}

/* What udrv-bench does with each latency; apart, so that it can be counted. */
static __attribute__((noinline)) void histogram(struct udrv_hist *h,
						const struct udrv_completion *rows, uint32_t n)
{
	while (n--)
		udrv_hist_record(h, rows++->latency_ns);
}

int main(int argc, char **argv)
{
	uint32_t depth, bytes, rounds, entries, i, sq_head = 0, cq_tail = 0, phase = 1, bad, untimed;
	uint32_t mixed, half, n, step, stream;
	struct udrv_stream_config how;
	struct udrv_stream *s;
	uint16_t cids[ENTRIES];
	uint32_t doorbells[2] = { 0, 0 };
	struct udrv_completions out;
	struct udrv_qp_config config;
	struct udrv_command *commands;
	struct udrv_hist *hist = pages(sizeof(*hist));
	struct udrv_batch batch, other;
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	struct udrv_qp *qp = udrv_qp_new();

	if (argc != 7 || !qp || udrv_core_init())
		return 2;
	depth = (uint32_t)atoi(argv[1]);
	bytes = (uint32_t)atoi(argv[2]);
	rounds = (uint32_t)atoi(argv[3]);
	untimed = !atoi(argv[4]);
	mixed = atoi(argv[5]) == 1;
	half = mixed ? depth / 2 : depth;
	step = atoi(argv[5]) == 2 ? 1 : half;
	stream = (uint32_t)atoi(argv[6]);
	entries = ENTRIES;	/* the rings wrap every few calls */

	sq = pages(entries * sizeof(*sq));
	cq = pages(entries * sizeof(*cq));
	config = (struct udrv_qp_config){
		.qid = 1, .entries = (uint16_t)entries, .eventfd = -1,
		.flags = untimed ? UDRV_QP_UNTIMED : 0,
		.max_transfer = UDRV_QP_PRP_MAX_TRANSFER,
		.shared = pages(udrv_qp_shared_size(entries)), .sq = sq, .cq = cq,
		.prp = pages((size_t)(ENTRIES - 1) * NVME_PAGE_SIZE), .prp_iova = 1u << 30,
		.sq_doorbell = &doorbells[0], .cq_doorbell = &doorbells[1],
	};
	if (udrv_qp_init(qp, &config))
		return 2;

	if (stream) {
		how = (struct udrv_stream_config){
			.qid = 1, .flags = stream == 2 ? UDRV_STREAM_RECORDS : 0, .chunks = 16,
			.cells = 64, .stride = 1, .period_ns = 1000000000,
		};
		s = pages(udrv_stream_handle_size());
		if (udrv_stream_init(s, &how, pages(udrv_stream_size(&how)),
				     pages(sizeof(struct udrv_ring_reader)), 0) ||
		    udrv_stream_add_namespace(s, 1, 1u << 30, LBA_SHIFT) || udrv_qp_set_stream(qp, s))
			return 2;
	}

	batch = (struct udrv_batch){
		.capacity = depth, .nsid = 1, .lba_shift = LBA_SHIFT, .nsze = 1u << 30,
		.prp_table = 1ull << 36, .iova = 1ull << 32, .len = (uint64_t)depth * bytes,
		.commands = commands = pages(depth * sizeof(*commands)),
	};
	for (i = 0; i < depth; i++) {
		commands[i] = (struct udrv_command){
			.opcode = mixed && i & 1 ? NVME_CMD_WRITE : NVME_CMD_READ, .slba = (uint64_t)i * 7919,
			.nlb = bytes >> LBA_SHIFT, .offset = (uint64_t)i * bytes, .user_data = i,
		};
	}
	other = batch;
	other.slot = 1;
	out = (struct udrv_completions){
		.capacity = depth, .rows = pages(depth * sizeof(*out.rows)),
	};

	udrv_hist_reset(hist);
	while (rounds--) {
		for (i = 0; i < half; i += step)
			if (udrv_qp_submit(qp, &batch, i, step, &bad) != (int)step)
				return 1;
		if (mixed && udrv_qp_submit(qp, &other, half, half, &bad) != (int)half)
			return 1;
		for (n = 0; sq_head != doorbells[0]; n++) {
			cids[n] = (uint16_t)(sq[sq_head].cdw0 >> 16);
			if (++sq_head == entries)
				sq_head = 0;
		}
		for (i = 0; i < n; i++) {
			uint32_t cid = mixed ? cids[i / 2 + (i & 1) * half] : cids[i];

			cq[cq_tail] = (struct nvme_cqe){ .dw2 = 1u << 16, .dw3 = cid | phase << 16 };
			if (++cq_tail == entries) {
				cq_tail = 0;
				phase ^= 1;
			}
		}
		if (udrv_qp_reap(qp, &out, 0, depth) != (int)depth)
			return 1;
		histogram(hist, out.rows, depth);
	}
	return udrv_qp_inflight(qp) != 0;
}

// SPDX-License-Identifier: Apache-2.0
/* Submission: what reaches the device, and what must not. */
#include "rig.h"

TEST(state_fits_its_memory_at_every_size)
{
	static const uint32_t sizes[] = { 2, 3, 31, 32, 33, 64, 1023, 1024, 65535 };
	size_t i;

	CHECK_EQ(udrv_qp_shared_size(0), 0);
	CHECK_EQ(udrv_qp_shared_size(1), 0);
	CHECK_EQ(udrv_qp_shared_size(65536), 0);
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint32_t entries = sizes[i];
		size_t size = udrv_qp_shared_size(entries);
		struct udrv_qp_shared *sh = rig_area(size, 64);
		uint64_t page[512] __attribute__((aligned(4096)));
		struct udrv_qp_config c = {
			.qid = 1, .entries = (uint16_t)entries, .eventfd = -1, .max_transfer = 4096,
			.shared = sh, .sq = page, .cq = page, .prp = page,
			.sq_doorbell = page, .cq_doorbell = page,
		};
		struct udrv_qp *qp = udrv_qp_new();

		CHECK_EQ(udrv_qp_init(qp, &c), 0);
		CHECK_EQ(sh->magic, UDRV_QP_MAGIC);
		CHECK_EQ(sh->size, size);
		CHECK_EQ(sh->nr_trackers, entries - 1);
		CHECK_EQ(sh->trackers_offset % UDRV_CACHELINE, 0);
		CHECK(sh->trackers_offset >= sizeof(*sh));
		CHECK(sh->free_offset >=
		      sh->trackers_offset + (entries - 1) * sizeof(struct udrv_tracker));
		CHECK(size >= sh->free_offset + (entries - 1) * 2);
		CHECK_EQ(udrv_qp_inflight(qp), 0);
		udrv_qp_free(qp);
		free(sh);
	}
}

TEST(init_refuses_what_cannot_be)
{
	struct rig *r = rig_new(8, -1);
	struct udrv_qp *qp = udrv_qp_new();
	struct udrv_qp_config c;

#define REFUSED(field, value)                                       \
	do {                                                        \
		c = r->config;                                      \
		c.field = (value);                                  \
		CHECK_EQ(udrv_qp_init(qp, &c), -UDRV_EINVAL);       \
	} while (0)
	REFUSED(entries, 0);
	REFUSED(entries, 1);
	REFUSED(max_transfer, 0);
	REFUSED(max_transfer, UDRV_QP_PRP_MAX_TRANSFER + 1);
	REFUSED(shared, NULL);
	REFUSED(shared, (char *)r->shared + 8);
	REFUSED(sq, NULL);
	REFUSED(sq, (char *)r->sq + 64);
	REFUSED(cq, NULL);
	REFUSED(cq, (char *)r->cq + 16);
	REFUSED(prp, NULL);
	REFUSED(prp, (char *)r->prp + 8);
	REFUSED(prp_iova, RIG_PRP_IOVA + 8);
	REFUSED(sq_doorbell, NULL);
	REFUSED(cq_doorbell, (char *)&r->cq_doorbell + 2);
	udrv_qp_free(qp);
	rig_free(r);
}

TEST(a_read_is_the_entry_that_the_specification_says)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe sqe, zero = { 0 };

	r->cmd[0].slba = 0x123456789ull;
	r->cmd[0].nlb = 16;
	r->cmd[0].offset = 0x2004;
	r->cmd[0].control = 1u << 14;	/* FUA */
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK_EQ(r->sq_doorbell, 1);
	CHECK(rig_fetch(r, &sqe));
	CHECK_EQ(sqe.cdw0 & 0xffff, NVME_CMD_READ);	/* FUSE and PSDT 0 */
	CHECK(sqe_cid(&sqe) < 7);
	CHECK_EQ(sqe.nsid, 3);
	CHECK_EQ(sqe.cdw10, 0x23456789);
	CHECK_EQ(sqe.cdw11, 0x1);
	CHECK_EQ(sqe.cdw12, 15 | 1u << 30);
	CHECK_EQ(sqe.cdw2 | sqe.cdw3 | sqe.cdw13 | sqe.cdw14 | sqe.cdw15, zero.cdw2);
	CHECK_EQ(sqe.mptr, 0);
	check_prps(r, &sqe, RIG_IOVA + 0x2004, 16 * 512);
	rig_free(r);
}

TEST(a_flush_carries_no_data_and_no_blocks)
{
	struct rig *r = rig_new(8, -1);
	struct nvme_sqe sqe;

	r->cmd[0].opcode = NVME_CMD_FLUSH;
	r->cmd[0].slba = UINT64_MAX;	/* columns that a flush has no use for */
	r->cmd[0].nlb = UINT32_MAX;
	r->cmd[0].control = 0xffff;
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	CHECK(rig_fetch(r, &sqe));
	CHECK_EQ(sqe.cdw0 & 0xffff, NVME_CMD_FLUSH);
	CHECK_EQ(sqe.nsid, 3);
	CHECK(!sqe.prp1 && !sqe.prp2 && !sqe.mptr);
	CHECK(!(sqe.cdw2 | sqe.cdw3 | sqe.cdw10 | sqe.cdw11 | sqe.cdw12 | sqe.cdw13 | sqe.cdw14 |
		sqe.cdw15));
	rig_free(r);
}

TEST(a_raw_command_leaves_nothing_behind_for_the_batch_path)
{
	struct rig *r = rig_new(4, -1);
	struct nvme_sqe raw, sqe;
	int i;

	memset(&raw, 0xa5, sizeof(raw));
	for (i = 0; i < 4; i++) {	/* once around the ring */
		CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, RIG_IOVA, 0, 0, 0, 0, 12, 0), 1);
		CHECK_EQ(rig_serve(r), 1);
		CHECK_EQ(rig_reap(r, 1), 1);
	}
	for (i = 0; i < 4; i++) {
		CHECK_EQ(rig_submit(r, 0, 3), 3);
		while (rig_fetch(r, &sqe)) {
			CHECK(!(sqe.cdw2 | sqe.cdw3 | sqe.cdw13 | sqe.cdw14 | sqe.cdw15));
			CHECK(!sqe.mptr);
			CHECK_EQ(sqe.cdw12, 7);
			rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
		}
		CHECK_EQ(rig_reap(r, 3), 3);
	}
	rig_free(r);
}

/* What a shape was found to allow must not be taken for another's. */
TEST(each_change_of_shape_is_checked)
{
	struct rig *r = rig_new(16, -1);
	uint32_t bad, i, j;
	/* after a good read: the complement of a shape, no blocks, an unknown opcode, too long */
	static const struct udrv_command wrong[] = {
		{ .nlb = 0, .opcode = NVME_CMD_READ },
		{ .nlb = 8, .opcode = 0xff },
		{ .nlb = 8, .opcode = 3 },
		{ .nlb = (RIG_MAX_TRANSFER >> 9) + 1, .opcode = NVME_CMD_WRITE },
		{ .shape = ~(8ull | (uint64_t)NVME_CMD_READ << 48) },
		{ .shape = ~8ull },	/* of the flush below */
		{ .shape = ~0ull },
	};

	for (i = 0; i < ARRAY_SIZE(wrong); i++) {
		for (j = 0; j < 4; j++) {
			/* it comes first, or after a read, a flush, or both */
			uint32_t n = 0;

			if (j & 1)
				r->cmd[n++] = (struct udrv_command){ .nlb = 8,
								     .opcode = NVME_CMD_READ };
			if (j & 2)
				r->cmd[n++] = (struct udrv_command){ .nlb = 8 };
			r->cmd[n] = wrong[i];
			bad = UINT32_MAX;
			CHECK(udrv_qp_submit(r->qp, &r->batch, 0, n + 1, &bad) < 0);
			CHECK_EQ(bad, n);
			CHECK_EQ(udrv_qp_inflight(r->qp), 0);
			CHECK_EQ(r->sq_doorbell, 0);
		}
	}
	rig_free(r);
}

TEST(prps_describe_exactly_the_data)
{
	static const uint32_t blocks[] = { 1,  2,  7,   8,   9,   15,  16,   17,   24,  25,
					   31, 32, 63,  64,  65,  127, 128,  129,  255, 256,
					   257, 511, 512, 1024, 2047, 2048, 4088, 4095, 4096 };
	struct rig *r = rig_new(3, -1);
	uint32_t start;
	size_t i;

	for (start = 0; start < NVME_PAGE_SIZE; start += start < 16 || start > 4060 ? 4 : 52) {
		for (i = 0; i < ARRAY_SIZE(blocks); i++) {
			struct nvme_sqe sqe;

			r->cmd[0].nlb = blocks[i];
			r->cmd[0].offset = 3 * NVME_PAGE_SIZE + start;
			memset(r->prp, 0xff, 2 * NVME_PAGE_SIZE);
			CHECK_EQ(rig_submit(r, 0, 1), 1);
			CHECK(rig_fetch(r, &sqe));
			check_prps(r, &sqe, RIG_IOVA + r->cmd[0].offset, blocks[i] * 512ull);
			rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
			CHECK_EQ(rig_reap(r, 8), 1);
		}
	}
	rig_free(r);
}

TEST(every_command_has_a_prp_page_of_its_own)
{
	struct rig *r = rig_new(32, -1);
	struct nvme_sqe sqe[31];
	uint32_t i;

	for (i = 0; i < 31; i++) {
		r->cmd[i].nlb = 4096;
		r->cmd[i].offset = i * 0x200000ull + 4 * i;
	}
	CHECK_EQ(rig_submit(r, 0, 31), 31);
	for (i = 0; i < 31; i++)
		CHECK(rig_fetch(r, &sqe[i]));
	/* looked at after all were written: one that overwrote another is seen */
	for (i = 0; i < 31; i++)
		check_prps(r, &sqe[i], RIG_IOVA + r->cmd[i].offset, 4096 * 512ull);
	rig_free(r);
}

struct bad_row {
	const char *what;
	uint8_t opcode;
	uint64_t slba;
	uint32_t nlb;
	uint64_t offset;
	int error;
};

static const struct bad_row bad_rows[] = {
	{ "compare", 0x05, 0, 8, 0, -UDRV_EOPCODE },
	{ "opcode 255", 0xff, 0, 8, 0, -UDRV_EOPCODE },
	{ "no blocks", NVME_CMD_READ, 0, 0, 0, -UDRV_ERANGE },
	{ "one block behind the end", NVME_CMD_READ, RIG_NSZE - 7, 8, 0, -UDRV_ERANGE },
	{ "starts at the end", NVME_CMD_WRITE, RIG_NSZE, 1, 0, -UDRV_ERANGE },
	{ "wraps round", NVME_CMD_WRITE, UINT64_MAX, 8, 0, -UDRV_ERANGE },
	{ "wraps round to 0", NVME_CMD_READ, UINT64_MAX - 7, 8, 0, -UDRV_ERANGE },
	{ "above the largest transfer", NVME_CMD_READ, 0, 4097, 0, -UDRV_ESIZE },
	{ "65537 blocks", NVME_CMD_READ, 0, 65537, 0, -UDRV_ESIZE },
	{ "most blocks", NVME_CMD_READ, 0, UINT32_MAX, 0, -UDRV_ESIZE },
	{ "behind the buffer", NVME_CMD_READ, 0, 8, RIG_LEN, -UDRV_EBUFFER },
	{ "past the buffer's end", NVME_CMD_READ, 0, 8, RIG_LEN - 4092, -UDRV_EBUFFER },
	{ "offset wraps round", NVME_CMD_WRITE, 0, 8, UINT64_MAX - 3, -UDRV_EBUFFER },
	{ "unaligned by 2", NVME_CMD_READ, 0, 8, 2, -UDRV_EALIGN },
	{ "unaligned by 1", NVME_CMD_WRITE, 0, 8, 4097, -UDRV_EALIGN },
};

TEST(a_bad_row_anywhere_posts_nothing)
{
	struct rig *r = rig_new(16, -1);
	struct udrv_qp *qp_before = udrv_qp_new();
	uint32_t at;
	size_t i;

	CHECK_EQ(rig_submit(r, 0, 3), 3);	/* some are in flight already */
	for (i = 0; i < ARRAY_SIZE(bad_rows); i++) {
		const struct bad_row *b = &bad_rows[i];

		for (at = 20; at < 28; at++) {
			struct nvme_sqe posted[3];
			struct udrv_qp_shared before = *r->shared;
			uint8_t opcode = r->cmd[at].opcode;
			uint64_t slba = r->cmd[at].slba, offset = r->cmd[at].offset;
			uint32_t nlb = r->cmd[at].nlb, bad = 0, cid;

			memcpy(posted, r->sq, sizeof(posted));
			memcpy(qp_before, r->qp, sizeof(*qp_before));
			r->cmd[at].opcode = b->opcode;
			r->cmd[at].slba = b->slba;
			r->cmd[at].nlb = b->nlb;
			r->cmd[at].offset = b->offset;
			CHECK_EQ(udrv_qp_submit(r->qp, &r->batch, 20, 8, &bad), b->error);
			CHECK_EQ(bad, at);
			CHECK_EQ(r->sq_doorbell, 3);
			CHECK(!memcmp(&before, r->shared, sizeof(before)));
			CHECK(!memcmp(qp_before, r->qp, sizeof(*qp_before)));
			CHECK(!memcmp(posted, r->sq, sizeof(posted)));
			CHECK_EQ(udrv_qp_inflight(r->qp), 3);
			for (cid = 0; cid < 15; cid++)
				CHECK_EQ(r->qp->trackers[cid].state != UDRV_TRACKER_FREE,
					 cid < 3);
			r->cmd[at].opcode = opcode;
			r->cmd[at].slba = slba;
			r->cmd[at].nlb = nlb;
			r->cmd[at].offset = offset;
		}
	}
	/* and the pair works on: all the rest fits */
	CHECK_EQ(rig_submit(r, 20, 12), 12);
	CHECK_EQ(rig_serve(r), 15);
	CHECK_EQ(rig_reap(r, 100), 15);
	udrv_qp_free(qp_before);
	rig_free(r);
}

TEST(the_last_block_and_the_last_byte_are_allowed)
{
	struct rig *r = rig_new(8, -1);

	r->cmd[0].slba = RIG_NSZE - 8;
	r->cmd[0].offset = RIG_LEN - 4096;
	r->cmd[1].slba = 0;
	r->cmd[1].nlb = 4096;		/* 2 MiB: the largest transfer */
	r->cmd[1].offset = RIG_LEN - (2u << 20);
	CHECK_EQ(rig_submit(r, 0, 2), 2);
	rig_free(r);
}

TEST(a_window_outside_of_the_columns_is_refused)
{
	struct rig *r = rig_new(8, -1);

	CHECK_EQ(rig_submit(r, RIG_COLUMNS, 1), -UDRV_EINVAL);
	CHECK_EQ(rig_submit(r, RIG_COLUMNS + 1, 0), -UDRV_EINVAL);
	CHECK_EQ(rig_submit(r, 1, UINT32_MAX), -UDRV_EINVAL);
	CHECK_EQ(rig_submit(r, UINT32_MAX, 2), -UDRV_EINVAL);
	CHECK_EQ(rig_submit(r, RIG_COLUMNS - 1, 1), 1);
	CHECK_EQ(rig_submit(r, RIG_COLUMNS, 0), 0);
	r->batch.slot = UDRV_QP_SLOTS;
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_EINVAL);
	r->batch.slot = UDRV_QP_SLOTS - 1;
	CHECK_EQ(rig_submit(r, 0, 1), 1);
	/* blocks of less than 512 bytes or more than 64 KiB are no NVMe format */
	r->batch.lba_shift = 8;
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_EINVAL);
	r->batch.lba_shift = 17;
	CHECK_EQ(rig_submit(r, 0, 1), -UDRV_EINVAL);
	CHECK_EQ(r->sq_doorbell, 2);
	rig_free(r);
}

TEST(a_batch_rings_once_and_nothing_rings_for_nothing)
{
	struct rig *r = rig_new(64, -1);

	CHECK_EQ(rig_submit(r, 0, 0), 0);
	CHECK_EQ(r->shared->sq_doorbells, 0);
	CHECK_EQ(rig_submit(r, 0, 32), 32);
	CHECK_EQ(r->shared->sq_doorbells, 1);
	CHECK_EQ(r->sq_doorbell, 32);
	CHECK_EQ(rig_reap(r, 32), 0);
	CHECK_EQ(r->shared->cq_doorbells, 0);
	CHECK_EQ(rig_serve(r), 32);
	CHECK_EQ(rig_reap(r, 32), 32);
	CHECK_EQ(r->shared->cq_doorbells, 1);
	CHECK_EQ(r->cq_doorbell, 32);
	rig_free(r);
}

TEST(a_ring_takes_one_less_than_its_entries)
{
	static const uint32_t sizes[] = { 2, 3, 4, 17 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct rig *r = rig_new(sizes[i], -1);
		int fits = (int)sizes[i] - 1;
		struct nvme_sqe raw = { .cdw0 = 0x09 };

		CHECK_EQ(rig_submit(r, 0, 100), fits);
		CHECK_EQ(rig_submit(r, 0, 100), 0);
		CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, 0, 0, 0, 0, 0, 0, 0), -UDRV_EFULL);
		CHECK_EQ(udrv_qp_inflight(r->qp), fits);
		/* a full ring would look like an empty one */
		CHECK_EQ((r->sq_doorbell + 1) % sizes[i], 0);
		CHECK_EQ(rig_serve(r), fits);
		CHECK_EQ(rig_reap(r, 1), 1);
		CHECK_EQ(rig_submit(r, 0, 100), 1);
		rig_free(r);
	}
}

TEST(a_raw_command_may_lie_at_any_address)
{
	struct rig *r = rig_new(4, -1);
	uint8_t bytes[sizeof(struct nvme_sqe) + 16];
	struct nvme_sqe sqe;
	int i;

	for (i = 0; i < 16; i++) {
		memset(bytes, 0x5a, sizeof(bytes));
		memset(bytes + i, i, sizeof(sqe));
		CHECK_EQ(udrv_qp_submit_raw(r->qp, bytes + i, 0, 0, 0, 0, 0, 12, 0), 1);
		CHECK(rig_fetch(r, &sqe));
		CHECK_EQ(sqe.cdw15, i * 0x01010101u);
		rig_post(r, sqe_cid(&sqe), RIG_QID, 0, 0);
		CHECK_EQ(rig_reap(r, 1), 1);
	}
	rig_free(r);
}

TEST(a_raw_command_goes_as_it_is)
{
	struct rig *r = rig_new(4, -1);
	struct nvme_sqe raw, sqe;
	struct udrv_tracker *t;

	memset(&raw, 0xa5, sizeof(raw));
	CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, RIG_IOVA + 4, 4096, 5, 0x44, 4, 12, 99), 1);
	CHECK(rig_fetch(r, &sqe));
	check_prps(r, &sqe, RIG_IOVA + 4, 4096);
	t = &r->qp->trackers[sqe_cid(&sqe)];
	CHECK_EQ(t->user_data, 99);
	CHECK_EQ(t->len, 4096);
	CHECK_EQ(t->offset, 4);
	CHECK_EQ(t->slot, 12);
	CHECK_EQ(r->qp->slots[12].pool_id, 5);
	CHECK_EQ(r->qp->slots[12].pool_offset, 0x44);
	/* a slot is one buffer's until its last command is done */
	CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, RIG_IOVA, 4, 5, 0x48, 0, 12, 0), -UDRV_EINVAL);
	CHECK_EQ(udrv_qp_slot_inflight(r->qp, 12), 1);
	raw.cdw0 = (raw.cdw0 & 0xffff) | (uint32_t)sqe_cid(&sqe) << 16;
	raw.prp1 = sqe.prp1;
	raw.prp2 = sqe.prp2;
	CHECK(!memcmp(&raw, &sqe, sizeof(sqe)));

	CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, 2, 8, 0, 0, 0, 0, 0), -UDRV_EALIGN);
	CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, 0, RIG_MAX_TRANSFER + 4, 0, 0, 0, 0, 0),
		 -UDRV_ESIZE);
	CHECK_EQ(udrv_qp_submit_raw(r->qp, &raw, 0, 4, 0, 0, 0, UDRV_QP_SLOTS, 0), -UDRV_EINVAL);
	CHECK_EQ(r->sq_doorbell, 1);
	CHECK_EQ(udrv_qp_inflight(r->qp), 1);
	rig_free(r);
}

static const struct test tests[] = {
	{ "state_fits_its_memory_at_every_size", state_fits_its_memory_at_every_size },
	{ "init_refuses_what_cannot_be", init_refuses_what_cannot_be },
	{ "a_read_is_the_entry_that_the_specification_says",
	  a_read_is_the_entry_that_the_specification_says },
	{ "a_flush_carries_no_data_and_no_blocks", a_flush_carries_no_data_and_no_blocks },
	{ "a_raw_command_leaves_nothing_behind_for_the_batch_path",
	  a_raw_command_leaves_nothing_behind_for_the_batch_path },
	{ "each_change_of_shape_is_checked", each_change_of_shape_is_checked },
	{ "prps_describe_exactly_the_data", prps_describe_exactly_the_data },
	{ "every_command_has_a_prp_page_of_its_own", every_command_has_a_prp_page_of_its_own },
	{ "a_bad_row_anywhere_posts_nothing", a_bad_row_anywhere_posts_nothing },
	{ "the_last_block_and_the_last_byte_are_allowed",
	  the_last_block_and_the_last_byte_are_allowed },
	{ "a_window_outside_of_the_columns_is_refused", a_window_outside_of_the_columns_is_refused },
	{ "a_batch_rings_once_and_nothing_rings_for_nothing",
	  a_batch_rings_once_and_nothing_rings_for_nothing },
	{ "a_ring_takes_one_less_than_its_entries", a_ring_takes_one_less_than_its_entries },
	{ "a_raw_command_may_lie_at_any_address", a_raw_command_may_lie_at_any_address },
	{ "a_raw_command_goes_as_it_is", a_raw_command_goes_as_it_is },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

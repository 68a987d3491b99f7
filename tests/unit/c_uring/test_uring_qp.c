// SPDX-License-Identifier: Apache-2.0
/* The tracker logic of a queue over io_uring, against a kernel that does what the test says. */
#include "fake_ring.h"

#define ROWS 64
#define BUFFER 0x7f0000000000ull
#define NSZE 100000ull

static struct udrv_uring_qp *qp;
static struct udrv_batch batch;
static struct udrv_command rows[ROWS];
static struct udrv_completion done[ROWS];
static struct udrv_completions out = { .capacity = ROWS, .rows = done };

/* The command inside of a passthrough SQE, by the offsets of <linux/nvme_ioctl.h>. */
static uint32_t cmd32(unsigned nth, unsigned at)
{
	uint32_t v;

	memcpy(&v, fake.sqe[nth] + 48 + at, sizeof(v));
	return v;
}

static uint64_t cmd64(unsigned nth, unsigned at)
{
	return cmd32(nth, at) | (uint64_t)cmd32(nth, at + 4) << 32;
}

static void start(uint16_t depth, uint32_t flags)
{
	static const struct udrv_clock clock = { .mult = 1ull << 32 };
	struct udrv_uring_config config = {
		.qid = 1, .depth = depth, .flags = flags, .eventfd = -1, .max_transfer = 1 << 17,
		.align_mask = 3,
	};
	uint32_t i;

	CHECK_EQ(udrv_uring_core_init(&clock), 0);
	qp = calloc(1, sizeof(*qp));
	CHECK_EQ(udrv_uring_qp_init(qp, &config), 0);
	batch = (struct udrv_batch){
		.capacity = ROWS, .nsid = 3, .lba_shift = 9, .nsze = NSZE, .iova = BUFFER,
		.len = 1 << 20, .slot = 5, .file = 2, .buf_index = 7, .writable = 1,
		.commands = rows,
	};
	for (i = 0; i < ROWS; i++)
		rows[i] = (struct udrv_command){
			.slba = 10 * i, .offset = 4096 * i, .user_data = 1000 + i,
			.nlb = 8, .opcode = NVME_CMD_READ,
		};
}

static void end(void)
{
	udrv_uring_qp_exit(qp);
	free(qp);
}

static int submit(uint32_t first, uint32_t n)
{
	uint32_t bad = 99;

	return udrv_uring_qp_submit(qp, &batch, first, n, &bad);
}

TEST(a_command_is_what_the_row_says)
{
	start(8, UDRV_URING_FIXED_CMD);
	rows[0].slba = 0x12345;
	rows[0].control = 0x4000;
	rows[0].opcode = NVME_CMD_WRITE;
	rows[1].opcode = NVME_CMD_FLUSH;
	CHECK_EQ(submit(0, 2), 2);
	CHECK_EQ(fake.nr_seen, 2);
	CHECK_EQ(fake.enters, 1);
	CHECK_EQ(fake.sqe[0][0], IORING_OP_URING_CMD);
	CHECK_EQ(fake.sqe[0][1], IOSQE_FIXED_FILE);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->fd, 2);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->cmd_op, 0xC0484E80);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->rw_flags, IORING_URING_CMD_FIXED);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->buf_index, 7);
	CHECK_EQ(cmd32(0, 0) & 0xff, NVME_CMD_WRITE);
	CHECK_EQ(cmd32(0, 4), 3);		/* nsid */
	CHECK_EQ(cmd64(0, 24), BUFFER);		/* addr */
	CHECK_EQ(cmd32(0, 36), 4096);		/* data_len */
	CHECK_EQ(cmd64(0, 40), 0x12345);	/* cdw10, cdw11 */
	CHECK_EQ(cmd32(0, 48), 7u | 0x4000u << 16);
	CHECK_EQ(cmd32(1, 0) & 0xff, NVME_CMD_FLUSH);
	CHECK_EQ(cmd64(1, 24), 0);
	CHECK_EQ(cmd32(1, 36), 0);
	CHECK_EQ(cmd32(1, 48), 0);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[1])->rw_flags, 0);
	end();
}

TEST(an_older_kernel_gets_plain_addresses)
{
	start(8, 0);
	CHECK_EQ(submit(0, 1), 1);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->rw_flags, 0);
	CHECK_EQ(((struct io_uring_sqe *)fake.sqe[0])->buf_index, 0);
	CHECK_EQ(qp->counters.fixed, 0);
	end();
}

TEST(statuses_and_errnos_are_told_apart)
{
	start(8, 0);
	CHECK_EQ(submit(0, 4), 4);
	fake_cqe(fake.seen[2], 0, 0xdeadbeef12345678ull);
	fake_cqe(fake.seen[0], 0x4281, 5);
	fake_cqe(fake.seen[3], -EINTR, 77);
	fake_cqe(fake.seen[1], 0x370, 0);	/* the kernel's own Host Pathing Error */
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 4);
	CHECK_EQ(done[0].user_data, 1002);
	CHECK_EQ(done[0].status, 0);
	CHECK_EQ(done[0].result, 0xdeadbeef12345678ull);
	CHECK_EQ(done[1].user_data, 1000);
	CHECK_EQ(done[1].status, 0x4281);
	CHECK_EQ(done[2].user_data, 1003);
	CHECK_EQ(done[2].status, UDRV_STATUS_HOST);
	CHECK_EQ(done[2].result, EINTR);
	CHECK(done[2].status & 0x7ff);
	CHECK_EQ(done[3].status, 0x370);
	CHECK_EQ(udrv_uring_qp_inflight(qp), 0);
	end();
}

TEST(a_short_block_transfer_is_no_success)
{
	start(8, UDRV_URING_BLOCK);
	CHECK_EQ(submit(0, 3), 3);
	fake_cqe(fake.seen[0], 4096, 0);
	fake_cqe(fake.seen[1], 512, 0);
	fake_cqe(fake.seen[2], -EIO, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 3);
	CHECK_EQ(done[0].status, 0);
	CHECK_EQ(done[1].status, UDRV_STATUS_HOST);
	CHECK_EQ(done[1].result, EIO);
	CHECK_EQ(done[2].status, UDRV_STATUS_HOST);
	end();
}

TEST(block_rows_become_reads_writes_and_fsyncs)
{
	const struct io_uring_sqe *sqe;

	start(8, UDRV_URING_BLOCK);
	rows[0].slba = 0x123456789ull % NSZE;
	rows[1].opcode = NVME_CMD_WRITE;
	rows[1].control = 0x4000;	/* FUA */
	rows[2].opcode = NVME_CMD_FLUSH;
	rows[3].offset = 516;		/* no whole block: by its address */
	CHECK_EQ(submit(0, 4), 4);
	sqe = (void *)fake.sqe[0];
	CHECK_EQ(sqe->opcode, IORING_OP_READ_FIXED);
	CHECK_EQ(sqe->buf_index, 7);
	CHECK_EQ(sqe->off, (0x123456789ull % NSZE) << 9);
	CHECK_EQ(sqe->addr, BUFFER);
	CHECK_EQ(sqe->len, 4096);
	sqe = (void *)fake.sqe[1];
	CHECK_EQ(sqe->opcode, IORING_OP_WRITE_FIXED);
	CHECK_EQ(sqe->rw_flags, RWF_DSYNC);
	sqe = (void *)fake.sqe[2];
	CHECK_EQ(sqe->opcode, IORING_OP_FSYNC);
	CHECK_EQ(sqe->rw_flags | sqe->len | sqe->off | sqe->addr, 0);
	sqe = (void *)fake.sqe[3];
	CHECK_EQ(sqe->opcode, IORING_OP_READ);
	CHECK_EQ(sqe->addr, BUFFER + 516);
	rows[4].control = 0x8000;	/* LR: there is nothing like it */
	CHECK_EQ(submit(4, 1), -UDRV_ETRANSPORT);
	end();
}

TEST(a_bad_row_sends_nothing)
{
	static const struct { struct udrv_command row; int error; } bad[] = {
		{ { .nlb = 0, .opcode = NVME_CMD_READ }, UDRV_ERANGE },
		{ { .nlb = 1, .slba = NSZE, .opcode = NVME_CMD_READ }, UDRV_ERANGE },
		{ { .nlb = 2, .slba = NSZE - 1, .opcode = NVME_CMD_READ }, UDRV_ERANGE },
		{ { .nlb = 1, .slba = UINT64_MAX, .opcode = NVME_CMD_READ }, UDRV_ERANGE },
		{ { .nlb = 257, .opcode = NVME_CMD_READ }, UDRV_ESIZE },
		{ { .nlb = 2, .offset = (1 << 20) - 512, .opcode = NVME_CMD_READ }, UDRV_EBUFFER },
		{ { .nlb = 1, .offset = UINT64_MAX - 3, .opcode = NVME_CMD_READ }, UDRV_EBUFFER },
		{ { .nlb = 1, .offset = 2, .opcode = NVME_CMD_READ }, UDRV_EALIGN },
		{ { .nlb = 1, .opcode = 0x7f }, UDRV_EOPCODE },
	};
	unsigned i, k;

	start(8, 0);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct udrv_command good = rows[5];
		uint32_t row = 0;

		rows[5] = bad[i].row;
		CHECK_EQ(udrv_uring_qp_submit(qp, &batch, 0, 8, &row), -bad[i].error);
		CHECK_EQ(row, 5);
		rows[5] = good;
		for (k = 0; k < 8; k++)
			CHECK_EQ(qp->trackers[k].state, UDRV_TRACKER_FREE);
	}
	batch.writable = 0;
	rows[5].opcode = NVME_CMD_WRITE;
	CHECK_EQ(submit(0, 8), -UDRV_EREADONLY);
	batch.file = UDRV_URING_FILES;
	CHECK_EQ(submit(0, 1), -UDRV_EINVAL);
	CHECK_EQ(fake.enters, 0);
	CHECK_EQ(qp->counters.submitted, 0);
	CHECK_EQ(udrv_uring_qp_inflight(qp), 0);
	end();
}

TEST(what_the_kernel_did_not_take_goes_with_the_next_call)
{
	start(8, 0);
	fake.take_at_most = 3;
	CHECK_EQ(submit(0, 8), 8);
	CHECK_EQ(fake.nr_seen, 3);
	CHECK_EQ(qp->pending, 5);
	CHECK_EQ(submit(8, 1), 0);	/* all trackers are in use */
	fake.take_at_most = 0;
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 0);
	CHECK_EQ(fake.nr_seen, 8);
	CHECK_EQ(qp->pending, 0);
	end();
}

TEST(a_passing_error_keeps_the_commands_and_a_lasting_one_takes_them_back)
{
	start(8, 0);
	fake.enter_error = -EAGAIN;
	CHECK_EQ(submit(0, 2), 2);
	CHECK_EQ(qp->pending, 2);
	fake.enter_error = -EEXIST;
	CHECK_EQ(submit(2, 3), -EEXIST);
	CHECK_EQ(qp->pending, 2);
	CHECK_EQ(udrv_uring_qp_inflight(qp), 2);
	CHECK_EQ(udrv_uring_qp_slot_inflight(qp, 5), 2);
	fake.enter_error = 0;
	fake.complete_at_once = 1;
	CHECK_EQ(submit(2, 3), 3);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 5);
	CHECK_EQ(done[0].user_data, 1000);
	CHECK_EQ(done[4].user_data, 1004);
	end();
}

TEST(quarantined_commands_are_counted_and_not_delivered)
{
	start(8, 0);
	CHECK_EQ(submit(0, 2), 2);
	batch.slot = 6;
	CHECK_EQ(submit(2, 2), 2);
	CHECK_EQ(udrv_uring_qp_quarantine(qp, 5), 2);
	CHECK_EQ(udrv_uring_qp_quarantine(qp, 5), 0);
	CHECK_EQ(udrv_uring_qp_slot_inflight(qp, 5), 2);
	fake_cqe(fake.seen[0], 0, 0);
	fake_cqe(fake.seen[3], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 1);
	CHECK_EQ(done[0].user_data, 1003);
	CHECK_EQ(udrv_uring_qp_slot_inflight(qp, 5), 1);
	CHECK_EQ(udrv_uring_qp_slot_inflight(qp, 6), 1);
	CHECK_EQ(qp->counters.anomalies.late, 1);
	udrv_uring_qp_close(qp);
	CHECK_EQ(submit(4, 1), -UDRV_ECLOSED);
	CHECK_EQ(udrv_uring_qp_drain(qp, 1000000), 2);
	fake_cqe(fake.seen[1], 0, 0);
	fake_cqe(fake.seen[2], -EIO, 0);
	CHECK_EQ(udrv_uring_qp_drain(qp, 1000000), 0);
	CHECK_EQ(udrv_uring_qp_inflight(qp), 0);
	end();
}

TEST(a_completion_of_nothing_indexes_nothing)
{
	start(8, 0);
	CHECK_EQ(submit(0, 1), 1);
	fake_cqe(8, 0, 0);
	fake_cqe(UINT64_MAX, 0, 0);
	fake_cqe(3, 0, 0);
	fake_cqe(fake.seen[0], 0, 0);
	fake_cqe(fake.seen[0], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 1);
	CHECK_EQ(qp->counters.anomalies.bad_cid, 2);
	CHECK_EQ(qp->counters.anomalies.duplicate, 2);
	CHECK_EQ(qp->counters.consumed, 5);
	CHECK_EQ(qp->nr_free, 8);
	end();
}

TEST(raw_commands_are_checked_as_well)
{
	struct nvme_sqe sqe = { .cdw0 = 0x02, .nsid = 3, .cdw10 = 1, .cdw2 = 2, .cdw3 = 3,
				.cdw13 = 13, .cdw14 = 14, .cdw15 = 15 };

	start(2, UDRV_URING_FIXED_CMD);
	sqe.cdw0 |= 0x0100;	/* fused */
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 512, 1), -UDRV_ETRANSPORT);
	sqe.cdw0 = 0x4002;	/* SGL */
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 512, 1), -UDRV_ETRANSPORT);
	sqe.cdw0 = 0x02;
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 2, 512, 1), -UDRV_EALIGN);
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 1 << 20, 4, 1), -UDRV_EBUFFER);
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, UINT64_MAX, 4, 1), -UDRV_EBUFFER);
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 1 << 18, 1), -UDRV_ESIZE);
	batch.writable = 0;
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 8, 512, 9), 1);
	CHECK_EQ(cmd32(0, 8), 2);
	CHECK_EQ(cmd32(0, 12), 3);
	CHECK_EQ(cmd64(0, 24), BUFFER + 8);
	CHECK_EQ(cmd32(0, 60), 15);
	sqe.cdw0 = 0x08;	/* Write Zeroes moves no data, and writes */
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 0, 1), -UDRV_EREADONLY);
	/* an SQE that was used for it leaves nothing for the next command */
	fake_cqe(fake.seen[0], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 1);
	CHECK_EQ(done[0].user_data, 9);
	CHECK_EQ(submit(0, 2), 2);
	CHECK_EQ(cmd32(2, 8) | cmd32(2, 12) | cmd32(2, 52) | cmd32(2, 60), 0);
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 0, 1), -UDRV_EREADONLY);
	sqe.cdw0 = 0x02;
	CHECK_EQ(udrv_uring_qp_submit_raw(qp, &batch, &sqe, 0, 0, 1), 0);
	end();
}

TEST(flags_that_only_save_time_are_left_out_one_by_one)
{
	fake.refuse_flags = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER;
	start(8, UDRV_URING_ONE_THREAD);
	CHECK_EQ(qp->setup_flags & fake.refuse_flags, 0);
	CHECK(qp->setup_flags & IORING_SETUP_COOP_TASKRUN);
	CHECK(qp->setup_flags & IORING_SETUP_SUBMIT_ALL);
	CHECK(!qp->disabled);
	CHECK_EQ(submit(0, 1), 1);
	end();
	fake.refuse_flags |= IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL;
	start(8, UDRV_URING_ONE_THREAD | UDRV_URING_BLOCK);
	CHECK_EQ(qp->setup_flags & ~IORING_SETUP_CLAMP, 0);
	end();
}

TEST(a_kernel_without_large_entries_is_refused)
{
	struct udrv_uring_config config = { .depth = 8, .eventfd = -1, .align_mask = 3 };

	fake.refuse_flags = IORING_SETUP_SQE128;
	qp = calloc(1, sizeof(*qp));
	CHECK_EQ(udrv_uring_qp_init(qp, &config), -EINVAL);
	end();
}

/* What the load generator does: a batch is handed over, and waited for, by one system call. */
TEST(a_loop_pays_one_call_for_a_batch)
{
	struct udrv_queue queue;
	uint32_t bad;

	start(8, 0);
	fake.complete_at_once = 1;
	udrv_uring_qp_as_queue(qp, &queue);
	CHECK_EQ(queue.ops->enter(queue.handle), 0);
	CHECK_EQ(queue.ops->submit(queue.handle, &batch, 0, 8, &bad), 8);
	CHECK_EQ(fake.enters, 0);
	CHECK_EQ(queue.ops->wait(queue.handle, &out, 1, 8, 1000000000, 0), 8);
	CHECK_EQ(fake.enters, 1);
	CHECK_EQ(queue.ops->submit(queue.handle, &batch, 0, 8, &bad), 8);
	CHECK_EQ(queue.ops->reap(queue.handle, &out, 0, 8), 8);
	CHECK_EQ(fake.enters, 2);
	CHECK_EQ(queue.ops->reap(queue.handle, &out, 0, 8), 0);
	CHECK_EQ(queue.ops->wait(queue.handle, &out, 0, 8, 0, 0), 0);
	CHECK_EQ(fake.enters, 2);	/* nothing to fetch, nothing to pay */
	queue.ops->leave(queue.handle);
	end();
}

/* Any order of any submissions and completions: each command is delivered once, as it was. */
TEST(every_command_is_delivered_once)
{
	uint64_t seed = 4711, outstanding[16], expected[16];
	unsigned n = 0, round, i, sent = 0, got = 0;

	start(16, 0);
	for (round = 0; round < 20000; round++) {
		if (next_random(&seed) % 2) {
			uint32_t first = next_random(&seed) % ROWS, want, before;
			int ret;

			want = 1 + next_random(&seed) % (ROWS - first);
			for (i = first; i < first + want; i++)
				rows[i].user_data = next_random(&seed);
			fake.nr_seen = 0;
			before = n;
			ret = submit(first, want);
			CHECK_EQ(ret, want < 16 - before ? want : 16 - before);
			CHECK_EQ(fake.nr_seen, ret);
			for (i = 0; i < (unsigned)ret; i++) {
				outstanding[n] = fake.seen[i];
				expected[n++] = rows[first + i].user_data;
			}
			sent += (unsigned)ret;
		} else if (n) {
			unsigned k = 1 + next_random(&seed) % n, j;
			int ret;

			for (i = 0; i < k; i++) {
				j = next_random(&seed) % (n - i);
				fake_cqe(outstanding[j], 0, expected[j]);
				outstanding[j] = outstanding[n - 1 - i];
				expected[j] = expected[n - 1 - i];
			}
			ret = udrv_uring_qp_reap(qp, &out, 0, ROWS);
			CHECK_EQ(ret, k);
			for (i = 0; i < k; i++)
				CHECK_EQ(done[i].user_data, done[i].result);
			n -= k;
			got += k;
		}
		CHECK_EQ(udrv_uring_qp_inflight(qp), n);
		CHECK_EQ(udrv_uring_qp_slot_inflight(qp, 5), n);
		CHECK_EQ(qp->nr_free, 16 - n);
	}
	CHECK_EQ(sent, got + n);
	CHECK(sent > 20000);
	CHECK_EQ(qp->counters.anomalies.duplicate + qp->counters.anomalies.bad_cid, 0);
	end();
}

/* --- a stream: what the queue tells it, pass by pass --------------------------------------- */

static struct {
	unsigned passes, rows, n, notes, late_notes, wakes;
	struct udrv_tracker told[64];
} heard;

static void hear(struct udrv_stream *s, struct udrv_completion *row, uint32_t nr, uint32_t n,
		 const uint32_t *given)
{
	uint32_t i;

	for (i = 0; i < nr; i++) {
		heard.told[heard.rows++] =
			*(struct udrv_tracker *)((char *)s->trackers + given[i + heard.late_notes]);
		row[i].latency_ns = 77;
	}
	heard.n += n;
	heard.passes++;
	s->looked = 4711 + heard.passes;
}

static void hear_note(struct udrv_stream *s, uint32_t row, int late)
{
	(void)s;
	(void)row;
	heard.notes++;
	heard.late_notes += !!late;
}

static void hear_woke(struct udrv_stream *s, uint64_t slept_ns, uint64_t asked_ns)
{
	(void)s;
	CHECK(slept_ns < asked_ns + 60000000000ull);
	heard.wakes++;
}

TEST(a_stream_is_told_of_every_completion)
{
	static const struct udrv_stream_ops ops = { .note = hear_note, .woke = hear_woke };
	struct udrv_stream *s = aligned_alloc(UDRV_CACHELINE, sizeof(*s));
	uint32_t i;

	memset(s, 0, sizeof(*s));
	s->pass = hear;
	s->ops = &ops;
	start(50, 0);
	batch.nsid = 7;
	rows[1].opcode = NVME_CMD_WRITE;
	rows[2].nlb = 3;
	CHECK_EQ(submit(0, 3), 3);	/* before there is a stream */
	CHECK_EQ(udrv_uring_qp_set_stream(qp, s), 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 0);
	CHECK(s->polled && s->polled == s->looked);
	for (i = 0; i < 3; i++)
		fake_cqe(fake.seen[i], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 3);
	CHECK_EQ(heard.rows, 3);
	CHECK_EQ(s->polled, 4712);	/* nothing in flight: empty at the pass's own clock */
	CHECK_EQ(done[0].latency_ns, 77);
	CHECK_EQ(done[2].user_data, 1002);
	for (i = 0; i < 3; i++) {
		CHECK_EQ(heard.told[i].slba, rows[i].slba);
		CHECK_EQ(heard.told[i].len, rows[i].nlb * 512);
		CHECK_EQ(heard.told[i].about, UDRV_ABOUT(7, rows[i].opcode, rows[i].nlb));
		CHECK_EQ((uint32_t)heard.told[i].depth, 3);
		CHECK(heard.told[i].submit_ticks);
	}

	/* more than one pass takes; the last one may not have seen all */
	CHECK_EQ(submit(0, 41), 41);
	for (i = 3; i < 43; i++)
		fake_cqe(fake.seen[i], 0, 0);
	memset(&heard, 0, sizeof(heard));
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, 39), 39);
	CHECK_EQ(heard.passes, 2);
	CHECK_EQ(s->polled, 4712);	/* the 40th was not looked for */
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, 39), 1);
	CHECK(s->polled != 4712 && s->polled < s->looked + (1ull << 62));
	CHECK(s->polled != s->looked);	/* before the look, as one is in flight still */
	CHECK_EQ(heard.n, 40);
	fake_cqe(fake.seen[43], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, 39), 1);
	CHECK_EQ(s->polled, s->looked);

	/* one that was given up, and one of nothing */
	memset(&heard, 0, sizeof(heard));
	CHECK_EQ(submit(0, 1), 1);
	CHECK_EQ(udrv_uring_qp_quarantine(qp, 5), 1);
	batch.slot = 6;
	CHECK_EQ(submit(4, 1), 1);
	fake_cqe(fake.seen[44], 0, 0);
	fake_cqe(1 << 20, 0, 0);
	fake_cqe(fake.seen[45], 0, 0);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 1);
	CHECK_EQ(heard.n, 3);
	CHECK_EQ(heard.notes, 2);
	CHECK_EQ(heard.late_notes, 1);
	CHECK_EQ(heard.told[0].slba, rows[4].slba);

	CHECK_EQ(udrv_uring_qp_set_stream(qp, NULL), 0);
	fake.complete_at_once = 1;
	CHECK_EQ(submit(0, 1), 1);
	CHECK_EQ(udrv_uring_qp_reap(qp, &out, 0, ROWS), 1);
	CHECK_EQ(heard.n, 3);
	free(s);
	end();
}

static const struct test tests[] = {
	{ "a_stream_is_told_of_every_completion", a_stream_is_told_of_every_completion },
	{ "a_command_is_what_the_row_says", a_command_is_what_the_row_says },
	{ "an_older_kernel_gets_plain_addresses", an_older_kernel_gets_plain_addresses },
	{ "statuses_and_errnos_are_told_apart", statuses_and_errnos_are_told_apart },
	{ "a_short_block_transfer_is_no_success", a_short_block_transfer_is_no_success },
	{ "block_rows_become_reads_writes_and_fsyncs", block_rows_become_reads_writes_and_fsyncs },
	{ "a_bad_row_sends_nothing", a_bad_row_sends_nothing },
	{ "what_the_kernel_did_not_take_goes_with_the_next_call",
	  what_the_kernel_did_not_take_goes_with_the_next_call },
	{ "a_passing_error_keeps_the_commands_and_a_lasting_one_takes_them_back",
	  a_passing_error_keeps_the_commands_and_a_lasting_one_takes_them_back },
	{ "quarantined_commands_are_counted_and_not_delivered",
	  quarantined_commands_are_counted_and_not_delivered },
	{ "a_completion_of_nothing_indexes_nothing", a_completion_of_nothing_indexes_nothing },
	{ "raw_commands_are_checked_as_well", raw_commands_are_checked_as_well },
	{ "flags_that_only_save_time_are_left_out_one_by_one",
	  flags_that_only_save_time_are_left_out_one_by_one },
	{ "a_kernel_without_large_entries_is_refused", a_kernel_without_large_entries_is_refused },
	{ "a_loop_pays_one_call_for_a_batch", a_loop_pays_one_call_for_a_batch },
	{ "every_command_is_delivered_once", every_command_is_delivered_once },
};

int main(int argc, char **argv)
{
	return run_tests(tests, ARRAY_SIZE(tests), argc, argv);
}

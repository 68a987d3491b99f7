// SPDX-License-Identifier: Apache-2.0
/*
 * rings_rig.c - random calls on a ring, for the sanitizers. Usage: rings_rig SEED SETUP_FLAGS
 *
 * What must hold: each token ends once, each group is released once and only when its requests have
 * ended, and the counts agree with the model. The second half has two threads on one ring, of which
 * each call serves one and refuses the other.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <udrv/uring.h>

#define SLOTS 24
#define ROWS 8
#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%d: %s\n", __LINE__, #x); abort(); } } while (0)

static uint64_t rng;
static int pipe_fds[2], file;
static char memory[ROWS * 64];
static uint32_t group_of[1 << 20], left[SLOTS], started, ended;

static uint32_t pick(uint32_t n)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(rng >> 33) % n;
}

static uint32_t free_group(void)
{
	uint32_t g = 0;

	while (left[g])
		g++;
	CHECK(g < SLOTS);
	return g;
}

static void reap(struct udrv_uring *u, uint32_t max)
{
	uint64_t user_data[64], token[64], big[128];
	uint32_t flags[64], group;
	int32_t res[64];
	struct udrv_uring_completions out = { .capacity = 64, .user_data = user_data,
		.token = token, .res = res, .flags = flags, .big = big };
	int i, n = udrv_uring_reap(u, &out, max);

	CHECK(n >= 0 && n <= (int)max);
	for (i = 0; i < n; i++) {
		CHECK(user_data[i] < started && group_of[user_data[i]] < SLOTS);
		CHECK(left[group_of[user_data[i]]]);
		if (--left[group_of[user_data[i]]] == 0)
			left[group_of[user_data[i]]] = ~0u;	/* to be released */
		group_of[user_data[i]] = ~0u;
		ended++;
	}
	while ((group = udrv_uring_released(u)) != UDRV_URING_NO_GROUP) {
		CHECK(left[group] == ~0u);
		left[group] = 0;
	}
	for (i = 0; i < SLOTS; i++)
		CHECK(left[i] != ~0u);
}

static void one(struct udrv_uring *u)
{
	struct udrv_uring_op op = { .group = free_group(), .user_data = started, .fd = pipe_fds[0],
		.addr = (uintptr_t)memory, .len = 1 };
	int64_t token;

	switch (pick(4)) {
	case 0:
		op.opcode = IORING_OP_TIMEOUT;
		token = udrv_uring_prep_timeout(u, &op, pick(2) * 60, 1000);
		break;
	case 1:
		op.opcode = IORING_OP_URING_CMD;
		token = udrv_uring_prep_cmd(u, &op, memory, pick(100));
		break;
	default:
		op.opcode = pick(2) ? IORING_OP_READ : IORING_OP_NOP;
		token = udrv_uring_prep(u, &op);
	}
	if (token > 0) {
		group_of[started++] = op.group;
		left[op.group]++;
	}
}

static void many(struct udrv_uring *u)
{
	uint8_t opcode[ROWS], flags[ROWS];
	int32_t fd[ROWS];
	uint64_t file_offset[ROWS], buffer_offset[ROWS], user_data[ROWS], token[ROWS];
	uint32_t length[ROWS], rw_flags[ROWS] = { 0 }, i, bad, group = free_group();
	uint16_t buf_index[ROWS] = { 0 };
	struct udrv_uring_batch b = { .capacity = ROWS, .writable = 1, .base = (uintptr_t)memory,
		.size = sizeof(memory), .opcode = opcode, .flags = flags, .fd = fd,
		.file_offset = file_offset, .buffer_offset = buffer_offset, .length = length,
		.rw_flags = rw_flags, .buf_index = buf_index, .user_data = user_data,
		.token = token };
	int n;

	for (i = 0; i < ROWS; i++) {
		opcode[i] = pick(30) ? (pick(2) ? IORING_OP_READ : IORING_OP_NOP) : pick(256);
		flags[i] = pick(30) ? (pick(3) ? 0 : IOSQE_IO_LINK) : pick(256);
		flags[i] &= (uint8_t)~IOSQE_IO_DRAIN;	/* would wait for the pipe */
		fd[i] = file;
		file_offset[i] = pick(4096);
		buffer_offset[i] = pick(ROWS) * 64;
		length[i] = pick(40) ? pick(65) : pick(600);
		user_data[i] = started + i;
	}
	i = pick(ROWS + 1);
	n = udrv_uring_push(u, &b, i, pick(ROWS + 1), group, &bad);
	CHECK(n >= 0 || n <= -UDRV_URING_EBUSY);
	CHECK(n >= 0 || bad <= ROWS);
	for (; n > 0; n--, i++) {
		CHECK(user_data[i] < sizeof(group_of) / sizeof(*group_of));
		group_of[user_data[i]] = group;
		left[group]++;
	}
	started += ROWS;
}

static void check(struct udrv_uring *u)
{
	struct udrv_uring_counts counts;
	uint32_t i, total = 0;

	CHECK(!udrv_uring_counts(u, &counts));
	for (i = 0; i < SLOTS; i++)
		total += left[i];
	CHECK(counts.inflight == total && counts.unsubmitted <= total && !counts.dropped);
	CHECK(!u->strays);
}

static void *intrude(void *arg)
{
	struct udrv_uring *u = arg;
	struct udrv_uring_op op = { .opcode = IORING_OP_NOP, .group = UDRV_URING_NO_GROUP };
	uint64_t user_data[4], token[4], big[8];
	uint32_t flags[4];
	int32_t res[4];
	struct udrv_uring_completions out = { .capacity = 4, .user_data = user_data,
		.token = token, .res = res, .flags = flags, .big = big };
	uint64_t prepared = 0, reaped = 0, tries;

	for (tries = 0; tries < 20000; tries++) {
		int64_t ret = udrv_uring_prep(u, &op);

		prepared += ret > 0;
		CHECK(ret > 0 || ret == -UDRV_URING_EBUSY || ret == -UDRV_URING_ESQFULL ||
		      ret == -UDRV_URING_ESLOTS);
		ret = udrv_uring_submit(u);
		CHECK(ret >= 0 || ret == -UDRV_URING_EBUSY);
		ret = udrv_uring_reap(u, &out, 4);
		CHECK(ret >= 0 || ret == -UDRV_URING_EBUSY);
		reaped += ret > 0 ? (uint64_t)ret : 0;
	}
	return (void *)(uintptr_t)(prepared - reaped);
}

int main(int argc, char **argv)
{
	struct io_uring_params params = { .flags = argc > 2 ? (uint32_t)atoi(argv[2]) : 0 };
	struct udrv_uring *u = udrv_uring_new(SLOTS);
	uint32_t round;
	pthread_t other;
	void *theirs;
	intptr_t ours;

	rng = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	file = open(argv[0], O_RDONLY);
	CHECK(u && file >= 0 && !pipe(pipe_fds) && !udrv_uring_open(u, ROWS, &params));
	for (round = 0; round < 4000; round++) {
		switch (pick(10)) {
		case 0: case 1: case 2:
			if (udrv_uring_reap(u, &(struct udrv_uring_completions){ 0 }, 4) < 0)
				abort();	/* no room: takes none */
			one(u);
			break;
		case 3: case 4:
			many(u);
			break;
		case 5:
			CHECK(udrv_uring_submit(u) >= 0);
			break;
		case 6:
			CHECK(write(pipe_fds[1], memory, 1) == 1);
			break;
		case 7:
			CHECK(udrv_uring_wait(u, pick(4), 200000, (int)pick(2)) >= 0);
			break;
		case 8:
			if (!pick(4))
				CHECK(!udrv_uring_cancel_all(u, (int)pick(2)));
			break;
		default:
			reap(u, pick(64));
		}
		if (!pick(8) && udrv_uring_submit(u) >= 0)
			reap(u, 64);
		check(u);
	}
	CHECK(udrv_uring_submit(u) >= 0);
	for (round = 0; round < 10000 && ended < u->prepared; round++) {
		CHECK(!udrv_uring_cancel_all(u, 1));
		CHECK(udrv_uring_wait(u, 1, 1000000, 0) >= 0);
		reap(u, 64);
	}
	check(u);
	CHECK(ended == u->prepared);

	CHECK(!pthread_create(&other, NULL, intrude, u));
	ours = (intptr_t)intrude(u);
	CHECK(!pthread_join(other, &theirs));
	for (round = 0; round < 1000 && u->completed < u->prepared; round++) {
		CHECK(udrv_uring_submit(u) >= 0);
		CHECK(udrv_uring_wait(u, 1, 1000000, 0) >= 0);
		ours -= udrv_uring_reap(u, &(struct udrv_uring_completions){
			.capacity = 4, .user_data = (uint64_t[4]){ 0 }, .token = (uint64_t[4]){ 0 },
			.res = (int32_t[4]){ 0 }, .flags = (uint32_t[4]){ 0 },
			.big = (uint64_t[8]){ 0 } }, 4);
	}
	CHECK(ours + (intptr_t)theirs == 0);
	CHECK(!udrv_uring_exit(u) && udrv_uring_submit(u) == -UDRV_URING_ECLOSED);
	udrv_uring_free(u);
	return 0;
}

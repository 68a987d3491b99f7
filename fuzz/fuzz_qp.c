// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_qp.c - the driver's queue pair against a device that writes anything: completion entries,
 * shadow doorbells, EventIdx, at any time, twice, out of order, for commands that are not there.
 *
 * Beside it runs a model of what the driver was told: every command is delivered once at most, one
 * in quarantine never, and the counts of what is in flight agree.
 */
#include <stdbool.h>

#include <udrv/qp.h>
#include <udrv/wait.h>

#include "input.h"

#define MOST 40u
#define ROWS 48u
#define SLOTS 3u

enum fate { NEVER, FLYING, GIVEN_UP, ABORTED, DONE };

static struct {
	struct input in;
	struct udrv_qp *qp;
	struct udrv_qp_shared *shared;
	struct nvme_sqe *sq;
	struct nvme_cqe *cq;
	uint64_t *prp;
	uint32_t doorbells[2];
	uint32_t shadow[4];
	uint32_t entries;
	uint32_t tail; /* where a well-behaved device would post next */
	uint32_t phase;
	uint64_t issued;
	uint8_t fate[4096];
	uint8_t slot[4096];
} t;

static void *area(size_t size, size_t align)
{
	void *at = NULL;

	MUST(posix_memalign(&at, align, size) == 0);
	memset(at, 0, size);
	return at;
}

static void start(void)
{
	uint8_t how = in_u8(&t.in);
	bool shadows = how & 1;
	struct udrv_qp_config config = { .qid = (how & 2) ? 0xffff : 3, .eventfd = -1,
					 .flags = (how & 4) ? UDRV_QP_UNTIMED : 0,
					 .prp_iova = 0x100000,
					 .max_transfer = UDRV_QP_PRP_MAX_TRANSFER };

	t.entries = 2 + in_below(&t.in, MOST - 2);
	config.entries = (uint16_t)t.entries;
	config.shared = t.shared = area(udrv_qp_shared_size(t.entries), 64);
	config.sq = t.sq = area(t.entries * 64ul, 4096);
	config.cq = t.cq = area(t.entries * 16ul, 4096);
	config.prp = t.prp = area((t.entries - 1) * 4096ul, 4096);
	config.sq_doorbell = &t.doorbells[0];
	config.cq_doorbell = &t.doorbells[1];
	memset(t.shadow, 0, sizeof(t.shadow));
	if (shadows) {
		config.sq_shadow = &t.shadow[0];
		config.cq_shadow = &t.shadow[1];
		config.sq_event = &t.shadow[2];
		config.cq_event = &t.shadow[3];
	}
	t.qp = udrv_qp_new();
	MUST(t.qp && udrv_qp_init(t.qp, &config) == 0);
	t.doorbells[0] = t.doorbells[1] = 0;
	t.tail = 0;
	t.phase = 1;
	t.issued = 0;
	memset(t.fate, 0, sizeof(t.fate));
}

static void end(void)
{
	udrv_qp_free(t.qp);
	free(t.shared);
	free(t.sq);
	free(t.cq);
	free(t.prp);
}

static uint32_t count(enum fate fate, uint32_t slot)
{
	uint32_t n = 0;

	for (uint64_t i = 0; i < t.issued; i++)
		n += t.fate[i] == fate && (slot == SLOTS || t.slot[i] == slot);
	return n;
}

static void note(uint64_t n, uint8_t slot)
{
	for (uint64_t i = 0; i < n; i++) {
		t.fate[t.issued + i] = FLYING;
		t.slot[t.issued + i] = slot;
	}
	t.issued += n;
}

static void submit(void)
{
	struct udrv_command rows[ROWS];
	uint8_t slot = in_u8(&t.in) % SLOTS;
	uint32_t n = 1 + in_below(&t.in, ROWS), bad = UINT32_MAX;
	struct udrv_batch batch = { .capacity = ROWS, .nsid = 1u + slot, .lba_shift = 9,
				    .nsze = 1000, .iova = 0x40000000ull, .len = 1 << 20,
				    .slot = slot, .pool_id = slot, .commands = rows };
	bool any = in_u8(&t.in) & 1;
	int ret;

	if (t.issued + ROWS > sizeof(t.fate))
		return;
	for (uint32_t i = 0; i < n; i++) {
		rows[i] = (struct udrv_command){ .slba = i, .nlb = 1 + i % 16,
						 .offset = i * 512ull, .opcode = 1 + i % 2,
						 .user_data = t.issued + i };
		if (any && in_left(&t.in)) { /* one field of it is anything */
			switch (in_u8(&t.in) % 6) {
			case 0:
				rows[i].slba = in_word(&t.in);
				break;
			case 1:
				rows[i].nlb = (uint32_t)in_word(&t.in);
				break;
			case 2:
				rows[i].offset = in_word(&t.in);
				break;
			case 3:
				rows[i].opcode = in_u8(&t.in);
				break;
			default:
				break;
			}
		}
	}
	ret = udrv_qp_submit(t.qp, &batch, 0, n, &bad);
	if (ret > 0) {
		MUST((uint32_t)ret <= n);
		note((uint32_t)ret, slot);
	} else if (ret < 0) {
		MUST(bad < n || ret == -UDRV_ECLOSED || ret == -UDRV_EHALTED);
	}
}

static void submit_raw(void)
{
	uint8_t sqe[64], slot = in_u8(&t.in) % SLOTS;
	uint32_t len = (uint32_t)in_word(&t.in);
	int ret;

	if (t.issued == sizeof(t.fate))
		return;
	in_bytes(&t.in, sqe, sizeof(sqe));
	/* a buffer that the slot has; what it transfers is the caller's word */
	ret = udrv_qp_submit_raw(t.qp, sqe, 0x40000000ull + (in_u8(&t.in) & ~3u), len, slot, 0, 0,
				 slot, t.issued);
	if (ret == 1)
		note(1, slot);
	MUST(ret == 1 || ret < 0);
}

static void deliver(const struct udrv_completion *rows, int n)
{
	for (int i = 0; i < n; i++) {
		uint64_t which = rows[i].user_data;

		MUST(which < t.issued);
		/* in flight, and now done; what a reset ended, with the status that says so */
		MUST(t.fate[which] == FLYING ||
		     (t.fate[which] == ABORTED && rows[i].status == UDRV_STATUS_ABORTED_BY_HOST));
		t.fate[which] = DONE;
	}
}

static void reap(bool wait)
{
	uint32_t capacity = 1 + in_below(&t.in, ROWS), max = in_below(&t.in, ROWS + 2);
	uint32_t first = in_u8(&t.in) % 4;
	/* exactly as many as there may be: one more would be seen */
	struct udrv_completion *rows = malloc(capacity * sizeof(*rows));
	struct udrv_completions out = { .capacity = capacity, .rows = rows };
	int n;

	MUST(rows);
	if (wait) {
		first = 0;
		n = udrv_qp_wait(t.qp, &out, max ? 1 : 0, max, 0, UDRV_SPIN_ONLY);
	} else {
		n = udrv_qp_reap(t.qp, &out, first, max);
	}
	MUST(n <= (int)max && (n <= 0 || first + (uint32_t)n <= capacity));
	deliver(rows + first, n);
	free(rows);
}

/* What the device was given and has not completed: its command id is in the ring. */
static uint16_t some_cid(void)
{
	const struct nvme_sqe *sqe = &t.sq[in_u8(&t.in) % t.entries];

	return (uint16_t)(sqe->cdw0 >> 16);
}

static void post(void)
{
	uint8_t how = in_u8(&t.in), n = 1 + in_u8(&t.in) % 8;

	while (n--) {
		struct nvme_cqe *cqe = &t.cq[t.tail];
		uint16_t cid = some_cid(), sqid = (uint16_t)t.qp->qid;
		uint32_t phase = t.phase;

		if (how & 1)
			cid = (uint16_t)in_word(&t.in);
		if (how & 2)
			sqid = (uint16_t)in_word(&t.in);
		if ((how & 12) == 12)
			phase = in_u8(&t.in) & 1;
		cqe->dw0 = in_u8(&t.in);
		cqe->dw2 = (uint32_t)sqid << 16;
		cqe->dw3 = cid | phase << 16 | (how & 16 ? (uint32_t)in_u16(&t.in) << 17 : 0);
		t.tail = (t.tail + 1) % t.entries;
		t.phase ^= !t.tail;
	}
}

static void scribble(void)
{
	uint32_t size = t.entries * 16u, at = in_u16(&t.in) % size, n = in_u8(&t.in);

	in_bytes(&t.in, (uint8_t *)t.cq + at, n < size - at ? n : size - at);
}

/* A whole ring of entries with the phase that the driver looks for. */
static void flood(void)
{
	uint32_t seed = in_u32(&t.in);

	for (uint32_t i = 0; i < t.entries; i++) {
		seed = seed * 1664525u + 1013904223u;
		t.cq[i].dw2 = t.qp->qid << 16;
		t.cq[i].dw3 = (seed >> 16) % (t.entries + 2) | t.shared->cq_phase << 16;
	}
}

static void quarantine(void)
{
	uint32_t slot = in_u8(&t.in) % (SLOTS + 1);
	int n = udrv_qp_quarantine(t.qp, slot == SLOTS ? UDRV_QP_SLOTS : slot);

	if (n < 0)
		return;
	MUST((uint32_t)n == count(FLYING, slot) + count(ABORTED, slot));
	for (uint64_t i = 0; i < t.issued; i++) {
		if (slot != SLOTS && t.slot[i] != slot)
			continue;
		if (t.fate[i] == FLYING)
			t.fate[i] = GIVEN_UP;
		else if (t.fate[i] == ABORTED)
			t.fate[i] = DONE; /* the reset was the proof */
	}
}

static void release(void)
{
	if (udrv_qp_release_all(t.qp) < 0)
		return;
	for (uint64_t i = 0; i < t.issued; i++) {
		if (t.fate[i] != DONE)
			t.fate[i] = DONE;
	}
}

static void reset(void)
{
	bool resume = in_u8(&t.in) & 3;
	int n;

	if (udrv_qp_halt(t.qp))
		return;
	n = udrv_qp_restart(t.qp);
	MUST(n == (int)count(FLYING, SLOTS));
	for (uint64_t i = 0; i < t.issued; i++) {
		if (t.fate[i] == FLYING)
			t.fate[i] = ABORTED;
		else if (t.fate[i] == GIVEN_UP)
			t.fate[i] = DONE;
	}
	t.tail = 0;
	t.phase = 1;
	if (resume)
		udrv_qp_resume(t.qp);
}

static void overdue(void)
{
	static const uint64_t limits[256] = { [1] = 1, [2] = 1 };
	struct udrv_overdue out[4];
	uint32_t n = udrv_qp_overdue(t.qp, limits, out, 4);

	MUST(n <= 4 && udrv_qp_unreaped(t.qp) <= t.entries);
	for (uint32_t i = 0; i < n; i++)
		MUST(out[i].cid < t.entries - 1 && t.fate[out[i].user_data] == FLYING);
}

static void check(void)
{
	uint32_t flying = count(FLYING, SLOTS), aborted = count(ABORTED, SLOTS);
	uint32_t given_up = count(GIVEN_UP, SLOTS), inflight = udrv_qp_inflight(t.qp), sum = 0;

	/* one in quarantine is in flight until its completion came, which nobody tells us of */
	MUST(inflight >= flying + aborted && inflight <= flying + aborted + given_up);
	for (uint16_t slot = 0; slot < SLOTS; slot++)
		sum += udrv_qp_slot_inflight(t.qp, slot);
	MUST(sum == inflight);
	MUST(t.shared->nr_free + inflight == t.entries - 1);
	MUST(t.shared->cq_head < t.entries && t.shared->sq_posted < t.entries);
	MUST(t.doorbells[0] < t.entries && t.doorbells[1] < t.entries);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool initialised;

	if (!initialised)
		MUST(udrv_core_init() == 0);
	initialised = true;
	t.in = (struct input){ .at = data, .end = data + size };
	start();
	while (in_left(&t.in)) {
		uint8_t what = in_u8(&t.in);

		if (what < 0x30)
			submit();
		else if (what < 0x38)
			submit_raw();
		else if (what < 0x70)
			post();
		else if (what < 0xa0)
			reap(false);
		else if (what < 0xb0)
			reap(true);
		else if (what < 0xc0)
			scribble();
		else if (what < 0xc8)
			flood();
		else if (what < 0xd4)
			t.shadow[what & 3] = (uint32_t)in_word(&t.in);
		else if (what < 0xdc)
			quarantine();
		else if (what < 0xe0)
			release();
		else if (what < 0xe8)
			reset();
		else if (what < 0xec)
			udrv_qp_resume(t.qp);
		else if (what < 0xf0)
			udrv_qp_ring(t.qp);
		else if (what < 0xfe)
			overdue();
		else
			udrv_qp_close(t.qp);
		check();
	}
	end();
	return 0;
}

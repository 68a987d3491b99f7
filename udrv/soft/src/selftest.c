// SPDX-License-Identifier: Apache-2.0
/*
 * Device Self-test (NVMe 1.4, 5.8 and 8.11). It takes simulated time; what it finds is true: the
 * extended one fails at the first block that cannot be read.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define SHORT_NS 200000000ull
#define EXTENDED_NS 1000000000ull

#define CODE_SHORT 1u
#define CODE_EXTENDED 2u
#define CODE_ABORT 15u

#define RESULT_UNUSED 15u
#define MEDIA_SEGMENT 2u
#define VALID_NSID 1u
#define VALID_LBA 2u
#define VALID_STATUS 12u

static struct nv_self_test_result *add_result(struct udrv_soft *c, uint8_t result)
{
	struct soft_self_test *t = &c->test;

	memmove(&t->result[1], &t->result[0], (NV_SELF_TEST_RESULTS - 1) * sizeof(t->result[0]));
	if (t->nr_results < NV_SELF_TEST_RESULTS)
		t->nr_results++;
	t->result[0] = (struct nv_self_test_result){
		.status = (uint8_t)(t->code << 4 | result),
		.power_on_hours = soft_power_on_hours(c),
		.valid = t->nsid ? VALID_NSID : 0,
		.nsid = t->nsid,
	};
	return &t->result[0];
}

void soft_self_test_abort(struct udrv_soft *c, enum soft_test_result why)
{
	if (!c->test.code)
		return;
	/* 8.11.2: the extended test goes on after a reset. */
	if (why == SOFT_TEST_RESET && c->test.code == CODE_EXTENDED)
		return;
	add_result(c, (uint8_t)why);
	c->test.code = 0;
	soft_schedule(c);
}

static bool tested(const struct udrv_soft *c, uint32_t nsid)
{
	return soft_ns_active(c, nsid) && (c->test.nsid == nsid || c->test.nsid == NV_NSID_ALL);
}

void soft_self_test_end(struct udrv_soft *c)
{
	struct nv_self_test_result *r = add_result(c, SOFT_TEST_PASSED);

	for (uint32_t nsid = 1; c->test.code == CODE_EXTENDED && nsid <= UDRV_SOFT_MAX_NS; nsid++) {
		uint64_t lba;

		if (!tested(c, nsid) || !soft_media_first_bad(&c->media[nsid - 1], &lba))
			continue;
		r->status = (uint8_t)(c->test.code << 4 | SOFT_TEST_FAILED);
		r->segment = MEDIA_SEGMENT;
		r->valid = VALID_NSID | VALID_LBA | VALID_STATUS;
		r->nsid = nsid;
		r->lba = lba;
		r->sct = NV_READ_ERROR >> 8 & 7;
		r->sc = NV_READ_ERROR & 0xff;
		break;
	}
	c->test.code = 0;
}

uint16_t soft_self_test(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_self_test *t = &c->test;
	uint32_t code = cmd->cdw10 & 15, nsid = cmd->nsid;

	if (code != CODE_SHORT && code != CODE_EXTENDED && code != CODE_ABORT)
		return NV_INVALID_FIELD;
	if (nsid && nsid != NV_NSID_ALL) {
		if (nsid > c->cfg.nn)
			return NV_INVALID_NS;
		if (!soft_ns_active(c, nsid))
			return NV_INVALID_FIELD;
	}
	if (code == CODE_ABORT) {
		soft_self_test_abort(c, SOFT_TEST_COMMAND);
		return NV_OK;
	}
	if (t->code)
		return NV_SELF_TESTING;
	t->code = (uint8_t)code;
	t->nsid = nsid;
	t->start_ns = soft_now_ns();
	t->end_ns = t->start_ns + (code == CODE_SHORT ? SHORT_NS : EXTENDED_NS);
	soft_schedule(c);
	return NV_OK;
}

void soft_self_test_log(struct udrv_soft *c, struct nv_self_test_log *log)
{
	const struct soft_self_test *t = &c->test;
	uint64_t now = soft_now_ns();

	if (t->code) {
		log->operation = t->code;
		/* soft_tick() ends it in time, so this is under 100. */
		log->completion = (uint8_t)((now - t->start_ns) * 100 / (t->end_ns - t->start_ns));
		if (log->completion > 99)
			log->completion = 99;
	}
	for (uint32_t i = 0; i < NV_SELF_TEST_RESULTS; i++) {
		log->result[i] = t->result[i];
		if (i >= t->nr_results)
			log->result[i].status = RESULT_UNUSED;
	}
}

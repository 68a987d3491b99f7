// SPDX-License-Identifier: Apache-2.0
/*
 * Sanitize (NVMe 1.4, 5.24 and 8.15): block and crypto erase, both of which leave zeroes. It takes
 * simulated time, goes on through resets, and refuses nearly everything else meanwhile.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#define DURATION_NS 300000000ull
#define DURATION_S 1u

enum { EXIT_FAILURE_MODE = 1, BLOCK_ERASE = 2, CRYPTO_ERASE = 4 };

#define UNRESTRICTED_EXIT (1u << 3)

/* SSTAT */
#define SUCCESS 1u
#define IN_PROGRESS 2u
#define FAILED 3u
#define STATE_MASK 7u
#define ALL_ERASED (1u << 8)

static void mark(struct udrv_soft *c, uint32_t set, uint32_t clear)
{
	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++)
		c->media[i].special = (c->media[i].special & ~clear) | set;
}

bool soft_sanitize_failed(const struct udrv_soft *c)
{
	return (c->sanitize.status & STATE_MASK) == FAILED;
}

void soft_sanitize_end(struct udrv_soft *c)
{
	struct soft_sanitize *s = &c->sanitize;
	bool good = true;

	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++) {
		if (c->media[i].allocated)
			good &= soft_media_erase(&c->media[i]) && soft_media_sync(&c->media[i]);
	}
	s->running = false;
	if (good) {
		s->status = SUCCESS | ALL_ERASED;
		mark(c, MEDIA_ERASED, MEDIA_SANITIZING);
	} else {
		s->status = FAILED;
	}
	soft_event_raise(c, NV_EVENT_IO, NV_EVENT_SANITIZED, NV_LOG_SANITIZE);
}

uint32_t soft_sanitize_special(const struct udrv_soft *c)
{
	return c->sanitize.status & ALL_ERASED ? MEDIA_ERASED : 0;
}

void soft_sanitize_written(struct udrv_soft *c)
{
	c->sanitize.status &= (uint16_t)~ALL_ERASED;
	mark(c, 0, MEDIA_ERASED);
}

uint16_t soft_sanitize(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_sanitize *s = &c->sanitize;
	uint32_t action = cmd->cdw10 & 7;

	if (s->running)
		return NV_SANITIZING;
	if (action == EXIT_FAILURE_MODE) {
		if (!soft_sanitize_failed(c))
			return NV_OK;
		if (!(s->cdw10 & UNRESTRICTED_EXIT))
			return NV_SANITIZE_FAILED; /* only another operation that succeeds */
		s->status = 0;
		mark(c, 0, MEDIA_SANITIZING);
		return NV_OK;
	}
	/* SANICAP: neither overwrite nor anything else. */
	if (action != BLOCK_ERASE && action != CRYPTO_ERASE)
		return NV_INVALID_FIELD;
	if (c->slots.next)
		return NV_FIRMWARE_RESET; /* 5.24: not while an activation is pending */
	soft_self_test_abort(c, SOFT_TEST_SANITIZE);
	*s = (struct soft_sanitize){ .running = true, .status = IN_PROGRESS, .cdw10 = cmd->cdw10,
				     .start_ns = soft_now_ns() };
	s->end_ns = s->start_ns + DURATION_NS;
	mark(c, MEDIA_SANITIZING, MEDIA_ERASED);
	soft_schedule(c);
	return NV_OK;
}

void soft_sanitize_log(const struct udrv_soft *c, struct nv_sanitize_log *log)
{
	const struct soft_sanitize *s = &c->sanitize;
	uint64_t done = soft_now_ns() - s->start_ns;

	log->progress = 0xffff;
	if (s->running) {
		if (done > DURATION_NS - 1)
			done = DURATION_NS - 1;
		log->progress = (uint16_t)(done * 65535 / DURATION_NS);
	}
	log->status = s->status;
	log->cdw10 = s->cdw10;
	log->overwrite_s = log->overwrite_no_deallocate_s = 0xffffffff;
	log->block_s = log->block_no_deallocate_s = DURATION_S;
	log->crypto_s = log->crypto_no_deallocate_s = DURATION_S;
}

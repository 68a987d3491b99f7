// SPDX-License-Identifier: Apache-2.0
/*
 * I/O commands besides Read, Write, Compare and Flush (NVM command set 1.0, 3.2): Write Zeroes,
 * Write Uncorrectable, Verify, Dataset Management, Copy. Their ranges are checked before the first
 * block is touched.
 */
#define _GNU_SOURCE
#include "block.h"

#include <string.h>

/* Blocks that Verify and Write Zeroes work on at a time. */
#define CHUNK 256u

static uint64_t slba_of(const struct nv_sqe *cmd)
{
	return (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
}

static uint32_t blocks_of(const struct nv_sqe *cmd)
{
	return (cmd->cdw12 & 0xffff) + 1;
}

static bool durable(const struct udrv_soft *c, const struct nv_sqe *cmd)
{
	return cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache;
}

/* --- Write Zeroes -------------------------------------------------------------------------- */

static void zero_meta(struct udrv_soft *c, struct soft_media *m, const struct soft_pi *pi,
		      uint64_t slba, uint32_t blocks)
{
	for (uint32_t done = 0; done < blocks;) {
		uint32_t part = blocks - done < CHUNK ? blocks - done : CHUNK;
		struct soft_pi here = *pi;

		if (m->pi != 3)
			here.ref += done;
		memset(scratch_of(c)->meta, 0, (size_t)part * m->ms);
		if (m->pi && pi->info & NV_PR_ACT)
			soft_pi_make(m, &here, NULL, scratch_of(c)->meta, part);
		soft_put_meta(c, m, slba + done, part);
		done += part;
	}
}

static uint16_t write_zeroes(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	uint64_t slba = slba_of(cmd);
	uint32_t blocks = blocks_of(cmd);
	bool give_back = cmd->cdw12 & NV_IO_DEAC;
	struct soft_pi pi = soft_pi_of(cmd);
	uint16_t status = soft_pi_allowed(m, &pi, slba);

	if (!soft_in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	if (status)
		return status;
	if (m->pi && pi.info & (NV_PR_GUARD | NV_PR_APP | NV_PR_REF))
		return NV_INVALID_PI; /* 3.2.8: there is nothing to check */
	status = soft_media_zero(m, slba << m->lba_shift, (uint64_t)blocks << m->lba_shift,
				 give_back);
	if (status)
		return status;
	if (m->ms && give_back)
		soft_forget_meta(m, slba, blocks);
	else if (m->ms)
		zero_meta(c, m, &pi, slba, blocks);
	soft_media_bad(m, slba, blocks, false);
	if (m->special & MEDIA_ERASED)
		soft_sanitize_written(c);
	return durable(c, cmd) && !soft_media_sync(m) ? NV_WRITE_FAULT : NV_OK;
}

/* --- Write Uncorrectable, Verify ----------------------------------------------------------- */

static uint16_t write_uncorrectable(struct udrv_soft *c, const struct nv_sqe *cmd,
				    struct soft_media *m)
{
	if (!soft_in_range(m, slba_of(cmd), blocks_of(cmd)))
		return NV_LBA_RANGE;
	if (!soft_media_bad(m, slba_of(cmd), blocks_of(cmd), true))
		return NV_INTERNAL;
	if (m->special & MEDIA_ERASED)
		soft_sanitize_written(c);
	return NV_OK;
}

static uint16_t verify(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	uint64_t slba = slba_of(cmd);
	uint32_t blocks = blocks_of(cmd);
	struct soft_pi pi = soft_pi_of(cmd);
	uint16_t status = soft_pi_allowed(m, &pi, slba);

	if (!soft_in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	if (m->pi && pi.info & NV_PR_ACT)
		return NV_INVALID_FIELD;
	for (uint32_t done = 0; done < blocks && !status;) {
		uint32_t part = blocks - done < CHUNK ? blocks - done : CHUNK;
		struct soft_pi here = pi;

		if (m->pi != 3)
			here.ref += done;
		status = soft_load(c, m, slba + done, part, 0);
		if (!status)
			status = soft_pi_check(m, &here, scratch_of(c)->data, scratch_of(c)->meta,
					       part);
		done += part;
	}
	if (!status)
		c->stat.sectors_read += (uint64_t)blocks << m->lba_shift >> 9;
	return status;
}

/* --- Dataset Management -------------------------------------------------------------------- */

#define DEALLOCATE (1u << 2)

struct dsm_range {
	uint32_t attributes;
	uint32_t blocks;
	uint64_t slba;
};
static_assert(sizeof(struct dsm_range) * 256 == NV_PAGE_SIZE, "range of Dataset Management");

static uint16_t deallocate(struct udrv_soft *c, struct soft_media *m, const struct dsm_range *r)
{
	uint16_t status = soft_media_zero(m, r->slba << m->lba_shift,
					  (uint64_t)r->blocks << m->lba_shift, true);

	(void)c;
	if (status)
		return status;
	soft_forget_meta(m, r->slba, r->blocks);
	soft_media_bad(m, r->slba, r->blocks, false);
	return NV_OK;
}

static uint16_t dataset(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	uint32_t nr = (cmd->cdw10 & 0xff) + 1;
	struct dsm_range range[256];
	uint16_t status = soft_fetch(c, cmd, range, nr * (uint32_t)sizeof(range[0]));

	if (status)
		return status;
	for (uint32_t i = 0; i < nr; i++) {
		if (range[i].blocks && !soft_in_range(m, range[i].slba, range[i].blocks))
			return NV_LBA_RANGE;
	}
	/* The other attributes are hints, of which none is of use here. */
	for (uint32_t i = 0; i < nr && cmd->cdw11 & DEALLOCATE && !status; i++) {
		if (range[i].blocks)
			status = deallocate(c, m, &range[i]);
	}
	return status;
}

/* --- Copy ---------------------------------------------------------------------------------- */

struct copy_range {
	uint64_t gap0;
	uint64_t slba;
	uint16_t nlb;
	uint8_t gap18[6];
	uint32_t ref;
	uint16_t app;
	uint16_t app_mask;
};
static_assert(sizeof(struct copy_range) == 32, "source range of Copy, format 0");

/* How many blocks there are to copy, in *total; all ranges are sound. */
static uint16_t check_sources(const struct soft_media *m, const struct copy_range *range,
			      uint32_t nr, uint32_t *total)
{
	*total = 0;
	for (uint32_t i = 0; i < nr; i++) {
		uint32_t blocks = range[i].nlb + 1u;

		if (blocks > SOFT_COPY_RANGE)
			return NV_SIZE_LIMIT;
		*total += blocks;
		if (*total > SOFT_COPY_BLOCKS)
			return NV_SIZE_LIMIT;
	}
	for (uint32_t i = 0; i < nr; i++) {
		if (!soft_in_range(m, range[i].slba, range[i].nlb + 1u))
			return NV_LBA_RANGE;
	}
	return NV_OK;
}

static uint16_t load_sources(struct udrv_soft *c, struct soft_media *m,
			     const struct copy_range *range, uint32_t nr, uint32_t info)
{
	struct scratch *s = scratch_of(c);
	uint16_t status = NV_OK;

	for (uint32_t i = 0, at = 0; i < nr && !status; at += range[i++].nlb + 1u) {
		struct soft_pi pi = { .info = info, .app = range[i].app,
				      .app_mask = range[i].app_mask, .ref = range[i].ref };

		status = soft_pi_allowed(m, &pi, range[i].slba);
		if (!status)
			status = soft_load(c, m, range[i].slba, range[i].nlb + 1u, at);
		if (!status)
			status = soft_pi_check(m, &pi, s->data + ((size_t)at << m->lba_shift),
					       s->meta + (size_t)at * m->ms, range[i].nlb + 1u);
	}
	return status;
}

/*
 * All is read before any is written, so that ranges may overlap, and a Copy that fails has copied
 * nothing: Dword 0 of its completion, the first range that was not copied, is rightly 0.
 */
static uint16_t copy(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	struct copy_range range[SOFT_COPY_RANGES];
	uint32_t nr = (cmd->cdw12 & 0xff) + 1, read_info = cmd->cdw12 >> 12 & 15, total;
	struct soft_pi pi = soft_pi_of(cmd);
	struct scratch *s = scratch_of(c);
	uint16_t status;

	if (cmd->cdw12 >> 8 & 15 || cmd->cdw12 & NV_IO_DTYPE)
		return NV_INVALID_FIELD; /* descriptor format 0 only, no directives */
	if (m->pi && (read_info ^ pi.info) & NV_PR_ACT)
		return NV_INVALID_FIELD; /* kept through, or made anew: not one of each */
	if (nr > SOFT_COPY_RANGES)
		return NV_SIZE_LIMIT;
	status = soft_fetch(c, cmd, range, nr * (uint32_t)sizeof(range[0]));
	if (!status)
		status = check_sources(m, range, nr, &total);
	if (!status && !soft_in_range(m, slba_of(cmd), total))
		status = NV_LBA_RANGE;
	if (!status)
		status = soft_pi_allowed(m, &pi, slba_of(cmd));
	if (!status)
		status = load_sources(c, m, range, nr, read_info);
	if (status)
		return status;
	if (m->pi && pi.info & NV_PR_ACT)
		soft_pi_make(m, &pi, s->data, s->meta, total);
	else
		status = soft_pi_check(m, &pi, s->data, s->meta, total);
	return status ? status : soft_store(c, m, slba_of(cmd), total, durable(c, cmd));
}

uint16_t soft_nvm(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	switch (cmd->opcode) {
	case NV_IO_WRITE_UNCORRECTABLE:
		return write_uncorrectable(c, cmd, m);
	case NV_IO_WRITE_ZEROES:
		return write_zeroes(c, cmd, m);
	case NV_IO_DATASET:
		return dataset(c, cmd, m);
	case NV_IO_VERIFY:
		return verify(c, cmd, m);
	case NV_IO_COPY:
		return copy(c, cmd, m);
	default:
		return NV_INVALID_OPCODE;
	}
}

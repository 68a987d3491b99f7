// SPDX-License-Identifier: Apache-2.0
/*
 * Read, Write and Compare the long way: of namespaces with metadata or unreadable blocks, and
 * after a sanitize operation. The data is copied to a buffer of ours first, checked there, and
 * goes on from there.
 */
#define _GNU_SOURCE
#include "block.h"

#include <string.h>

/* --- buffer and media ---------------------------------------------------------------------- */

static uint16_t flat(struct udrv_soft *c, struct soft_media *m, void *data, uint64_t slba,
		     uint32_t blocks, bool write, bool durable)
{
	c->segment[0] = (struct iovec){ .iov_base = data,
					.iov_len = (size_t)blocks << m->lba_shift };
	c->nr_segments = 1;
	return soft_media_io(c, m, slba << m->lba_shift, write, durable);
}

uint16_t soft_load(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks,
		   uint32_t at)
{
	struct scratch *s = scratch_of(c);
	uint8_t *meta = s->meta + (size_t)at * m->ms;

	if (soft_media_any_bad(m, slba, blocks))
		return NV_READ_ERROR;
	if (m->ms) {
		memcpy(meta, m->meta + slba * m->ms, (size_t)blocks * m->ms);
		soft_pi_invert(m, meta, blocks);
	}
	return flat(c, m, s->data + ((size_t)at << m->lba_shift), slba, blocks, false, false);
}

void soft_put_meta(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks)
{
	uint8_t *meta = scratch_of(c)->meta;

	if (!m->ms)
		return;
	soft_pi_invert(m, meta, blocks);
	memcpy(m->meta + slba * m->ms, meta, (size_t)blocks * m->ms);
}

uint16_t soft_store(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks,
		    bool durable)
{
	uint16_t status = flat(c, m, scratch_of(c)->data, slba, blocks, true, durable);

	if (status)
		return status;
	soft_put_meta(c, m, slba, blocks);
	soft_media_bad(m, slba, blocks, false);
	if (m->special & MEDIA_ERASED)
		soft_sanitize_written(c);
	return NV_OK;
}

void soft_forget_meta(struct soft_media *m, uint64_t slba, uint64_t blocks)
{
	if (m->ms)
		memset(m->meta + slba * m->ms, 0, blocks * m->ms);
}

/* --- buffer and host ----------------------------------------------------------------------- */

/* A metadata buffer is contiguous (MPTR with PSDT 00b); its pages need not be so for us. */
static uint16_t move_meta(struct udrv_soft *c, uint64_t mptr, uint8_t *meta, uint32_t len,
			  bool to_host)
{
	if (mptr % 4)
		return NV_INVALID_FIELD;
	while (len) {
		uint32_t part = NV_PAGE_SIZE - (uint32_t)(mptr % NV_PAGE_SIZE);
		uint8_t *at;

		if (part > len)
			part = len;
		at = dma_at(&c->dma, &c->data_ref, mptr, part, to_host ? DMA_WRITE : DMA_READ);
		if (!at)
			return NV_DATA_TRANSFER;
		if (to_host)
			memcpy(at, meta, part);
		else
			memcpy(meta, at, part);
		mptr += part;
		meta += part;
		len -= part;
	}
	return NV_OK;
}

/* Between blocks and metadata apart, and metadata after each block. */
static void mix(const struct soft_media *m, uint8_t *mixed, uint8_t *data, uint8_t *meta,
		uint32_t blocks, bool apart)
{
	uint32_t size = 1u << m->lba_shift;

	for (; blocks; blocks--, data += size, meta += m->ms) {
		memcpy(apart ? data : mixed, apart ? mixed : data, size);
		mixed += size;
		memcpy(apart ? meta : mixed, apart ? mixed : meta, m->ms);
		mixed += m->ms;
	}
}

static uint16_t exchange(struct udrv_soft *c, const struct nv_sqe *cmd, const struct soft_media *m,
			 uint8_t *data, uint8_t *meta, uint32_t blocks, bool with_meta,
			 bool to_host)
{
	uint32_t data_len = blocks << m->lba_shift, meta_len = with_meta ? blocks * m->ms : 0;
	bool extended = m->extended && with_meta;
	uint8_t *mixed = extended ? scratch_of(c)->mixed : data;
	uint32_t len = data_len + (extended ? meta_len : 0);
	uint16_t status;

	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD;
	status = soft_map_data(c, cmd, len, to_host ? DMA_WRITE : DMA_READ);
	if (status)
		return status;
	if (to_host && extended)
		mix(m, mixed, data, meta, blocks, false);
	if (to_host)
		soft_scatter(c, mixed, len);
	else
		soft_gather(c, mixed, len);
	if (!to_host && extended)
		mix(m, mixed, data, meta, blocks, true);
	if (!extended && meta_len)
		return move_meta(c, cmd->mptr, meta, meta_len, to_host);
	return NV_OK;
}

/* --- the commands -------------------------------------------------------------------------- */

static uint16_t write_blocks(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m,
			     uint64_t slba, uint32_t blocks)
{
	bool durable = cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache;
	struct scratch *s = scratch_of(c);
	struct soft_pi pi = soft_pi_of(cmd);
	bool with_meta = m->ms && !soft_pi_inserted(m, &pi);
	uint16_t status;

	if (cmd->cdw12 & NV_IO_DTYPE)
		return NV_INVALID_FIELD; /* there are no directives */
	status = exchange(c, cmd, m, s->data, s->meta, blocks, with_meta, false);
	if (status)
		return status;
	if (m->pi && pi.info & NV_PR_ACT)
		soft_pi_make(m, &pi, s->data, s->meta, blocks);
	else
		status = soft_pi_check(m, &pi, s->data, s->meta, blocks);
	return status ? status : soft_store(c, m, slba, blocks, durable);
}

static uint16_t read_blocks(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m,
			    uint64_t slba, uint32_t blocks)
{
	struct scratch *s = scratch_of(c);
	struct soft_pi pi = soft_pi_of(cmd);
	bool with_meta = m->ms && !soft_pi_inserted(m, &pi);
	uint16_t status = soft_load(c, m, slba, blocks, 0);

	if (!status)
		status = soft_pi_check(m, &pi, s->data, s->meta, blocks);
	if (status)
		return status;
	if (cmd->opcode == NV_IO_READ)
		return exchange(c, cmd, m, s->data, s->meta, blocks, with_meta, true);
	status = exchange(c, cmd, m, s->other, s->other_meta, blocks, with_meta, false);
	if (status)
		return status;
	if (memcmp(s->data, s->other, (size_t)blocks << m->lba_shift) ||
	    (with_meta && !soft_pi_same_meta(m, s->meta, s->other_meta, blocks)))
		return NV_COMPARE_FAILURE;
	return NV_OK;
}

uint16_t soft_read_write(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m)
{
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t len = (uint64_t)blocks << m->lba_shift;
	struct soft_pi pi = soft_pi_of(cmd);
	uint16_t status = soft_pi_allowed(m, &pi, slba);

	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD;
	if (!soft_in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	if (status)
		return status;
	if (cmd->opcode == NV_IO_WRITE)
		status = write_blocks(c, cmd, m, slba, blocks);
	else
		status = read_blocks(c, cmd, m, slba, blocks);
	if (status)
		return status;
	if (cmd->opcode == NV_IO_WRITE) {
		c->stat.writes++;
		c->stat.sectors_written += len >> 9;
	} else {
		c->stat.reads++;
		c->stat.sectors_read += len >> 9;
	}
	return NV_OK;
}

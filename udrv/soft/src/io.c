// SPDX-License-Identifier: Apache-2.0
/* I/O commands (NVMe 1.4, 6). prp.c finds their data, media.c keeps it. */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

static bool in_range(const struct soft_media *m, uint64_t slba, uint32_t blocks)
{
	return slba < m->blocks && blocks <= m->blocks - slba;
}

static uint16_t note_media(struct udrv_soft *c, uint16_t status)
{
	if ((status & 0x700) == 0x200)
		c->stat.media_errors++;
	return status;
}

static uint16_t read_write(struct udrv_soft *c, const struct nv_sqe *cmd, bool write)
{
	struct soft_media *m = &c->media[cmd->nsid - 1];
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t len = (uint64_t)blocks << m->lba_shift;
	bool durable = cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache;
	uint16_t status;

	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD; /* larger than MDTS: 5.15.2.2 */
	if (!in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	status = soft_map_data(c, cmd, (uint32_t)len, write ? DMA_READ : DMA_WRITE);
	if (status)
		return status;
	status = soft_media_io(c, m, slba << m->lba_shift, write, durable);
	if (status)
		return note_media(c, status);
	if (write) {
		c->stat.writes++;
		c->stat.sectors_written += len >> 9;
	} else {
		c->stat.reads++;
		c->stat.sectors_read += len >> 9;
	}
	return NV_OK;
}

static uint16_t write_zeroes(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_media *m = &c->media[cmd->nsid - 1];
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t at = slba << m->lba_shift, len = (uint64_t)blocks << m->lba_shift;
	uint16_t status;

	if (!in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	status = soft_media_zero(m, at, len);
	if (!status && (cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache) && !soft_media_sync(m))
		status = NV_WRITE_FAULT;
	return note_media(c, status);
}

static uint16_t flush(struct udrv_soft *c, uint32_t nsid)
{
	uint16_t status = NV_OK;

	for (uint32_t i = 0; i < c->cfg.nr_ns; i++) {
		if ((nsid == NV_NSID_ALL || nsid == i + 1) && !soft_media_sync(&c->media[i]))
			status = NV_WRITE_FAULT;
	}
	return note_media(c, status);
}

uint16_t soft_io(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	bool known = cmd->opcode == NV_IO_READ || cmd->opcode == NV_IO_WRITE ||
		     cmd->opcode == NV_IO_FLUSH || cmd->opcode == NV_IO_WRITE_ZEROES;

	if (!known)
		return NV_INVALID_OPCODE;
	/* Neither fused operations nor SGLs are offered. */
	if (cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))
		return NV_INVALID_FIELD;
	if (cmd->opcode == NV_IO_FLUSH && cmd->nsid == NV_NSID_ALL)
		return flush(c, NV_NSID_ALL);
	if (cmd->nsid < 1 || cmd->nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (!soft_ns_active(c, cmd->nsid))
		return NV_INVALID_FIELD; /* a valid NSID that is inactive: 6.1.5 */
	switch (cmd->opcode) {
	case NV_IO_FLUSH:
		return flush(c, cmd->nsid);
	case NV_IO_WRITE_ZEROES:
		return write_zeroes(c, cmd);
	default:
		return read_write(c, cmd, cmd->opcode == NV_IO_WRITE);
	}
}

// SPDX-License-Identifier: Apache-2.0
/*
 * I/O commands (NVMe 1.4, 6): a plain Read or Write is done here, where prp.c finds its data and
 * media.c keeps it; all others go to block.c and nvm.c.
 */
#define _GNU_SOURCE
#include "block.h"

static uint16_t note_media(struct udrv_soft *c, uint16_t status)
{
	/* Data that differs from a Compare's is no error of the media. */
	if ((status & 0x700) == 0x200 && status != NV_COMPARE_FAILURE)
		c->stat.media_errors++;
	return status;
}

static uint16_t plain(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m,
		      bool write)
{
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t len = (uint64_t)blocks << m->lba_shift;
	bool durable = cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache;
	uint16_t status;

	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD; /* larger than MDTS: 5.15.2.2 */
	if (!soft_in_range(m, slba, blocks))
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

static uint16_t flush(struct udrv_soft *c, uint32_t nsid)
{
	uint16_t status = NV_OK;

	for (uint32_t i = 1; i <= UDRV_SOFT_MAX_NS; i++) {
		if (soft_ns_active(c, i) && (nsid == NV_NSID_ALL || nsid == i) &&
		    !soft_media_sync(&c->media[i - 1]))
			status = NV_WRITE_FAULT;
	}
	return status;
}

#define SUPPORTED (NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_NS)

static const uint32_t effects[] = {
	[NV_IO_FLUSH] = SUPPORTED,
	[NV_IO_WRITE] = SUPPORTED | NV_EFFECT_CONTENT,
	[NV_IO_READ] = SUPPORTED,
	[NV_IO_WRITE_UNCORRECTABLE] = SUPPORTED | NV_EFFECT_CONTENT,
	[NV_IO_COMPARE] = SUPPORTED,
	[NV_IO_WRITE_ZEROES] = SUPPORTED | NV_EFFECT_CONTENT,
	[NV_IO_DATASET] = SUPPORTED | NV_EFFECT_CONTENT,
	[NV_IO_VERIFY] = SUPPORTED,
	[NV_IO_COPY] = SUPPORTED | NV_EFFECT_CONTENT,
};

uint32_t soft_io_effects(uint32_t opcode)
{
	return opcode < sizeof(effects) / sizeof(effects[0]) ? effects[opcode] : 0;
}

/* Every command, with every check. */
static uint16_t rare(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	bool everywhere = cmd->opcode == NV_IO_FLUSH && cmd->nsid == NV_NSID_ALL;

	if (!soft_io_effects(cmd->opcode))
		return NV_INVALID_OPCODE;
	/* SGLs are not offered, and fused.c has seen to fused commands. */
	if (cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))
		return NV_INVALID_FIELD;
	if (!everywhere && (cmd->nsid < 1 || cmd->nsid > c->cfg.nn))
		return NV_INVALID_NS;
	if (!everywhere && !soft_ns_active(c, cmd->nsid))
		return NV_INVALID_FIELD; /* a valid NSID that is inactive: 6.1.5 */
	if (c->sanitize.running)
		return NV_SANITIZING;
	if (soft_sanitize_failed(c))
		return NV_SANITIZE_FAILED;
	switch (cmd->opcode) {
	case NV_IO_FLUSH:
		return flush(c, cmd->nsid);
	case NV_IO_READ:
	case NV_IO_WRITE:
	case NV_IO_COMPARE:
		return soft_read_write(c, cmd, &c->media[cmd->nsid - 1]);
	default:
		return soft_nvm(c, cmd, &c->media[cmd->nsid - 1]);
	}
}

uint16_t soft_io(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	bool write = cmd->opcode == NV_IO_WRITE;

	if ((write || cmd->opcode == NV_IO_READ) && soft_ns_active(c, cmd->nsid) &&
	    !(cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))) {
		struct soft_media *m = &c->media[cmd->nsid - 1];

		if (!(m->special | (cmd->cdw12 & NV_IO_DTYPE)))
			return plain(c, cmd, m, write);
	}
	return note_media(c, rare(c, cmd));
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block.h - blocks with their metadata, by way of a buffer of ours
 *
 * What a plain Read or Write does not need: block.c moves blocks and metadata between the host,
 * a buffer and the media; pi.c is about protection information; nvm.c has the commands.
 */
#ifndef UDRV_SOFT_BLOCK_H
#define UDRV_SOFT_BLOCK_H

#include "ctrl.h"

#define SCRATCH_DATA (4u << 20)
#define SCRATCH_META (256u << 10)

/* Memory is taken when it is touched. */
struct scratch {
	uint8_t data[SCRATCH_DATA]; /* as it is on the media */
	uint8_t meta[SCRATCH_META];
	uint8_t other[SCRATCH_DATA]; /* what Compare compares with */
	uint8_t other_meta[SCRATCH_META];
	uint8_t mixed[SCRATCH_DATA + SCRATCH_META]; /* blocks with their metadata between them */
};

static_assert(((uint64_t)NV_PAGE_SIZE << MAX_MDTS) <= SCRATCH_DATA, "the largest transfer");
static_assert((NV_PAGE_SIZE << MAX_MDTS) / 512 * 8 <= SCRATCH_META, "and its metadata");
static_assert(SOFT_COPY_BLOCKS * 4096u <= SCRATCH_DATA, "the largest copy");
static_assert(SOFT_COPY_BLOCKS * 64u <= SCRATCH_META, "and its metadata");

/**
 * struct soft_pi - what a command says of protection information
 * @info:	NV_PR_*
 * @app, @app_mask: application tag, and which bits of it are compared
 * @ref:	initial, or expected initial, reference tag
 */
struct soft_pi {
	uint32_t info;
	uint16_t app;
	uint16_t app_mask;
	uint32_t ref;
};

static inline struct soft_pi soft_pi_of(const struct nv_sqe *cmd)
{
	return (struct soft_pi){ .info = NV_IO_PRINFO(cmd->cdw12), .app = (uint16_t)cmd->cdw15,
				 .app_mask = (uint16_t)(cmd->cdw15 >> 16), .ref = cmd->cdw14 };
}

static inline struct scratch *scratch_of(struct udrv_soft *c)
{
	return (struct scratch *)c->scratch;
}

/* --- pi.c ---------------------------------------------------------------------------------- */

/* soft_pi_allowed() - whether that reference tag may be checked in this type */
uint16_t soft_pi_allowed(const struct soft_media *m, const struct soft_pi *p, uint64_t slba);

/* soft_pi_make() - write it into @meta of @blocks blocks; without @data for zeroes */
void soft_pi_make(const struct soft_media *m, const struct soft_pi *p, const uint8_t *data,
		  uint8_t *meta, uint32_t blocks);

uint16_t soft_pi_check(const struct soft_media *m, const struct soft_pi *p, const uint8_t *data,
		       const uint8_t *meta, uint32_t blocks);

/* soft_pi_inserted() - whether the host sends and gets no metadata: it is all ours (PRACT) */
bool soft_pi_inserted(const struct soft_media *m, const struct soft_pi *p);

/* soft_pi_invert() - between what it is and how it is stored; see struct soft_media */
void soft_pi_invert(const struct soft_media *m, uint8_t *meta, uint32_t blocks);

/* soft_pi_same_meta() - whether metadata is the same, protection information aside */
bool soft_pi_same_meta(const struct soft_media *m, const uint8_t *one, const uint8_t *two,
		       uint32_t blocks);

/* --- block.c ------------------------------------------------------------------------------- */

static inline bool soft_in_range(const struct soft_media *m, uint64_t slba, uint64_t blocks)
{
	return slba < m->blocks && blocks <= m->blocks - slba;
}

/* soft_load() - from the media into the scratch buffer, @at blocks into it; soft_store() - back */
uint16_t soft_load(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks,
		   uint32_t at);
uint16_t soft_store(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks,
		    bool durable);

/* soft_forget_meta() - metadata reads as if it had never been written */
void soft_forget_meta(struct soft_media *m, uint64_t slba, uint64_t blocks);

/* soft_put_meta() - metadata alone, from the scratch buffer */
void soft_put_meta(struct udrv_soft *c, struct soft_media *m, uint64_t slba, uint32_t blocks);

/* soft_read_write() - a Read, Write or Compare, the long way */
uint16_t soft_read_write(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m);

/* --- nvm.c --------------------------------------------------------------------------------- */

uint16_t soft_nvm(struct udrv_soft *c, const struct nv_sqe *cmd, struct soft_media *m);

#endif /* UDRV_SOFT_BLOCK_H */

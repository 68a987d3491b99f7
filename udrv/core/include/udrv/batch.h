/* SPDX-License-Identifier: Apache-2.0 */
/*
 * batch.h - what every transport checks of a row of a batch before anything is sent.
 *
 * The address check is the caller's own where its transport needs more than a multiple of 4.
 */
#ifndef UDRV_BATCH_H
#define UDRV_BATCH_H

#include <udrv/qp.h>

/* Whether rows first .. first + count - 1 and the batch's own fields can be at all. */
static inline int udrv_batch_is_valid(const struct udrv_batch *b, uint32_t first, uint32_t count,
				      uint32_t slot)
{
	return first <= b->capacity && count <= b->capacity - first && slot < UDRV_QP_SLOTS &&
	       b->lba_shift >= 9 && b->lba_shift <= 16;
}

/*
 * A row against its batch. align_mask is 3, or more where the transport needs it.
 * Return: 0, or -UDRV_E*.
 */
static inline int udrv_row_check(const struct udrv_batch *b, const struct udrv_command *row,
				 uint32_t max_transfer, uint64_t align_mask)
{
	uint64_t nlb = row->nlb, len = nlb << b->lba_shift;

	if (row->opcode == NVME_CMD_FLUSH)
		return 0;
	if (unlikely(row->opcode != NVME_CMD_READ && row->opcode != NVME_CMD_WRITE))
		return -UDRV_EOPCODE;
	if (unlikely(!nlb || nlb > b->nsze || row->slba > b->nsze - nlb))
		return -UDRV_ERANGE;
	if (unlikely(len > max_transfer))
		return -UDRV_ESIZE;
	if (unlikely(row->offset > b->len || len > b->len - row->offset))
		return -UDRV_EBUFFER;
	if (unlikely((b->iova + row->offset) & align_mask))
		return -UDRV_EALIGN;
	return 0;
}

#endif /* UDRV_BATCH_H */

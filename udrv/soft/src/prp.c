// SPDX-License-Identifier: Apache-2.0
/* From physical region pages to segments of the client's memory (NVMe 1.4, 4.3). */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

static bool add_segment(struct udrv_soft *c, uint64_t iova, uint32_t len, uint32_t rights)
{
	uint8_t *at = dma_at(&c->dma, &c->data_ref, iova, len, rights);
	struct iovec *last;

	if (!at)
		return false;
	if (c->nr_segments) {
		last = &c->segment[c->nr_segments - 1];
		if ((uint8_t *)last->iov_base + last->iov_len == at) {
			last->iov_len += len;
			return true;
		}
	}
	/* There is room: a transfer touches (1 << MDTS) + 1 pages at most, and MDTS is checked. */
	c->segment[c->nr_segments++] = (struct iovec){ .iov_base = at, .iov_len = len };
	return true;
}

/*
 * A list lies in one page and starts anywhere in it; if it does not hold all pages, its last
 * entry in that page points to the next list. Every entry is read once.
 */
static uint16_t map_list(struct udrv_soft *c, uint64_t list, uint32_t len, uint32_t rights)
{
	if (list % 8)
		return NV_PRP_OFFSET;
	while (len) {
		uint32_t room = (NV_PAGE_SIZE - (uint32_t)(list % NV_PAGE_SIZE)) / 8;
		uint32_t pages = (len + NV_PAGE_SIZE - 1) / NV_PAGE_SIZE;
		uint32_t here = pages > room ? room - 1 : pages;
		uint32_t bytes = (pages > room ? room : pages) * 8;
		const uint64_t *entry = dma_at(&c->dma, &c->list_ref, list, bytes, DMA_READ);

		if (!entry)
			return NV_DATA_TRANSFER;
		for (uint32_t i = 0; i < here; i++) {
			uint64_t page = __atomic_load_n(&entry[i], __ATOMIC_RELAXED);
			uint32_t part = len < NV_PAGE_SIZE ? len : NV_PAGE_SIZE;

			if (page % NV_PAGE_SIZE)
				return NV_PRP_OFFSET;
			if (!add_segment(c, page, part, rights))
				return NV_DATA_TRANSFER;
			len -= part;
		}
		if (len) {
			/* A list of one entry at the end of a page is a mere pointer (here = 0). */
			list = __atomic_load_n(&entry[here], __ATOMIC_RELAXED);
			if (list % NV_PAGE_SIZE)
				return NV_PRP_OFFSET;
		}
	}
	return NV_OK;
}

uint16_t soft_map_data(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t len,
		       uint32_t rights)
{
	uint32_t first = NV_PAGE_SIZE - (uint32_t)(cmd->prp1 % NV_PAGE_SIZE);

	c->nr_segments = 0;
	if (cmd->prp1 % 4)
		return NV_PRP_OFFSET;
	if (first > len)
		first = len;
	if (!add_segment(c, cmd->prp1, first, rights))
		return NV_DATA_TRANSFER;
	len -= first;
	if (!len)
		return NV_OK;
	if (len > NV_PAGE_SIZE)
		return map_list(c, cmd->prp2, len, rights);
	if (cmd->prp2 % NV_PAGE_SIZE)
		return NV_PRP_OFFSET;
	return add_segment(c, cmd->prp2, len, rights) ? NV_OK : NV_DATA_TRANSFER;
}

void soft_scatter(struct udrv_soft *c, const void *data, size_t len)
{
	const uint8_t *from = data;

	for (uint32_t i = 0; i < c->nr_segments && len; i++) {
		size_t part = c->segment[i].iov_len < len ? c->segment[i].iov_len : len;

		memcpy(c->segment[i].iov_base, from, part);
		from += part;
		len -= part;
	}
}

void soft_gather(struct udrv_soft *c, void *data, size_t len)
{
	uint8_t *to = data;

	for (uint32_t i = 0; i < c->nr_segments && len; i++) {
		size_t part = c->segment[i].iov_len < len ? c->segment[i].iov_len : len;

		memcpy(to, c->segment[i].iov_base, part);
		to += part;
		len -= part;
	}
	/* The copy is what is looked at, and not the host's memory once more. */
	atomic_signal_fence(memory_order_seq_cst);
}

uint16_t soft_answer(struct udrv_soft *c, const struct nv_sqe *cmd, const void *data, uint32_t len)
{
	uint16_t status = soft_map_data(c, cmd, len, DMA_WRITE);

	if (!status)
		soft_scatter(c, data, len);
	return status;
}

uint16_t soft_fetch(struct udrv_soft *c, const struct nv_sqe *cmd, void *data, uint32_t len)
{
	uint16_t status = soft_map_data(c, cmd, len, DMA_READ);

	if (!status)
		soft_gather(c, data, len);
	return status;
}

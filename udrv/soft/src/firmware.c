// SPDX-License-Identifier: Apache-2.0
/*
 * Firmware Image Download and Commit (NVMe 1.4, 5.12 and 5.11). An image is any bytes, in pieces
 * of 4 KiB, whose head is "UDRVSOFT" and a revision of 8 printable characters; to run it means to
 * show that revision.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define MAX_PIECES 64u
#define MAGIC "UDRVSOFT"

enum { REPLACE, REPLACE_AND_ACTIVATE, ACTIVATE, ACTIVATE_NOW };

void soft_firmware_init(struct udrv_soft *c)
{
	memcpy(c->slots.revision[0], "1.0     ", 8);
	c->slots.active = 1;
}

void soft_firmware_reset(struct udrv_soft *c)
{
	struct soft_firmware *f = &c->slots;

	f->pages = 0; /* 5.12: an image that was not committed is gone */
	if (f->next)
		f->active = f->next;
	f->next = 0;
}

uint16_t soft_firmware_download(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_firmware *f = &c->slots;
	uint64_t len = ((uint64_t)cmd->cdw10 + 1) * 4, at = (uint64_t)cmd->cdw11 * 4;
	uint64_t mask;
	uint16_t status;

	/* FWUG is 1: pieces are whole pages, at multiples of one. */
	if (len % NV_PAGE_SIZE || at % NV_PAGE_SIZE)
		return NV_INVALID_FIELD;
	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts ||
	    at + len > MAX_PIECES * (uint64_t)NV_PAGE_SIZE)
		return NV_INVALID_FIELD;
	mask = ~0ull >> (64 - len / NV_PAGE_SIZE) << at / NV_PAGE_SIZE;
	if (f->pages & mask)
		return NV_OVERLAP;
	status = soft_map_data(c, cmd, (uint32_t)len, DMA_READ);
	if (status)
		return status;
	/* Segments are whole pages at least, or begin with a multiple of 4 bytes. */
	if (!at)
		soft_gather(c, f->image, sizeof(f->image));
	f->pages |= mask;
	return NV_OK;
}

static bool image_valid(const struct soft_firmware *f)
{
	/* Without gaps, from its beginning. */
	if (!f->pages || f->pages & (f->pages + 1))
		return false;
	if (memcmp(f->image, MAGIC, 8))
		return false;
	for (uint32_t i = 8; i < 16; i++) {
		if (f->image[i] < ' ' || f->image[i] > '~')
			return false;
	}
	return true;
}

uint16_t soft_firmware_commit(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_firmware *f = &c->slots;
	uint32_t slot = cmd->cdw10 & 7, action = cmd->cdw10 >> 3 & 7;
	bool replace = action == REPLACE || action == REPLACE_AND_ACTIVATE;

	if (action > ACTIVATE_NOW || cmd->cdw10 & 1u << 31)
		return NV_INVALID_FIELD; /* there are no boot partitions */
	if (slot > FIRMWARE_SLOTS)
		return NV_FIRMWARE_SLOT;
	if (action == ACTIVATE_NOW && f->pages)
		replace = true; /* 5.11: a downloaded image is what is meant */
	if (!slot) /* ours to choose: the one that does not run */
		slot = f->active == 2 ? 3 : 2;
	if (replace) {
		if (slot == 1)
			return NV_FIRMWARE_SLOT;
		if (!image_valid(f))
			return NV_FIRMWARE_IMAGE;
		memcpy(f->revision[slot - 1], f->image + 8, 8);
		f->pages = 0;
	}
	if (!f->revision[slot - 1][0])
		return NV_FIRMWARE_IMAGE;
	if (action == REPLACE_AND_ACTIVATE || action == ACTIVATE)
		f->next = (uint8_t)slot;
	if (action == ACTIVATE_NOW) {
		f->active = (uint8_t)slot;
		f->next = 0;
		if (c->feature.events & NV_OAES_FIRMWARE)
			soft_event_raise(c, NV_EVENT_NOTICE, NV_EVENT_FIRMWARE, NV_LOG_FIRMWARE);
	}
	return NV_OK;
}

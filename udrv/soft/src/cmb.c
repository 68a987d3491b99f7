// SPDX-License-Identifier: Apache-2.0
/*
 * The controller memory buffer (base 2.0, 8.5): memory of ours behind BAR 2, which queues, PRP lists
 * and data may lie in. Where the host puts it (CMBMSC.CBA) it is a mapping like those that the
 * client makes, so that nothing else has to know of it.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MSC_ENABLE 1ull /* CRE: CMBLOC and CMBSZ show what there is */
#define MSC_MEMORY_SPACE 2ull /* CMSE: addresses from CBA on are the buffer */
#define MSC_BASE (~0xfffull)
#define STS_BASE_INVALID 1u

/* CMBLOC: BAR 2, and none of the restrictions that a buffer may have */
#define LOCATION (0x1f8u | 2u)
/* CMBSZ: submission and completion queues, lists, data both ways; in units of 4 KiB */
#define WHAT 0x1fu

int soft_cmb_open(struct udrv_soft *c)
{
	struct soft_cmb *b = &c->cmb;

	b->fd = -1;
	b->bytes = c->cfg.cmb_bytes;
	if (!b->bytes)
		return 0;
	b->fd = memfd_create("udrv-soft-cmb", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (b->fd < 0)
		return -errno;
	/* The client maps it, and must not be able to cut it under our feet. */
	if (ftruncate(b->fd, (off_t)b->bytes) < 0 ||
	    fcntl(b->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	b->memory = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd, 0);
	if (b->memory == MAP_FAILED) {
		b->memory = NULL;
		return -errno;
	}
	return 0;
}

void soft_cmb_close(struct udrv_soft *c)
{
	if (c->cmb.memory)
		munmap(c->cmb.memory, c->cmb.bytes);
	if (c->cmb.bytes && c->cmb.fd >= 0)
		close(c->cmb.fd);
	c->cmb = (struct soft_cmb){ .fd = -1 };
}

static void place(struct udrv_soft *c)
{
	struct soft_cmb *b = &c->cmb;
	uint64_t base = b->control & MSC_BASE;

	if (b->placed)
		dma_remove(&c->dma, b->base, b->bytes);
	b->placed = false;
	b->status = 0;
	if (!(b->control & MSC_ENABLE) || !(b->control & MSC_MEMORY_SPACE))
		return;
	if (dma_add(&c->dma, base, b->bytes, DMA_READ | DMA_WRITE, b->fd, 0)) {
		b->status = STS_BASE_INVALID; /* it wraps around, or other memory is there */
		return;
	}
	b->placed = true;
	b->base = base;
}

bool soft_cmb_is(const struct udrv_soft *c, uint64_t iova)
{
	return c->cmb.placed && c->cmb.base == iova;
}

void soft_cmb_unmapped(struct udrv_soft *c)
{
	c->cmb.placed = false;
	if (c->cmb.bytes)
		place(c);
}

void soft_cmb_control(struct udrv_soft *c, uint32_t half, uint32_t value)
{
	struct soft_cmb *b = &c->cmb;

	if (!b->bytes)
		return;
	b->control = (b->control & ~(0xffffffffull << 32 * half)) | (uint64_t)value << 32 * half;
	b->control &= MSC_BASE | MSC_ENABLE | MSC_MEMORY_SPACE;
	place(c);
}

void soft_cmb_reset(struct udrv_soft *c)
{
	c->cmb.control = 0;
	if (c->cmb.bytes)
		place(c);
}

void soft_cmb_registers(const struct udrv_soft *c, uint8_t *image)
{
	const struct soft_cmb *b = &c->cmb;
	uint32_t location = LOCATION, size = WHAT | (uint32_t)(b->bytes / NV_PAGE_SIZE) << 12;

	if (b->control & MSC_ENABLE) {
		memcpy(image + NV_REG_CMBLOC, &location, sizeof(location));
		memcpy(image + NV_REG_CMBSZ, &size, sizeof(size));
	}
	memcpy(image + NV_REG_CMBMSC, &b->control, sizeof(b->control));
	memcpy(image + NV_REG_CMBSTS, &b->status, sizeof(b->status));
}

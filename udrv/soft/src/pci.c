// SPDX-License-Identifier: Apache-2.0
/*
 * PCI configuration space and interrupts.
 *
 * The vendor id is "ud" and the device id "rv" in ASCII; neither is assigned by PCI-SIG.
 *
 * Over vfio-user as over VFIO, interrupts are armed and masked by DEVICE_SET_IRQS, not by the
 * MSI-X table, which is there for those who look at it: it can be written and read back.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PCI_VENDOR 0x6475u
#define PCI_DEVICE 0x7672u

#define CAP_PM 0x40u
#define CAP_MSIX 0x50u
#define CAP_PCIE 0x60u

#define PCI_COMMAND 0x04u
#define PCI_BAR0 0x10u
#define PCI_BAR2 0x18u
#define MSIX_CONTROL (CAP_MSIX + 2)
#define PCIE_DEVCTL (CAP_PCIE + 8)
#define DEVCTL_FLR 0x8000u

static void put16(struct udrv_soft *c, uint32_t at, uint16_t value)
{
	memcpy(&c->pci[at], &value, sizeof(value));
}

static void put32(struct udrv_soft *c, uint32_t at, uint32_t value)
{
	memcpy(&c->pci[at], &value, sizeof(value));
}

void soft_pci_reset(struct udrv_soft *c)
{
	memset(c->pci, 0, sizeof(c->pci));
	put16(c, 0x00, PCI_VENDOR);
	put16(c, 0x02, PCI_DEVICE);
	put16(c, 0x06, 0x0010); /* status: there is a capability list */
	c->pci[0x08] = 1; /* revision */
	c->pci[0x09] = 0x02; /* NVM Express I/O controller */
	c->pci[0x0a] = 0x08;
	c->pci[0x0b] = 0x01;
	put32(c, PCI_BAR0, 0x4); /* 64-bit memory */
	if (c->cmb.bytes)
		put32(c, PCI_BAR2, 0xc); /* prefetchable, too */
	put16(c, 0x2c, PCI_VENDOR);
	put16(c, 0x2e, PCI_DEVICE);
	c->pci[0x34] = CAP_PM;

	c->pci[CAP_PM] = 0x01;
	c->pci[CAP_PM + 1] = CAP_MSIX;
	put16(c, CAP_PM + 2, 0x0003);
	put16(c, CAP_PM + 4, 0x0008); /* no soft reset when it comes back from D3hot */

	c->pci[CAP_MSIX] = 0x11;
	c->pci[CAP_MSIX + 1] = CAP_PCIE;
	put16(c, MSIX_CONTROL, (uint16_t)(c->nr_vectors - 1));
	put32(c, CAP_MSIX + 4, BAR0_MSIX_TABLE); /* in BAR 0 */
	put32(c, CAP_MSIX + 8, BAR0_MSIX_PBA);

	c->pci[CAP_PCIE] = 0x10;
	put16(c, CAP_PCIE + 2, 0x0002); /* version 2, endpoint */
	put32(c, CAP_PCIE + 4, 0x10008000); /* role-based errors, function-level reset */
	put32(c, CAP_PCIE + 12, 0x00000011); /* 2.5 GT/s, x1 */
	put16(c, CAP_PCIE + 18, 0x0011);

	memset(c->msix_table, 0, sizeof(c->msix_table));
	for (uint32_t i = 0; i < c->nr_vectors; i++)
		c->msix_table[i * 16 + 12] = 1; /* vector control: masked */
}

/* Which bits of a byte of configuration space software can write. */
static uint8_t writable(const struct udrv_soft *c, uint32_t at)
{
	switch (at) {
	case PCI_COMMAND:
		return 0x06; /* memory space, bus master */
	case PCI_COMMAND + 1:
		return 0x04; /* INTx disable */
	case 0x0c: /* cache line size */
	case 0x3c: /* interrupt line */
		return 0xff;
	case PCI_BAR0 + 1:
		return 0xff & ~((BAR0_SIZE - 1) >> 8);
	case PCI_BAR0 + 2 ... PCI_BAR0 + 7:
		return 0xff;
	case PCI_BAR2 ... PCI_BAR2 + 7:
		/* The bits of an address that is a multiple of its size. */
		return c->cmb.bytes ? (uint8_t)(-c->cmb.bytes >> (at - PCI_BAR2) * 8) : 0;
	case CAP_PM + 4:
		return 0x03; /* power state: kept, without effect */
	case MSIX_CONTROL + 1:
		return 0xc0; /* enable, function mask */
	case PCIE_DEVCTL:
		return 0xff;
	case PCIE_DEVCTL + 1:
		return 0x7f; /* FLR always reads 0 */
	default:
		return 0;
	}
}

void soft_pci_write(struct udrv_soft *c, uint32_t offset, const uint8_t *data, uint32_t count)
{
	bool reset = false;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t at = offset + i;
		uint8_t mask = writable(c, at);

		c->pci[at] = (uint8_t)((c->pci[at] & ~mask) | (data[i] & mask));
		if (at == PCIE_DEVCTL + 1 && data[i] & (DEVCTL_FLR >> 8))
			reset = true;
	}
	if (reset)
		soft_function_reset(c);
}

/* --- interrupts ---------------------------------------------------------------------------- */

void soft_irq_arm(struct udrv_soft *c, uint32_t vector, int fd)
{
	struct soft_irq *irq = &c->irq[vector];

	if (irq->fd >= 0)
		close(irq->fd);
	irq->fd = fd;
	irq->pending = false;
	if (fd < 0)
		irq->masked = false;
}

void soft_irq_mask(struct udrv_soft *c, uint32_t vector, bool mask)
{
	struct soft_irq *irq = &c->irq[vector];

	irq->masked = mask;
	if (!mask && irq->pending) {
		irq->pending = false;
		soft_irq_raise(c, vector);
	}
}

bool soft_irq_raise(struct udrv_soft *c, uint32_t vector)
{
	struct soft_irq *irq = &c->irq[vector];
	uint64_t one = 1;

	if (irq->fd < 0)
		return false;
	if (irq->masked) {
		irq->pending = true;
		return false;
	}
	/*
	 * The server took it only if it is an eventfd, so this blocks only on a counter that the
	 * client itself drove to its limit, and then the client harms nobody but itself.
	 */
	return write(irq->fd, &one, sizeof(one)) == sizeof(one);
}

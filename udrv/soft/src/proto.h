/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proto.h - vfio-user messages (QEMU's docs/interop/vfio-user.rst, version 0.1)
 *
 * Integers are in host byte order. Structures that the protocol borrows from VFIO keep VFIO's
 * values, spelled out here so that this builds without <linux/vfio.h>.
 */
#ifndef UDRV_SOFT_PROTO_H
#define UDRV_SOFT_PROTO_H

#include <assert.h>
#include <stdint.h>

#define VU_MAJOR 0
#define VU_MINOR 1

enum vu_command {
	VU_VERSION = 1,
	VU_DMA_MAP = 2,
	VU_DMA_UNMAP = 3,
	VU_DEVICE_GET_INFO = 4,
	VU_DEVICE_GET_REGION_INFO = 5,
	VU_DEVICE_GET_IRQ_INFO = 7,
	VU_DEVICE_SET_IRQS = 8,
	VU_REGION_READ = 9,
	VU_REGION_WRITE = 10,
	VU_DEVICE_RESET = 13,
};

#define VU_TYPE_MASK 0xfu
#define VU_COMMAND 0x0u
#define VU_REPLY 0x1u
#define VU_NO_REPLY 0x10u
#define VU_ERROR 0x20u

struct vu_header {
	uint16_t msg_id;
	uint16_t command;
	uint32_t size;
	uint32_t flags;
	uint32_t error;
};
static_assert(sizeof(struct vu_header) == 16, "vfio-user header");

struct vu_version {
	uint16_t major;
	uint16_t minor;
};

struct vu_dma_map {
	uint32_t argsz;
	uint32_t flags; /* bit 0: readable, bit 1: writeable */
	uint64_t offset;
	uint64_t address;
	uint64_t size;
};
static_assert(sizeof(struct vu_dma_map) == 32, "DMA_MAP");

struct vu_dma_unmap {
	uint32_t argsz;
	uint32_t flags;
	uint64_t address;
	uint64_t size;
};
static_assert(sizeof(struct vu_dma_unmap) == 24, "DMA_UNMAP");

#define VU_UNMAP_ALL 2u

struct vu_device_info {
	uint32_t argsz;
	uint32_t flags;
	uint32_t num_regions;
	uint32_t num_irqs;
};

#define VU_DEVICE_RESETS 1u
#define VU_DEVICE_PCI 2u

struct vu_region_info {
	uint32_t argsz;
	uint32_t flags;
	uint32_t index;
	uint32_t cap_offset;
	uint64_t size;
	uint64_t offset;
};
static_assert(sizeof(struct vu_region_info) == 32, "region info");

#define VU_REGION_FLAG_READ 1u
#define VU_REGION_FLAG_WRITE 2u
#define VU_REGION_FLAG_MMAP 4u
#define VU_REGION_FLAG_CAPS 8u

struct vu_sparse_cap {
	uint16_t id;
	uint16_t version;
	uint32_t next;
	uint32_t nr_areas;
	uint32_t reserved;
	uint64_t offset;
	uint64_t size;
};
static_assert(sizeof(struct vu_sparse_cap) == 32, "sparse mmap capability, one area");

#define VU_CAP_SPARSE_MMAP 1u

enum vu_region {
	VU_REGION_BAR0 = 0,
	VU_REGION_CMB = 2,
	VU_REGION_CONFIG = 7,
	VU_REGIONS = 9,
};

struct vu_irq_info {
	uint32_t argsz;
	uint32_t flags;
	uint32_t index;
	uint32_t count;
};

#define VU_IRQ_EVENTFD 1u
#define VU_IRQ_MASKABLE 2u

enum vu_irq {
	VU_IRQ_MSIX = 2,
	VU_IRQS = 5,
};

struct vu_irq_set {
	uint32_t argsz;
	uint32_t flags;
	uint32_t index;
	uint32_t start;
	uint32_t count;
};
static_assert(sizeof(struct vu_irq_set) == 20, "SET_IRQS");

#define VU_IRQ_DATA_NONE 1u
#define VU_IRQ_DATA_BOOL 2u
#define VU_IRQ_DATA_EVENTFD 4u
#define VU_IRQ_DATA_MASK 7u
#define VU_IRQ_ACTION_MASK 8u
#define VU_IRQ_ACTION_UNMASK 16u
#define VU_IRQ_ACTION_TRIGGER 32u

struct vu_access {
	uint64_t offset;
	uint32_t region;
	uint32_t count;
};
static_assert(sizeof(struct vu_access) == 16, "region access");

#endif /* UDRV_SOFT_PROTO_H */

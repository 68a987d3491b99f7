/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme.h - the two structures that cross the wire (NVMe Base 2.0, "Submission Queue Entry" and
 * "Completion Queue Entry"), and the three I/O opcodes that the batch path carries.
 */
#ifndef UDRV_NVME_H
#define UDRV_NVME_H

#include <udrv/compiler.h>

#define NVME_CMD_FLUSH 0x00
#define NVME_CMD_WRITE 0x01
#define NVME_CMD_READ 0x02

#define NVME_PAGE_SHIFT 12
#define NVME_PAGE_SIZE (1u << NVME_PAGE_SHIFT)	/* CC.MPS = 0 */
#define NVME_PAGE_MASK (NVME_PAGE_SIZE - 1)

struct nvme_sqe {
	union {
		struct {
			uint32_t cdw0;	/* 7:0 opcode, 9:8 FUSE, 15:14 PSDT, 31:16 CID */
			uint32_t nsid;
		};
		uint64_t cdw0_nsid;	/* the unions are for whole stores */
	};
	union {
		struct {
			uint32_t cdw2;
			uint32_t cdw3;
		};
		uint64_t cdw2_3;
	};
	uint64_t mptr;
	uint64_t prp1;
	uint64_t prp2;
	union {
		struct {
			uint32_t cdw10;
			uint32_t cdw11;
		};
		uint64_t slba;	/* of read and write */
	};
	union {
		struct {
			uint32_t cdw12;
			uint32_t cdw13;
			uint32_t cdw14;
			uint32_t cdw15;
		};
		udrv_u64x2 cdw12_15;
	};
};
static_assert(sizeof(struct nvme_sqe) == 64, "an SQE is 64 bytes");
static_assert(offsetof(struct nvme_sqe, prp1) == 24, "DPTR is at byte 24");
static_assert(offsetof(struct nvme_sqe, cdw10) == 40, "CDW10 is at byte 40");

struct nvme_cqe {
	union {
		struct {
			uint32_t dw0;
			uint32_t dw1;
		};
		uint64_t result;
	};
	union {
		struct {
			union {
				uint32_t dw2;	/* 15:0 SQHD, 31:16 SQID */
				struct {
					uint16_t sqhd;
					uint16_t sqid;
				};
			};
			union {
				uint32_t dw3;	/* 15:0 CID, 16 phase, 31:17 status */
				uint16_t cid;
			};
		};
		uint64_t dw2_3;		/* one load: whoever sees the phase sees the SQID */
	};
};
static_assert(sizeof(struct nvme_cqe) == 16, "a CQE is 16 bytes");

#endif /* UDRV_NVME_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - NVMe as the device sees it
 *
 * NVM Express Base Specification 2.0c and NVM Command Set Specification 1.0c. Section and figure
 * numbers are those of 1.4, which has both in one document, where they do not say otherwise. The driver has its own
 * definitions and shares none of these on purpose: a field that is wrong on one side must not be
 * wrong on the other too.
 *
 * NVMe is little-endian, and so is every machine that this is built for.
 */
#ifndef UDRV_SOFT_WIRE_H
#define UDRV_SOFT_WIRE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structures are used as they lie");

#define NV_PAGE_SHIFT 12
#define NV_PAGE_SIZE 4096u
#define NV_SQE_SIZE 64u
#define NV_CQE_SIZE 16u
#define NV_NSID_ALL 0xffffffffu

/* --- registers (3.1) ----------------------------------------------------------------------- */

enum nv_reg {
	NV_REG_CAP = 0x00,
	NV_REG_VS = 0x08,
	NV_REG_INTMS = 0x0c,
	NV_REG_INTMC = 0x10,
	NV_REG_CC = 0x14,
	NV_REG_CSTS = 0x1c,
	NV_REG_NSSR = 0x20,
	NV_REG_AQA = 0x24,
	NV_REG_ASQ = 0x28,
	NV_REG_ACQ = 0x30,
	NV_REG_CMBLOC = 0x38,
	NV_REG_CMBSZ = 0x3c,
	NV_REG_CMBMSC = 0x50,
	NV_REG_CMBSTS = 0x58,
	NV_REG_CRTO = 0x68,
};

#define NV_VERSION 0x00020000u

#define NV_CAP_CQR (1ull << 16)
#define NV_CAP_TO(x) ((uint64_t)(x) << 24)
#define NV_CAP_CSS_NVM (1ull << 37)
#define NV_CAP_CMBS (1ull << 57)
#define NV_CAP_CRWMS (1ull << 59) /* mandatory in 2.0: ready with media, within CRTO.CRWMT */

#define NV_CC_EN 1u
#define NV_CC_CSS(cc) (((cc) >> 4) & 7u)
#define NV_CC_MPS(cc) (((cc) >> 7) & 15u)
#define NV_CC_AMS(cc) (((cc) >> 11) & 7u)
#define NV_CC_SHN(cc) (((cc) >> 14) & 3u)
#define NV_CC_IOSQES(cc) (((cc) >> 16) & 15u)
#define NV_CC_IOCQES(cc) (((cc) >> 20) & 15u)
#define NV_CC_WRITABLE 0x00fffff1u

#define NV_CSTS_RDY 1u
#define NV_CSTS_CFS 2u
#define NV_CSTS_SHST_MASK 0x0cu
#define NV_CSTS_SHST_OCCURRING 0x04u
#define NV_CSTS_SHST_DONE 0x08u

/* --- queue entries (4.2, 4.6) -------------------------------------------------------------- */

struct nv_sqe {
	uint8_t opcode;
	uint8_t flags; /* FUSE 1:0, PSDT 7:6 */
	uint16_t cid;
	uint32_t nsid;
	uint32_t cdw2;
	uint32_t cdw3;
	uint64_t mptr;
	uint64_t prp1;
	uint64_t prp2;
	uint32_t cdw10;
	uint32_t cdw11;
	uint32_t cdw12;
	uint32_t cdw13;
	uint32_t cdw14;
	uint32_t cdw15;
};
static_assert(sizeof(struct nv_sqe) == NV_SQE_SIZE, "submission queue entry");

#define NV_FLAGS_FUSE 0x03u
#define NV_FUSE_FIRST 0x01u
#define NV_FUSE_SECOND 0x02u
#define NV_FLAGS_PSDT 0xc0u

/*
 * A completion is written as four words, the last of which carries the phase and is the one that
 * publishes the others.
 */
struct nv_cqe {
	uint32_t result;
	uint32_t reserved;
	uint32_t sq; /* SQHD 15:0, SQID 31:16 */
	uint32_t status; /* CID 15:0, P 16, status 31:17 */
};
static_assert(sizeof(struct nv_cqe) == NV_CQE_SIZE, "completion queue entry");

/*
 * Status without the phase bit: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14. The names below carry
 * DNR where the same command would fail again whatever the host does in between.
 */
#define NV_MORE 0x2000u
#define NV_DNR 0x4000u

enum nv_status {
	NV_OK = 0x000,
	/* generic, 4.6.1.2.1 */
	NV_INVALID_OPCODE = 0x001 | NV_DNR,
	NV_INVALID_FIELD = 0x002 | NV_DNR,
	NV_DATA_TRANSFER = 0x004,
	NV_INTERNAL = 0x006,
	NV_ABORTED = 0x007,
	NV_FAILED_FUSED = 0x009,
	NV_MISSING_FUSED = 0x00a,
	NV_INVALID_NS = 0x00b | NV_DNR,
	NV_SEQUENCE = 0x00c | NV_DNR,
	NV_PRP_OFFSET = 0x013 | NV_DNR,
	NV_SANITIZE_FAILED = 0x01c,
	NV_SANITIZING = 0x01d,
	NV_LBA_RANGE = 0x080 | NV_DNR,
	NV_CAPACITY = 0x081,
	/* command specific, 4.6.1.2.2 */
	NV_CQ_INVALID = 0x100 | NV_DNR,
	NV_QID_INVALID = 0x101 | NV_DNR,
	NV_QSIZE_INVALID = 0x102 | NV_DNR,
	NV_AER_LIMIT = 0x105,
	NV_FIRMWARE_SLOT = 0x106 | NV_DNR,
	NV_FIRMWARE_IMAGE = 0x107 | NV_DNR,
	NV_VECTOR_INVALID = 0x108 | NV_DNR,
	NV_LOG_INVALID = 0x109 | NV_DNR,
	NV_FORMAT_INVALID = 0x10a | NV_DNR,
	NV_QUEUE_DELETION = 0x10c,
	NV_NOT_SAVEABLE = 0x10d | NV_DNR,
	NV_NOT_NS_SPECIFIC = 0x10f | NV_DNR,
	NV_FIRMWARE_RESET = 0x111,
	NV_OVERLAP = 0x114 | NV_DNR,
	NV_NO_CAPACITY = 0x115 | NV_DNR,
	NV_NO_NSID = 0x116 | NV_DNR,
	NV_ALREADY_ATTACHED = 0x118 | NV_DNR,
	NV_NOT_ATTACHED = 0x11a | NV_DNR,
	NV_NO_THIN = 0x11b | NV_DNR,
	NV_CTRL_LIST = 0x11c | NV_DNR,
	NV_SELF_TESTING = 0x11d,
	NV_INVALID_PI = 0x181 | NV_DNR,
	NV_SIZE_LIMIT = 0x183 | NV_DNR,
	/* media, 4.6.1.2.3; a block stays as it is, but a reset of the path may help some of these */
	NV_WRITE_FAULT = 0x280,
	NV_READ_ERROR = 0x281,
	NV_GUARD_ERROR = 0x282 | NV_DNR,
	NV_APPTAG_ERROR = 0x283 | NV_DNR,
	NV_REFTAG_ERROR = 0x284 | NV_DNR,
	NV_COMPARE_FAILURE = 0x285,
	/* ours: there is nothing to post now (a parked Asynchronous Event Request) */
	NV_NO_COMPLETION = 0x8000,
};

/* --- opcodes (figures 140 and 346) --------------------------------------------------------- */

enum nv_admin_opcode {
	NV_ADM_DELETE_SQ = 0x00,
	NV_ADM_CREATE_SQ = 0x01,
	NV_ADM_GET_LOG = 0x02,
	NV_ADM_DELETE_CQ = 0x04,
	NV_ADM_CREATE_CQ = 0x05,
	NV_ADM_IDENTIFY = 0x06,
	NV_ADM_ABORT = 0x08,
	NV_ADM_SET_FEATURES = 0x09,
	NV_ADM_GET_FEATURES = 0x0a,
	NV_ADM_ASYNC_EVENT = 0x0c,
	NV_ADM_NS_MANAGEMENT = 0x0d,
	NV_ADM_FIRMWARE_COMMIT = 0x10,
	NV_ADM_FIRMWARE_DOWNLOAD = 0x11,
	NV_ADM_SELF_TEST = 0x14,
	NV_ADM_NS_ATTACHMENT = 0x15,
	NV_ADM_KEEP_ALIVE = 0x18,
	NV_ADM_DOORBELL_BUFFER = 0x7c,
	NV_ADM_FORMAT = 0x80,
	NV_ADM_SANITIZE = 0x84,
};

enum nv_io_opcode {
	NV_IO_FLUSH = 0x00,
	NV_IO_WRITE = 0x01,
	NV_IO_READ = 0x02,
	NV_IO_WRITE_UNCORRECTABLE = 0x04,
	NV_IO_COMPARE = 0x05,
	NV_IO_WRITE_ZEROES = 0x08,
	NV_IO_DATASET = 0x09,
	NV_IO_VERIFY = 0x0c,
	NV_IO_COPY = 0x19,
};

/* CDW12 of I/O commands */
#define NV_IO_FUA (1u << 30)
#define NV_IO_PRINFO(dword) (((dword) >> 26) & 15u)
#define NV_IO_DEAC (1u << 25) /* Write Zeroes */
#define NV_IO_DTYPE (15u << 20) /* Write, Copy */

/* Protection information field: action, and what to check */
#define NV_PR_ACT 8u
#define NV_PR_GUARD 4u
#define NV_PR_APP 2u
#define NV_PR_REF 1u

/* --- identify (5.15) ----------------------------------------------------------------------- */

struct nv_id_power_state {
	uint16_t mp;
	uint8_t rest[30];
};

#define NV_OACS_FORMAT (1u << 1)
#define NV_OACS_FIRMWARE (1u << 2)
#define NV_OACS_NS_MANAGEMENT (1u << 3)
#define NV_OACS_SELF_TEST (1u << 4)
#define NV_OACS_DOORBELL_BUFFER (1u << 8)

#define NV_OAES_NS_ATTRIBUTE (1u << 8)
#define NV_OAES_FIRMWARE (1u << 9)

struct nv_u128 {
	uint64_t low;
	uint64_t high;
};

/* Figure 251; fields that are zero here stand as gaps. */
struct nv_id_ctrl {
	uint16_t vid;
	uint16_t ssvid;
	char sn[20];
	char mn[40];
	char fr[8];
	uint8_t rab;
	uint8_t ieee[3];
	uint8_t cmic;
	uint8_t mdts;
	uint16_t cntlid;
	uint32_t ver;
	uint32_t rtd3r;
	uint32_t rtd3e;
	uint32_t oaes;
	uint32_t ctratt;
	uint16_t rrls;
	uint8_t gap102[9];
	uint8_t cntrltype;
	uint8_t gap112[144];
	uint16_t oacs;
	uint8_t acl;
	uint8_t aerl;
	uint8_t frmw;
	uint8_t lpa;
	uint8_t elpe;
	uint8_t npss;
	uint8_t avscc;
	uint8_t apsta;
	uint16_t wctemp;
	uint16_t cctemp;
	uint16_t mtfa;
	uint8_t gap272[8];
	struct nv_u128 tnvmcap;
	struct nv_u128 unvmcap;
	uint32_t rpmbs;
	uint16_t edstt;
	uint8_t dsto;
	uint8_t fwug;
	uint16_t kas;
	uint8_t gap322[6];
	uint32_t sanicap;
	uint8_t gap332[180];
	uint8_t sqes;
	uint8_t cqes;
	uint16_t maxcmd;
	uint32_t nn;
	uint16_t oncs;
	uint16_t fuses;
	uint8_t fna;
	uint8_t vwc;
	uint16_t awun;
	uint16_t awupf;
	uint8_t nvscc;
	uint8_t nwpc;
	uint16_t acwu;
	uint16_t ocfs;
	uint32_t sgls;
	uint32_t mnan;
	uint8_t gap544[224];
	char subnqn[256];
	uint8_t gap1024[1024];
	struct nv_id_power_state psd[32];
	uint8_t vendor[1024];
};
static_assert(sizeof(struct nv_id_ctrl) == 4096, "identify controller");
static_assert(offsetof(struct nv_id_ctrl, cntrltype) == 111, "CNTRLTYPE");
static_assert(offsetof(struct nv_id_ctrl, oacs) == 256, "OACS");
static_assert(offsetof(struct nv_id_ctrl, tnvmcap) == 280, "TNVMCAP");
static_assert(offsetof(struct nv_id_ctrl, sanicap) == 328, "SANICAP");
static_assert(offsetof(struct nv_id_ctrl, sqes) == 512, "SQES");
static_assert(offsetof(struct nv_id_ctrl, vwc) == 525, "VWC");
static_assert(offsetof(struct nv_id_ctrl, sgls) == 536, "SGLS");
static_assert(offsetof(struct nv_id_ctrl, subnqn) == 768, "SUBNQN");
static_assert(offsetof(struct nv_id_ctrl, psd) == 2048, "PSD0");

struct nv_lbaf {
	uint16_t ms;
	uint8_t lbads;
	uint8_t rp;
};

/* Figure 249. */
struct nv_id_ns {
	uint64_t nsze;
	uint64_t ncap;
	uint64_t nuse;
	uint8_t nsfeat;
	uint8_t nlbaf;
	uint8_t flbas;
	uint8_t mc;
	uint8_t dpc;
	uint8_t dps;
	uint8_t nmic;
	uint8_t rescap;
	uint8_t fpi;
	uint8_t dlfeat;
	uint8_t gap34[14];
	struct nv_u128 nvmcap;
	uint8_t gap64[10];
	uint16_t mssrl;
	uint32_t mcl;
	uint8_t msrc;
	uint8_t gap81[23];
	uint8_t nguid[16];
	uint8_t eui64[8];
	struct nv_lbaf lbaf[16];
	uint8_t gap192[3904];
};
static_assert(sizeof(struct nv_id_ns) == 4096, "identify namespace");
static_assert(offsetof(struct nv_id_ns, nvmcap) == 48, "NVMCAP");
static_assert(offsetof(struct nv_id_ns, mssrl) == 74, "MSSRL");
static_assert(offsetof(struct nv_id_ns, nguid) == 104, "NGUID");
static_assert(offsetof(struct nv_id_ns, lbaf) == 128, "LBAF0");

/* --- features (5.21.1) --------------------------------------------------------------------- */

enum nv_feature {
	NV_FEAT_ARBITRATION = 0x01,
	NV_FEAT_POWER = 0x02,
	NV_FEAT_TEMPERATURE = 0x04,
	NV_FEAT_ERROR_RECOVERY = 0x05,
	NV_FEAT_WRITE_CACHE = 0x06,
	NV_FEAT_QUEUES = 0x07,
	NV_FEAT_COALESCING = 0x08,
	NV_FEAT_VECTOR = 0x09,
	NV_FEAT_ATOMICITY = 0x0a,
	NV_FEAT_EVENTS = 0x0b,
	NV_FEAT_TIMESTAMP = 0x0e,
	NV_FEAT_KEEP_ALIVE = 0x0f,
};

/* --- asynchronous events (5.2.1) ----------------------------------------------------------- */

enum nv_event_type {
	NV_EVENT_ERROR = 0,
	NV_EVENT_SMART = 1,
	NV_EVENT_NOTICE = 2,
	NV_EVENT_IO = 6,
	NV_EVENT_TYPES,
};

#define NV_EVENT_BAD_DOORBELL_REGISTER 0x00u
#define NV_EVENT_BAD_DOORBELL_VALUE 0x01u
#define NV_EVENT_TEMPERATURE 0x01u
#define NV_EVENT_NS_ATTRIBUTE 0x00u
#define NV_EVENT_FIRMWARE 0x01u
#define NV_EVENT_SANITIZED 0x01u

#include "wire_log.h"

#endif /* UDRV_SOFT_WIRE_H */

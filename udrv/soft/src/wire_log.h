/* SPDX-License-Identifier: Apache-2.0 */
/* wire_log.h - log pages (NVMe 1.4, 5.14.1; base 2.0, 5.16.1); part of wire.h */
#ifndef UDRV_SOFT_WIRE_LOG_H
#define UDRV_SOFT_WIRE_LOG_H

#include <assert.h>
#include <stdint.h>

enum nv_log {
	NV_LOG_SUPPORTED = 0x00,
	NV_LOG_ERROR = 0x01,
	NV_LOG_SMART = 0x02,
	NV_LOG_FIRMWARE = 0x03,
	NV_LOG_CHANGED_NS = 0x04,
	NV_LOG_EFFECTS = 0x05,
	NV_LOG_SELF_TEST = 0x06,
	NV_LOG_FEATURES = 0x12,
	NV_LOG_MI_COMMANDS = 0x13,
	NV_LOG_SANITIZE = 0x81,
	NV_LOG_COUNTERS = 0xc0, /* vendor specific: struct udrv_soft_counters */
};

/* Figure 194. */
struct nv_error_entry {
	uint64_t count;
	uint16_t sqid;
	uint16_t cid;
	uint16_t status; /* with the phase bit */
	uint16_t location;
	uint64_t lba;
	uint32_t nsid;
	uint8_t rest[36];
};
static_assert(sizeof(struct nv_error_entry) == 64, "error information entry");

/* Figure 195; not one field of it is aligned to its size, so it is packed. */
struct nv_smart {
	uint8_t warning;
	uint16_t temperature;
	uint8_t spare;
	uint8_t spare_threshold;
	uint8_t used;
	uint8_t gap6[26];
	struct nv_u128 units_read;
	struct nv_u128 units_written;
	struct nv_u128 reads;
	struct nv_u128 writes;
	struct nv_u128 busy_minutes;
	struct nv_u128 power_cycles;
	struct nv_u128 power_on_hours;
	struct nv_u128 unsafe_shutdowns;
	struct nv_u128 media_errors;
	struct nv_u128 error_entries;
	uint8_t gap192[24];
	uint32_t tmt1_transitions; /* thermal management temperature 1 */
	uint32_t gap220;
	uint32_t tmt1_seconds;
	uint8_t gap228[284];
} __attribute__((packed));
static_assert(sizeof(struct nv_smart) == 512, "SMART / health information");

/* Figure 197. */
struct nv_firmware {
	uint8_t afi;
	uint8_t gap1[7];
	char frs[7][8];
	uint8_t gap64[448];
};
static_assert(sizeof(struct nv_firmware) == 512, "firmware slot information");

/* Command and feature effects: bits of a dword of logs 05h and 12h. */
#define NV_EFFECT_SUPPORTED (1u << 0)
#define NV_EFFECT_CONTENT (1u << 1) /* changes blocks (LBCC) or user data (UDCC) */
#define NV_EFFECT_NS (1u << 2) /* changes capabilities of a namespace (NCC) */
#define NV_EFFECT_INVENTORY (1u << 3) /* changes the inventory of namespaces (NIC) */
#define NV_EFFECT_CONTROLLER (1u << 4) /* changes capabilities of the controller (CCC) */
#define NV_EFFECT_EXCLUSIVE_NS (1u << 16) /* nothing else for this namespace meanwhile (CSE) */
#define NV_EFFECT_EXCLUSIVE (2u << 16) /* nothing else for any namespace */
#define NV_EFFECT_SCOPE_NS (1u << 20)
#define NV_EFFECT_SCOPE_CONTROLLER (1u << 21)
#define NV_EFFECT_SCOPE_SUBSYSTEM (1u << 25)

struct nv_effects {
	uint32_t admin[256];
	uint32_t io[256];
	uint8_t gap2048[2048];
};
static_assert(sizeof(struct nv_effects) == 4096, "commands supported and effects");

/* Base 2.0, 5.16.1.7 */
struct nv_self_test_result {
	uint8_t status; /* result 3:0, self-test code 7:4 */
	uint8_t segment;
	uint8_t valid; /* of: NSID 0, failing LBA 1, SCT 2, SC 3 */
	uint8_t gap3;
	uint64_t power_on_hours;
	uint32_t nsid;
	uint64_t lba;
	uint8_t sct;
	uint8_t sc;
	uint16_t vendor;
} __attribute__((packed));
static_assert(sizeof(struct nv_self_test_result) == 28, "self-test result");

#define NV_SELF_TEST_RESULTS 20u

struct nv_self_test_log {
	uint8_t operation;
	uint8_t completion;
	uint8_t gap2[2];
	struct nv_self_test_result result[NV_SELF_TEST_RESULTS];
} __attribute__((packed));
static_assert(sizeof(struct nv_self_test_log) == 564, "device self-test log");

/* Base 2.0, 5.16.1.25; times in seconds, FFFFFFFFh: not reported */
struct nv_sanitize_log {
	uint16_t progress;
	uint16_t status;
	uint32_t cdw10;
	uint32_t overwrite_s;
	uint32_t block_s;
	uint32_t crypto_s;
	uint32_t overwrite_no_deallocate_s;
	uint32_t block_no_deallocate_s;
	uint32_t crypto_no_deallocate_s;
	uint8_t gap32[480];
};
static_assert(sizeof(struct nv_sanitize_log) == 512, "sanitize status");

#endif /* UDRV_SOFT_WIRE_LOG_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* state.h - what a controller remembers besides its queues; part of ctrl.h */
#ifndef UDRV_SOFT_STATE_H
#define UDRV_SOFT_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include <udrv/soft.h>

#include "wire.h"

#define MAX_VECTORS (UDRV_SOFT_MAX_QUEUES + 1)
#define AER_MAX 4u
#define ERROR_LOG_ENTRIES 64u
#define FIRMWARE_SLOTS 3u

/* soft_media.special: why a Read or Write takes the long way; 0 for most namespaces, always */
#define MEDIA_METADATA 1u /* blocks have metadata */
#define MEDIA_BAD 2u /* there are blocks that Write Uncorrectable made unreadable */
#define MEDIA_SANITIZING 4u
#define MEDIA_ERASED 8u /* the first write ends "Global Data Erased" of the sanitize log */

/**
 * struct soft_media - the namespace behind one NSID
 * @allocated:	it exists; @attached: it is active
 * @blocks:	its size in its present format
 * @memory:	all of it, if it is memory
 * @fd:		the file, if it is a file (the caller's), else -1
 * @bytes:	capacity: what was allocated, whatever the format
 * @format:	index of the LBA format, ns.c
 * @extended:	metadata follows each block in the data buffer; else it has a buffer of its own
 * @pi:		type of protection information, 0 none; @pi_first: in the first 8 bytes of metadata
 * @meta:	metadata, always memory, @ms bytes a block; protection information is stored inverted,
 *		so that a fresh page reads as FFh, which disables its checks
 * @bad:	a bit a block; NULL until it is needed
 */
struct soft_media {
	bool allocated;
	bool attached;
	uint8_t format;
	bool extended;
	uint8_t pi;
	bool pi_first;
	uint16_t ms;
	uint32_t special;
	uint32_t lba_shift;
	int fd;
	uint64_t blocks;
	uint8_t *memory;
	uint64_t bytes;
	uint8_t *meta;
	uint64_t meta_bytes;
	uint64_t *bad;
	uint64_t bad_bytes;
	uint64_t nr_bad;
};

/* What Set Features changes; a controller reset puts the saved values back. */
struct soft_features {
	uint32_t arbitration;
	uint32_t power;
	uint32_t over_temperature;
	uint32_t under_temperature;
	uint32_t error_recovery[UDRV_SOFT_MAX_NS];
	uint32_t write_cache;
	uint32_t coalescing;
	uint32_t atomicity;
	uint32_t events;
	uint32_t keep_alive_ms; /* 0: off */
	bool vector_uncoalesced[MAX_VECTORS];
};

/**
 * struct soft_events - Asynchronous Event Requests and events
 * @parked:	command ids of requests that wait for an event
 * @pending:	an event of this type waits for a request
 * @masked:	this type was reported; its log page must be read before it is reported again
 * @dword:	Dword 0 of the completion that reports it
 * @notice_log:	the log page of the notice that was reported last: reading it ends the mask
 */
struct soft_events {
	uint32_t nr_parked;
	uint16_t parked[AER_MAX];
	bool pending[NV_EVENT_TYPES];
	bool masked[NV_EVENT_TYPES];
	uint32_t dword[NV_EVENT_TYPES];
	uint32_t notice_log;
};

struct soft_statistics {
	uint64_t sectors_read; /* of 512 bytes */
	uint64_t sectors_written;
	uint64_t reads;
	uint64_t writes;
	uint64_t media_errors;
	uint64_t unsafe_shutdowns;
	uint64_t errors;
	struct nv_error_entry log[ERROR_LOG_ENTRIES]; /* entry of error n at (n - 1) % ENTRIES */
};

/**
 * struct soft_clock - the Timestamp feature
 * @ms:		what the host set, and @set_ns when, on our clock; 0 is the last reset
 */
struct soft_clock {
	uint64_t ms;
	uint64_t set_ns;
	bool by_host;
};

/**
 * struct soft_self_test - Device Self-test: at most one at a time
 * @code:	1 short, 2 extended, 0 none
 * @result:	newest first; all of it survives resets
 */
struct soft_self_test {
	uint8_t code;
	uint32_t nsid;
	uint64_t start_ns;
	uint64_t end_ns;
	uint32_t nr_results;
	struct nv_self_test_result result[NV_SELF_TEST_RESULTS];
};

/**
 * struct soft_sanitize - Sanitize: it goes on, and is remembered, through resets
 * @status:	SSTAT of the log
 */
struct soft_sanitize {
	bool running;
	uint16_t status;
	uint32_t cdw10;
	uint64_t start_ns;
	uint64_t end_ns;
};

/**
 * struct soft_firmware - firmware slots
 * @revision:	of each slot, empty if its first byte is 0; slot 1 is read-only
 * @active:	slot that runs, from 1; @next: slot that the next reset activates, or 0
 * @pages:	which 4 KiB pieces of an image were downloaded
 * @image:	the revision in the first piece's head: all of the image that matters
 */
struct soft_firmware {
	char revision[FIRMWARE_SLOTS][8];
	uint8_t active;
	uint8_t next;
	uint64_t pages;
	char image[16];
};

/**
 * struct soft_cmb - the controller memory buffer
 * @bytes:	0: there is none
 * @control:	CMBMSC; @status: CMBSTS
 * @placed:	it is in the table of mappings, at @base
 */
struct soft_cmb {
	int fd;
	bool placed;
	uint32_t status;
	uint64_t bytes;
	uint64_t control;
	uint64_t base;
	uint8_t *memory;
};

#endif /* UDRV_SOFT_STATE_H */

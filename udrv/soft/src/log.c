// SPDX-License-Identifier: Apache-2.0
/* Get Log Page (NVMe 1.4, 5.14; base 2.0, 5.16). */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define NS_PER_MINUTE 60000000000ull
#define NS_PER_HOUR (60 * NS_PER_MINUTE)
#define RETAIN_EVENT (1u << 15)
#define OFFSET_TYPE (1u << 23) /* CDW14: the offset is an index */

/* --- the error log ------------------------------------------------------------------------- */

void soft_log_error(struct udrv_soft *c, const struct nv_sqe *cmd, uint16_t sqid, uint16_t status)
{
	struct soft_statistics *s = &c->stat;
	struct nv_error_entry *e = &s->log[s->errors % ERROR_LOG_ENTRIES];

	s->errors++;
	memset(e, 0, sizeof(*e));
	e->count = s->errors;
	e->sqid = sqid;
	e->cid = cmd->cid;
	e->status = (uint16_t)(status << 1);
	e->location = 0xffff; /* not narrowed down to a field */
	e->lba = sqid ? (uint64_t)cmd->cdw11 << 32 | cmd->cdw10 : 0;
	e->nsid = cmd->nsid;
}

/* Newest first; entries that were never used are zero. */
static uint32_t fill_error_log(struct udrv_soft *c)
{
	const struct soft_statistics *s = &c->stat;

	for (uint32_t i = 0; i < ERROR_LOG_ENTRIES && i < s->errors; i++) {
		const struct nv_error_entry *e = &s->log[(s->errors - 1 - i) % ERROR_LOG_ENTRIES];

		memcpy(c->page + i * sizeof(*e), e, sizeof(*e));
	}
	return ERROR_LOG_ENTRIES * sizeof(struct nv_error_entry);
}

static_assert(ERROR_LOG_ENTRIES * sizeof(struct nv_error_entry) <= NV_PAGE_SIZE,
	      "the error log fits into a page");

/* --- the other logs ------------------------------------------------------------------------ */

uint64_t soft_power_on_hours(const struct udrv_soft *c)
{
	return (soft_now_ns() - c->born_ns) / NS_PER_HOUR;
}

static uint32_t fill_smart(struct udrv_soft *c)
{
	const struct soft_statistics *s = &c->stat;
	struct nv_smart *log = &c->smart;
	uint32_t onsets = 0, seconds = 0;

	log->warning = soft_warnings(c);
	log->temperature = (uint16_t)soft_temperature(c, &onsets, &seconds);
	log->tmt1_transitions = onsets;
	log->tmt1_seconds = seconds;
	log->spare = 100;
	log->spare_threshold = 10;
	/* In thousands of 512 bytes, rounded up. */
	log->units_read.low = (s->sectors_read + 999) / 1000;
	log->units_written.low = (s->sectors_written + 999) / 1000;
	log->reads.low = s->reads;
	log->writes.low = s->writes;
	log->power_cycles.low = 1;
	log->power_on_hours.low = soft_power_on_hours(c);
	log->unsafe_shutdowns.low = s->unsafe_shutdowns;
	log->media_errors.low = s->media_errors;
	log->error_entries.low = s->errors;
	return sizeof(*log);
}

static uint32_t fill_firmware(struct udrv_soft *c)
{
	c->firmware.afi = (uint8_t)(c->slots.next << 4 | c->slots.active);
	for (uint32_t i = 0; i < FIRMWARE_SLOTS; i++)
		memcpy(c->firmware.frs[i], c->slots.revision[i], sizeof(c->firmware.frs[i]));
	return sizeof(c->firmware);
}

/* Ascending, as every list of namespaces is. */
static uint32_t fill_changed(struct udrv_soft *c)
{
	memcpy(c->page, c->changed_ns, c->nr_changed_ns * sizeof(c->changed_ns[0]));
	return NV_PAGE_SIZE;
}

static uint32_t fill_effects(struct udrv_soft *c)
{
	for (uint32_t i = 0; i < 256; i++) {
		c->effects.admin[i] = soft_admin_effects(i);
		c->effects.io[i] = soft_io_effects(i);
	}
	return sizeof(c->effects);
}

static uint32_t fill_self_test(struct udrv_soft *c)
{
	soft_self_test_log(c, &c->self_test);
	return sizeof(c->self_test);
}

static uint32_t fill_features(struct udrv_soft *c)
{
	for (uint32_t i = 0; i < 256; i++)
		c->dwords[i] = soft_feature_effects(i);
	return 1024;
}

static uint32_t fill_nothing(struct udrv_soft *c)
{
	(void)c; /* no NVMe-MI command is supported */
	return NV_PAGE_SIZE;
}

static uint32_t fill_sanitize(struct udrv_soft *c)
{
	soft_sanitize_log(c, &c->sanitized);
	return sizeof(c->sanitized);
}

static uint32_t fill_supported(struct udrv_soft *c);

static const struct log_page {
	uint32_t (*fill)(struct udrv_soft *c);
	enum nv_event_type event; /* reading it ends the mask of this type; 0 is no log's own */
	bool sanitizing; /* may be read during a sanitize operation */
} pages[256] = {
	[NV_LOG_SUPPORTED] = { fill_supported, NV_EVENT_TYPES, false },
	[NV_LOG_ERROR] = { fill_error_log, NV_EVENT_ERROR, true },
	[NV_LOG_SMART] = { fill_smart, NV_EVENT_SMART, true },
	[NV_LOG_FIRMWARE] = { fill_firmware, NV_EVENT_TYPES, false },
	[NV_LOG_CHANGED_NS] = { fill_changed, NV_EVENT_NOTICE, true },
	[NV_LOG_EFFECTS] = { fill_effects, NV_EVENT_TYPES, false },
	[NV_LOG_SELF_TEST] = { fill_self_test, NV_EVENT_TYPES, false },
	[NV_LOG_FEATURES] = { fill_features, NV_EVENT_TYPES, false },
	[NV_LOG_MI_COMMANDS] = { fill_nothing, NV_EVENT_TYPES, false },
	[NV_LOG_SANITIZE] = { fill_sanitize, NV_EVENT_IO, true },
};

static uint32_t fill_supported(struct udrv_soft *c)
{
	for (uint32_t i = 0; i < 256; i++)
		c->dwords[i] = pages[i].fill != NULL || i == NV_LOG_COUNTERS;
	return 1024;
}

/* --- the command --------------------------------------------------------------------------- */

static uint16_t send_log(struct udrv_soft *c, const struct nv_sqe *cmd, const void *log,
			 uint32_t size)
{
	uint64_t dwords = ((uint64_t)(cmd->cdw11 & 0xffff) << 16 | cmd->cdw10 >> 16) + 1;
	uint64_t offset = (uint64_t)cmd->cdw13 << 32 | cmd->cdw12;
	uint64_t len = dwords * 4;
	uint16_t status;

	if (offset % 4 || offset > size || len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD;
	status = soft_map_data(c, cmd, (uint32_t)len, DMA_WRITE);
	if (status)
		return status;
	for (uint32_t i = 0; i < c->nr_segments; i++) {
		uint8_t *to = c->segment[i].iov_base;
		size_t room = c->segment[i].iov_len;
		size_t part = size - offset < room ? (size_t)(size - offset) : room;

		/* What lies beyond the end of the log is zero. */
		memcpy(to, (const uint8_t *)log + offset, part);
		memset(to + part, 0, room - part);
		offset += part;
	}
	return NV_OK;
}

uint16_t soft_get_log(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint32_t lid = cmd->cdw10 & 0xff, size = sizeof(*c->counters);
	const struct log_page *page = &pages[lid];
	const void *log = c->counters;
	uint16_t status;

	if (!page->fill && lid != NV_LOG_COUNTERS)
		return NV_LOG_INVALID;
	if (c->sanitize.running && !page->sanitizing)
		return NV_SANITIZING;
	/* No log of ours supports an index in place of an offset (IOS of log page 00h). */
	if (cmd->cdw14 & OFFSET_TYPE)
		return NV_INVALID_FIELD;
	/* LPA bit 0 is 0: these are the controller's, and no namespace has its own. */
	if (cmd->nsid != 0 && cmd->nsid != NV_NSID_ALL)
		return NV_INVALID_FIELD;
	if (page->fill) {
		memset(c->page, 0, sizeof(c->page));
		size = page->fill(c);
		log = c->page;
	}
	status = send_log(c, cmd, log, size);
	if (status || !page->fill || cmd->cdw10 & RETAIN_EVENT)
		return status;
	if (lid == NV_LOG_CHANGED_NS)
		c->nr_changed_ns = 0;
	/* A notice about firmware ends when the slots are read, one about namespaces by their log. */
	if (lid == NV_LOG_FIRMWARE && c->event.notice_log == NV_LOG_FIRMWARE)
		c->event.masked[NV_EVENT_NOTICE] = false;
	else if (page->event != NV_EVENT_TYPES)
		c->event.masked[page->event] = false;
	return NV_OK;
}

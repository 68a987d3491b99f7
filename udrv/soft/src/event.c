// SPDX-License-Identifier: Apache-2.0
/* Log pages and asynchronous events (NVMe 1.4, 5.14 and 5.2). */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define NS_PER_MINUTE 60000000000ull
#define NS_PER_HOUR (60 * NS_PER_MINUTE)
#define WARN_TEMPERATURE (1u << 1)
#define RETAIN_EVENT (1u << 15)

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
static uint32_t fill_error_log(const struct udrv_soft *c, uint8_t *page)
{
	const struct soft_statistics *s = &c->stat;

	for (uint32_t i = 0; i < ERROR_LOG_ENTRIES && i < s->errors; i++) {
		const struct nv_error_entry *e = &s->log[(s->errors - 1 - i) % ERROR_LOG_ENTRIES];

		memcpy(page + i * sizeof(*e), e, sizeof(*e));
	}
	return ERROR_LOG_ENTRIES * sizeof(struct nv_error_entry);
}

static_assert(ERROR_LOG_ENTRIES * sizeof(struct nv_error_entry) <= NV_PAGE_SIZE,
	      "the error log fits into a page");

/* --- the other logs ------------------------------------------------------------------------ */

static uint8_t warnings(const struct udrv_soft *c)
{
	if (TEMPERATURE_K >= c->feature.over_temperature ||
	    TEMPERATURE_K <= c->feature.under_temperature)
		return WARN_TEMPERATURE;
	return 0;
}

static uint32_t fill_smart(const struct udrv_soft *c, struct nv_smart *log)
{
	const struct soft_statistics *s = &c->stat;

	log->warning = warnings(c);
	log->temperature = TEMPERATURE_K;
	log->spare = 100;
	log->spare_threshold = 10;
	/* In thousands of 512 bytes, rounded up. */
	log->units_read.low = (s->sectors_read + 999) / 1000;
	log->units_written.low = (s->sectors_written + 999) / 1000;
	log->reads.low = s->reads;
	log->writes.low = s->writes;
	log->power_cycles.low = 1;
	log->power_on_hours.low = (soft_now_ns() - c->born_ns) / NS_PER_HOUR;
	log->unsafe_shutdowns.low = s->unsafe_shutdowns;
	log->media_errors.low = s->media_errors;
	log->error_entries.low = s->errors;
	return sizeof(*log);
}

static uint32_t fill_firmware(struct nv_firmware *log)
{
	log->afi = 1;
	memcpy(log->frs[0], "1.0     ", sizeof(log->frs[0]));
	return sizeof(*log);
}

static void unmask(struct udrv_soft *c, enum nv_event_type type)
{
	c->event.masked[type] = false;
}

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
	enum nv_event_type type = NV_EVENT_TYPES;
	const void *log = c->page;
	uint16_t status;
	uint32_t size;

	memset(c->page, 0, sizeof(c->page));
	switch (cmd->cdw10 & 0xff) {
	case NV_LOG_ERROR:
		size = fill_error_log(c, c->page);
		type = NV_EVENT_ERROR;
		break;
	case NV_LOG_SMART:
		size = fill_smart(c, &c->smart);
		type = NV_EVENT_SMART;
		break;
	case NV_LOG_FIRMWARE:
		size = fill_firmware(&c->firmware);
		break;
	case NV_LOG_COUNTERS:
		log = c->counters;
		size = sizeof(*c->counters);
		break;
	default:
		return NV_LOG_INVALID;
	}
	/* LPA bit 0 is 0: these are the controller's, and no namespace has its own. */
	if (cmd->nsid != 0 && cmd->nsid != NV_NSID_ALL)
		return NV_INVALID_FIELD;
	status = send_log(c, cmd, log, size);
	if (!status && type != NV_EVENT_TYPES && !(cmd->cdw10 & RETAIN_EVENT))
		unmask(c, type);
	return status;
}

/* --- events -------------------------------------------------------------------------------- */

void soft_event_raise(struct udrv_soft *c, enum nv_event_type type, uint32_t info, uint32_t log)
{
	struct soft_events *e = &c->event;

	/* One of each type at a time: the log has the rest. */
	if (e->pending[type])
		return;
	e->pending[type] = true;
	e->dword[type] = log << 16 | info << 8 | (uint32_t)type;
}

void soft_events_deliver(struct udrv_soft *c)
{
	struct soft_events *e = &c->event;

	for (uint32_t type = 0; type < NV_EVENT_TYPES; type++) {
		if (!e->pending[type] || e->masked[type] || !e->nr_parked || !c->running)
			continue;
		if (!soft_complete_admin(c, e->parked[0], NV_OK, e->dword[type]))
			return;
		e->nr_parked--;
		memmove(&e->parked[0], &e->parked[1], e->nr_parked * sizeof(e->parked[0]));
		e->pending[type] = false;
		e->masked[type] = true;
	}
}

void soft_check_temperature(struct udrv_soft *c)
{
	if (warnings(c) & c->feature.events & WARN_TEMPERATURE)
		soft_event_raise(c, NV_EVENT_SMART, NV_EVENT_TEMPERATURE, NV_LOG_SMART);
}

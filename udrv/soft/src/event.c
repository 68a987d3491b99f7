// SPDX-License-Identifier: Apache-2.0
/*
 * Asynchronous events (NVMe 1.4, 5.2), and what is due at a time: the Keep Alive Timer and the end
 * of a sanitize operation.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define WARN_TEMPERATURE (1u << 1)
#define NS_PER_MS 1000000ull

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
		if (type == NV_EVENT_NOTICE)
			e->notice_log = e->dword[type] >> 16;
	}
}

/* --- what raises them ---------------------------------------------------------------------- */

uint32_t soft_temperature(const struct udrv_soft *c, uint32_t *onsets, uint32_t *seconds)
{
	*onsets = 0;
	*seconds = 0;
	return TEMPERATURE_K + (c->injecting ? soft_fault_heat(c, onsets, seconds) : 0);
}

uint8_t soft_warnings(const struct udrv_soft *c)
{
	uint32_t onsets, seconds, kelvins = soft_temperature(c, &onsets, &seconds);

	if (kelvins >= c->feature.over_temperature || kelvins <= c->feature.under_temperature)
		return WARN_TEMPERATURE;
	return 0;
}

void soft_check_temperature(struct udrv_soft *c)
{
	if (soft_warnings(c) & c->feature.events & WARN_TEMPERATURE)
		soft_event_raise(c, NV_EVENT_SMART, NV_EVENT_TEMPERATURE, NV_LOG_SMART);
}

void soft_ns_changed(struct udrv_soft *c, uint32_t nsid)
{
	uint32_t i = 0;

	while (i < c->nr_changed_ns && c->changed_ns[i] < nsid)
		i++;
	if (i == c->nr_changed_ns || c->changed_ns[i] != nsid) {
		/* There is room: a namespace is in it once. */
		memmove(&c->changed_ns[i + 1], &c->changed_ns[i],
			(c->nr_changed_ns - i) * sizeof(c->changed_ns[0]));
		c->changed_ns[i] = nsid;
		c->nr_changed_ns++;
	}
	if (c->feature.events & NV_OAES_NS_ATTRIBUTE)
		soft_event_raise(c, NV_EVENT_NOTICE, NV_EVENT_NS_ATTRIBUTE, NV_LOG_CHANGED_NS);
}

/* --- what is due at a time ----------------------------------------------------------------- */

static void due_at(struct udrv_soft *c, uint64_t ns)
{
	if (!c->due_ns || ns < c->due_ns)
		c->due_ns = ns;
}

void soft_schedule(struct udrv_soft *c)
{
	c->due_ns = 0;
	if (c->feature.keep_alive_ms)
		due_at(c, c->alive_ns + c->feature.keep_alive_ms * NS_PER_MS);
	if (c->sanitize.running)
		due_at(c, c->sanitize.end_ns);
	if (c->test.code)
		due_at(c, c->test.end_ns);
}

void soft_tick(struct udrv_soft *c, uint64_t now)
{
	if (c->test.code && now >= c->test.end_ns)
		soft_self_test_end(c);
	if (c->sanitize.running && now >= c->sanitize.end_ns)
		soft_sanitize_end(c);
	/* Base 2.0, 3.9: the host is taken for dead. */
	if (c->feature.keep_alive_ms &&
	    now >= c->alive_ns + c->feature.keep_alive_ms * NS_PER_MS) {
		c->feature.keep_alive_ms = 0;
		soft_fatal(c);
	}
	soft_schedule(c);
}

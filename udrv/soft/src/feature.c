// SPDX-License-Identifier: Apache-2.0
/*
 * Set and Get Features (NVMe 1.4, 5.21 and 5.13), with the Select and Save fields (ONCS bit 4).
 *
 * A value is current, saved or the default. Saved values come back at every controller level
 * reset, for as long as the process lives.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define SAVE (1u << 31)
#define NUMBER_INVALID 0xffffu
#define SELECT(dword) ((dword) >> 8 & 7u)

enum { CURRENT, DEFAULT, SAVED, CAPABILITIES };

/* What Select = 3 answers with; 0: there is no such feature. */
#define CAN_SAVE 1u
#define PER_NAMESPACE 2u
#define CAN_CHANGE 4u

static const uint8_t capabilities[256] = {
	[NV_FEAT_ARBITRATION] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_POWER] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_TEMPERATURE] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_ERROR_RECOVERY] = CAN_CHANGE | CAN_SAVE | PER_NAMESPACE,
	[NV_FEAT_WRITE_CACHE] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_QUEUES] = CAN_CHANGE,
	[NV_FEAT_COALESCING] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_VECTOR] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_ATOMICITY] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_EVENTS] = CAN_CHANGE | CAN_SAVE,
	[NV_FEAT_TIMESTAMP] = CAN_CHANGE,
	[NV_FEAT_KEEP_ALIVE] = CAN_CHANGE,
};

uint32_t soft_feature_effects(uint32_t fid)
{
	uint8_t cap = capabilities[fid];

	if (!cap)
		return 0;
	return NV_EFFECT_SUPPORTED |
	       (cap & PER_NAMESPACE ? NV_EFFECT_SCOPE_NS : NV_EFFECT_SCOPE_CONTROLLER);
}

void soft_features_init(struct udrv_soft *c)
{
	c->feature_default = (struct soft_features){
		.arbitration = 4, /* burst: 2^4 */
		.over_temperature = WARNING_TEMPERATURE_K,
		.write_cache = 1,
	};
	c->feature_saved = c->feature_default;
}

void soft_features_reset(struct udrv_soft *c)
{
	c->feature = c->feature_saved;
	c->clock = (struct soft_clock){ .set_ns = soft_now_ns() };
}

/* --- one by one ---------------------------------------------------------------------------- */

static uint32_t *temperature(struct soft_features *f, uint32_t dword)
{
	uint32_t sensor = dword >> 16 & 15, kind = dword >> 20 & 3;

	/* The composite temperature is the only one; FFh, "all", is for Set Features alone. */
	if (sensor != 0 && sensor != 15)
		return NULL;
	if (kind > 1)
		return NULL;
	return kind ? &f->under_temperature : &f->over_temperature;
}

static uint32_t queues_result(const struct udrv_soft *c)
{
	return (c->allocated_queues - 1) << 16 | (c->allocated_queues - 1);
}

/* As many as were asked for, but one number for both kinds, and not more than there are. */
static uint16_t set_queues(struct udrv_soft *c, uint32_t dword, uint32_t *result)
{
	uint32_t nsq = dword & 0xffff, ncq = dword >> 16;
	uint32_t wanted = (nsq > ncq ? nsq : ncq) + 1;

	if (nsq == NUMBER_INVALID || ncq == NUMBER_INVALID)
		return NV_INVALID_FIELD;
	if (c->nr_cqs > 1 || c->nr_sqs > 1)
		return NV_SEQUENCE; /* only before the first I/O queue is created */
	c->allocated_queues = wanted < c->cfg.queues ? wanted : c->cfg.queues;
	*result = queues_result(c);
	return NV_OK;
}

static uint16_t set_error_recovery(struct soft_features *f, uint32_t nsid, uint32_t dword)
{
	if (dword & 1u << 16)
		return NV_INVALID_FIELD; /* DULBE: deallocated blocks read as zeroes */
	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++) {
		if (nsid == NV_NSID_ALL || nsid == i + 1)
			f->error_recovery[i] = dword & 0xffff;
	}
	return NV_OK;
}

/* 5.21.1.14: milliseconds in 6 bytes, then attributes */
static uint16_t set_timestamp(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint64_t value;
	uint16_t status = soft_fetch(c, cmd, &value, sizeof(value));

	if (status)
		return status;
	c->clock = (struct soft_clock){ .ms = value & 0xffffffffffffull,
					.set_ns = soft_now_ns(), .by_host = true };
	return NV_OK;
}

static uint16_t get_timestamp(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t select)
{
	uint64_t value = 0;

	if (select == CURRENT) {
		value = c->clock.ms + (soft_now_ns() - c->clock.set_ns) / 1000000;
		value &= 0xffffffffffffull;
		value |= (uint64_t)(c->clock.by_host ? 1 : 0) << 49; /* origin, 11:9 of bytes 6:7 */
	}
	return soft_answer(c, cmd, &value, sizeof(value));
}

static uint16_t set_events(struct soft_features *f, uint32_t dword)
{
	/* SMART warnings as they come; of the others only what OAES has. */
	if (dword & ~(0xffu | NV_OAES_NS_ATTRIBUTE | NV_OAES_FIRMWARE))
		return NV_INVALID_FIELD;
	f->events = dword;
	return NV_OK;
}

/* One that is kept in @f, be it the current values or the saved ones. */
static uint16_t set_value(struct udrv_soft *c, struct soft_features *f, const struct nv_sqe *cmd)
{
	uint32_t dword = cmd->cdw11, *threshold;

	switch (cmd->cdw10 & 0xff) {
	case NV_FEAT_ARBITRATION:
		f->arbitration = dword & ~0xf8u;
		return NV_OK;
	case NV_FEAT_POWER:
		if (dword & 0x1f)
			return NV_INVALID_FIELD; /* power state 0 is the only one */
		f->power = dword & 0xff;
		return NV_OK;
	case NV_FEAT_TEMPERATURE:
		threshold = temperature(f, dword);
		if (!threshold)
			return NV_INVALID_FIELD;
		*threshold = dword & 0xffff;
		return NV_OK;
	case NV_FEAT_ERROR_RECOVERY:
		return set_error_recovery(f, cmd->nsid, dword);
	case NV_FEAT_WRITE_CACHE:
		f->write_cache = dword & 1;
		return NV_OK;
	case NV_FEAT_COALESCING:
		/* Kept; a pass signals once for all that it completed, which is what it is for. */
		f->coalescing = dword & 0xffff;
		return NV_OK;
	case NV_FEAT_VECTOR:
		if ((dword & 0xffff) >= c->nr_vectors)
			return NV_INVALID_FIELD;
		f->vector_uncoalesced[dword & 0xffff] = dword >> 16 & 1;
		return NV_OK;
	case NV_FEAT_ATOMICITY:
		f->atomicity = dword & 1;
		return NV_OK;
	case NV_FEAT_EVENTS:
		return set_events(f, dword);
	case NV_FEAT_KEEP_ALIVE:
		f->keep_alive_ms = dword;
		return NV_OK;
	default:
		return NV_INVALID_FIELD;
	}
}

/* What a new current value leads to. */
static uint16_t take_effect(struct udrv_soft *c, uint32_t fid)
{
	switch (fid) {
	case NV_FEAT_WRITE_CACHE:
		if (!c->feature.write_cache && !soft_sync_all(c))
			return NV_INTERNAL;
		return NV_OK;
	case NV_FEAT_TEMPERATURE:
	case NV_FEAT_EVENTS:
		soft_check_temperature(c);
		return NV_OK;
	case NV_FEAT_KEEP_ALIVE:
		c->alive_ns = soft_now_ns();
		soft_schedule(c);
		return NV_OK;
	default:
		return NV_OK;
	}
}

/* --- the commands -------------------------------------------------------------------------- */

/* 5.21: NSID of a feature that is the controller's is 0 or all. */
static uint16_t check_nsid(const struct udrv_soft *c, const struct nv_sqe *cmd, bool set)
{
	uint32_t nsid = cmd->nsid;
	bool per_namespace = capabilities[cmd->cdw10 & 0xff] & PER_NAMESPACE;

	if (set && (nsid == NV_NSID_ALL || (!per_namespace && nsid == 0)))
		return NV_OK;
	if (!set && !per_namespace)
		return NV_OK;
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (!per_namespace)
		return NV_NOT_NS_SPECIFIC;
	return soft_ns_active(c, nsid) ? NV_OK : NV_INVALID_FIELD;
}

uint16_t soft_set_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	uint32_t fid = cmd->cdw10 & 0xff;
	uint16_t status;

	if (!capabilities[fid])
		return NV_INVALID_FIELD;
	if (cmd->cdw10 & SAVE && !(capabilities[fid] & CAN_SAVE))
		return NV_NOT_SAVEABLE;
	status = check_nsid(c, cmd, true);
	if (status)
		return status;
	if (fid == NV_FEAT_QUEUES)
		return set_queues(c, cmd->cdw11, result);
	if (fid == NV_FEAT_TIMESTAMP)
		return set_timestamp(c, cmd);
	status = set_value(c, &c->feature, cmd);
	if (!status && cmd->cdw10 & SAVE)
		status = set_value(c, &c->feature_saved, cmd);
	return status ? status : take_effect(c, fid);
}

static uint16_t get_value(struct udrv_soft *c, struct soft_features *f, const struct nv_sqe *cmd,
			  uint32_t *result)
{
	uint32_t vector = cmd->cdw11 & 0xffff;
	const uint32_t *threshold;

	switch (cmd->cdw10 & 0xff) {
	case NV_FEAT_ARBITRATION:
		*result = f->arbitration;
		return NV_OK;
	case NV_FEAT_POWER:
		*result = f->power;
		return NV_OK;
	case NV_FEAT_TEMPERATURE:
		threshold = temperature(f, cmd->cdw11);
		if (!threshold || (cmd->cdw11 >> 16 & 15) == 15)
			return NV_INVALID_FIELD;
		*result = *threshold;
		return NV_OK;
	case NV_FEAT_ERROR_RECOVERY:
		*result = f->error_recovery[cmd->nsid - 1];
		return NV_OK;
	case NV_FEAT_WRITE_CACHE:
		*result = f->write_cache;
		return NV_OK;
	case NV_FEAT_COALESCING:
		*result = f->coalescing;
		return NV_OK;
	case NV_FEAT_VECTOR:
		if (vector >= c->nr_vectors)
			return NV_INVALID_FIELD;
		*result = (uint32_t)f->vector_uncoalesced[vector] << 16 | vector;
		return NV_OK;
	case NV_FEAT_ATOMICITY:
		*result = f->atomicity;
		return NV_OK;
	case NV_FEAT_EVENTS:
		*result = f->events;
		return NV_OK;
	case NV_FEAT_KEEP_ALIVE:
		*result = f->keep_alive_ms;
		return NV_OK;
	default:
		return NV_INVALID_FIELD;
	}
}

uint16_t soft_get_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	uint32_t fid = cmd->cdw10 & 0xff, select = SELECT(cmd->cdw10);
	struct soft_features *f = &c->feature;
	uint16_t status;

	if (!capabilities[fid] || select > CAPABILITIES)
		return NV_INVALID_FIELD;
	status = check_nsid(c, cmd, false);
	if (status)
		return status;
	if (select == CAPABILITIES) {
		*result = capabilities[fid];
		return NV_OK;
	}
	/* 5.13: a feature that cannot be saved answers with its default. */
	if (select == SAVED)
		f = &c->feature_saved;
	else if (select == DEFAULT)
		f = &c->feature_default;
	if (fid == NV_FEAT_QUEUES) {
		*result = select == CURRENT ? queues_result(c)
					    : (c->cfg.queues - 1) << 16 | (c->cfg.queues - 1);
		return NV_OK;
	}
	if (fid == NV_FEAT_TIMESTAMP)
		return get_timestamp(c, cmd, select);
	return get_value(c, f, cmd, result);
}

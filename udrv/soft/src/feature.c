// SPDX-License-Identifier: Apache-2.0
/*
 * Set and Get Features (NVMe 1.4, 5.21 and 5.13). Nothing is saveable: ONCS bit 4 is 0, so Get
 * Features has no Select field either and always gives the current value.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

#define SAVE (1u << 31)
#define NUMBER_INVALID 0xffffu

void soft_features_reset(struct udrv_soft *c)
{
	memset(&c->feature, 0, sizeof(c->feature));
	c->feature.arbitration = 4; /* burst: 2^4 */
	c->feature.over_temperature = WARNING_TEMPERATURE_K;
	c->feature.write_cache = 1;
}

static uint32_t *temperature(struct udrv_soft *c, uint32_t dword)
{
	uint32_t sensor = dword >> 16 & 15, kind = dword >> 20 & 3;

	/* The composite temperature is the only one; FFh, "all", is for Set Features alone. */
	if (sensor != 0 && sensor != 15)
		return NULL;
	if (kind > 1)
		return NULL;
	return kind ? &c->feature.under_temperature : &c->feature.over_temperature;
}

static uint16_t set_temperature(struct udrv_soft *c, uint32_t dword)
{
	uint32_t *threshold = temperature(c, dword);

	if (!threshold)
		return NV_INVALID_FIELD;
	*threshold = dword & 0xffff;
	soft_check_temperature(c);
	return NV_OK;
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

static uint16_t set_vector(struct udrv_soft *c, uint32_t dword)
{
	uint32_t vector = dword & 0xffff;

	if (vector >= c->nr_vectors)
		return NV_INVALID_FIELD;
	c->feature.vector_uncoalesced[vector] = dword >> 16 & 1;
	return NV_OK;
}

/* NSID of a feature that is the controller's: 0 or all. 5.21. */
static uint16_t check_nsid(const struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint32_t nsid = cmd->nsid;

	if ((cmd->cdw10 & 0xff) == NV_FEAT_ERROR_RECOVERY) {
		if (nsid == NV_NSID_ALL || soft_ns_active(c, nsid))
			return NV_OK;
		return nsid < 1 || nsid > c->cfg.nn ? NV_INVALID_NS : NV_INVALID_FIELD;
	}
	return NV_OK;
}

uint16_t soft_set_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	struct soft_features *f = &c->feature;
	uint32_t dword = cmd->cdw11;
	uint16_t status = check_nsid(c, cmd);

	if (cmd->cdw10 & SAVE)
		return NV_NOT_SAVEABLE;
	if (status)
		return status;
	switch (cmd->cdw10 & 0xff) {
	case NV_FEAT_ARBITRATION:
		f->arbitration = dword;
		return NV_OK;
	case NV_FEAT_POWER:
		if (dword & 0x1f)
			return NV_INVALID_FIELD; /* power state 0 is the only one */
		f->power = dword & 0xff;
		return NV_OK;
	case NV_FEAT_TEMPERATURE:
		return set_temperature(c, dword);
	case NV_FEAT_ERROR_RECOVERY:
		if (dword & 1u << 16)
			return NV_INVALID_FIELD; /* DULBE: deallocated blocks read as zeroes */
		f->error_recovery = dword & 0xffff;
		return NV_OK;
	case NV_FEAT_WRITE_CACHE:
		f->write_cache = dword & 1;
		if (!f->write_cache) {
			for (uint32_t i = 0; i < c->cfg.nr_ns; i++) {
				if (!soft_media_sync(&c->media[i]))
					return NV_INTERNAL;
			}
		}
		return NV_OK;
	case NV_FEAT_QUEUES:
		return set_queues(c, dword, result);
	case NV_FEAT_COALESCING:
		/* Kept; a pass signals once for all that it completed, which is what it is for. */
		f->coalescing = dword & 0xffff;
		return NV_OK;
	case NV_FEAT_VECTOR:
		return set_vector(c, dword);
	case NV_FEAT_ATOMICITY:
		f->atomicity = dword & 1;
		return NV_OK;
	case NV_FEAT_EVENTS:
		f->events = dword & 0xff; /* SMART only; notices are not offered (OAES) */
		soft_check_temperature(c);
		return NV_OK;
	default:
		return NV_INVALID_FIELD;
	}
}

uint16_t soft_get_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	const struct soft_features *f = &c->feature;
	uint32_t vector = cmd->cdw11 & 0xffff;
	uint16_t status = check_nsid(c, cmd);
	const uint32_t *threshold;

	if (status)
		return status;
	switch (cmd->cdw10 & 0xff) {
	case NV_FEAT_ARBITRATION:
		*result = f->arbitration;
		return NV_OK;
	case NV_FEAT_POWER:
		*result = f->power;
		return NV_OK;
	case NV_FEAT_TEMPERATURE:
		threshold = temperature(c, cmd->cdw11);
		if (!threshold || (cmd->cdw11 >> 16 & 15) == 15)
			return NV_INVALID_FIELD;
		*result = *threshold;
		return NV_OK;
	case NV_FEAT_ERROR_RECOVERY:
		*result = f->error_recovery;
		return NV_OK;
	case NV_FEAT_WRITE_CACHE:
		*result = f->write_cache;
		return NV_OK;
	case NV_FEAT_QUEUES:
		*result = queues_result(c);
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
	default:
		return NV_INVALID_FIELD;
	}
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Admin commands (NVMe 1.4, 5): the mandatory ones of an I/O controller, and Doorbell Buffer
 * Config.
 */
#define _GNU_SOURCE
#include "ctrl.h"

static uint16_t delete_sq(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_delete_sq(c, cmd);
}

static uint16_t create_sq(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_create_sq(c, cmd);
}

static uint16_t delete_cq(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_delete_cq(c, cmd);
}

static uint16_t create_cq(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_create_cq(c, cmd);
}

static uint16_t get_log(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_get_log(c, cmd);
}

static uint16_t identify(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_identify(c, cmd);
}

/*
 * 5.1. Commands are executed as they are fetched, so the only ones that are outstanding are
 * parked Asynchronous Event Requests; bit 0 of the result says that nothing was aborted.
 */
static uint16_t abort_command(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	struct soft_events *e = &c->event;
	uint16_t sqid = (uint16_t)cmd->cdw10, cid = (uint16_t)(cmd->cdw10 >> 16);

	*result = 1;
	if (sqid)
		return NV_OK;
	for (uint32_t i = 0; i < e->nr_parked; i++) {
		if (e->parked[i] != cid)
			continue;
		/*
		 * Room for two: this completion, and the Abort's own, for which serve() looked
		 * before it fetched.
		 */
		if (c->cq[0].free < 2)
			return NV_OK;
		soft_complete_admin(c, cid, NV_ABORTED, 0);
		e->parked[i] = e->parked[--e->nr_parked];
		*result = 0;
		return NV_OK;
	}
	return NV_OK;
}

static uint16_t async_event(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	struct soft_events *e = &c->event;

	(void)result;
	if (e->nr_parked == AER_MAX)
		return NV_AER_LIMIT;
	e->parked[e->nr_parked++] = cmd->cid;
	/* An event that waits is delivered in the next pass. */
	return NV_NO_COMPLETION;
}

static uint16_t doorbell_buffer(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_doorbell_buffer_config(c, cmd);
}

typedef uint16_t (*admin_fn)(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);

static const admin_fn handlers[] = {
	[NV_ADM_DELETE_SQ] = delete_sq,
	[NV_ADM_CREATE_SQ] = create_sq,
	[NV_ADM_GET_LOG] = get_log,
	[NV_ADM_DELETE_CQ] = delete_cq,
	[NV_ADM_CREATE_CQ] = create_cq,
	[NV_ADM_IDENTIFY] = identify,
	[NV_ADM_ABORT] = abort_command,
	[NV_ADM_SET_FEATURES] = soft_set_feature,
	[NV_ADM_GET_FEATURES] = soft_get_feature,
	[NV_ADM_ASYNC_EVENT] = async_event,
	[NV_ADM_DOORBELL_BUFFER] = doorbell_buffer,
};

uint16_t soft_admin(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	if (cmd->opcode >= sizeof(handlers) / sizeof(handlers[0]) || !handlers[cmd->opcode])
		return NV_INVALID_OPCODE;
	/* Fused operations do not exist here; "PSDT: 00b for Admin commands" over PCIe (4.2). */
	if (cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))
		return NV_INVALID_FIELD;
	return handlers[cmd->opcode](c, cmd, result);
}

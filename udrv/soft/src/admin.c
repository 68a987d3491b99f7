// SPDX-License-Identifier: Apache-2.0
/*
 * Admin commands (NVMe 1.4, 5): which there are, what they change, which of them a sanitize
 * operation allows. The longer ones have files of their own.
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
	if (c->injecting && soft_fault_abort(c, sqid, cid)) {
		*result = 0;
		return NV_OK;
	}
	if (sqid)
		return NV_OK;
	for (uint32_t i = 0; i < e->nr_parked; i++) {
		if (e->parked[i] != cid)
			continue;
		/*
		 * Room for two: this completion, and the Abort's own, for which serve() looked
		 * before it fetched.
		 */
		if (soft_cq_room(&c->cq[0]) < 2)
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

static uint16_t keep_alive(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)cmd;
	(void)result;
	c->alive_ns = soft_now_ns();
	soft_schedule(c);
	return NV_OK;
}

static uint16_t self_test(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_self_test(c, cmd);
}

static uint16_t firmware_download(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_firmware_download(c, cmd);
}

static uint16_t firmware_commit(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_firmware_commit(c, cmd);
}

static uint16_t ns_attachment(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_ns_attachment(c, cmd);
}

static uint16_t format(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_format(c, cmd);
}

static uint16_t sanitize(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_sanitize(c, cmd);
}

static uint16_t doorbell_buffer(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	(void)result;
	return soft_doorbell_buffer_config(c, cmd);
}

#define SUPPORTED (NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_CONTROLLER)
#define NAMESPACES (NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_SUBSYSTEM | NV_EFFECT_INVENTORY)
#define FIRMWARE (NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_SUBSYSTEM | NV_EFFECT_CONTROLLER)

/**
 * @effects:	its dword of log page 05h
 * @sanitizing:	allowed during a sanitize operation (8.15.1; Get Log Page and Sanitize decide
 *		for themselves)
 */
static const struct admin_command {
	uint16_t (*run)(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);
	uint32_t effects;
	bool sanitizing;
} commands[] = {
	[NV_ADM_DELETE_SQ] = { delete_sq, SUPPORTED, true },
	[NV_ADM_CREATE_SQ] = { create_sq, SUPPORTED, true },
	[NV_ADM_GET_LOG] = { get_log, SUPPORTED, true },
	[NV_ADM_DELETE_CQ] = { delete_cq, SUPPORTED, true },
	[NV_ADM_CREATE_CQ] = { create_cq, SUPPORTED, true },
	[NV_ADM_IDENTIFY] = { identify, SUPPORTED, true },
	[NV_ADM_ABORT] = { abort_command, SUPPORTED, true },
	[NV_ADM_SET_FEATURES] = { soft_set_feature, SUPPORTED, true },
	[NV_ADM_GET_FEATURES] = { soft_get_feature, SUPPORTED, true },
	[NV_ADM_ASYNC_EVENT] = { async_event, SUPPORTED, true },
	[NV_ADM_NS_MANAGEMENT] = { soft_ns_management, NAMESPACES, false },
	[NV_ADM_FIRMWARE_COMMIT] = { firmware_commit, FIRMWARE, false },
	[NV_ADM_FIRMWARE_DOWNLOAD] = { firmware_download, SUPPORTED, false },
	[NV_ADM_SELF_TEST] = { self_test, SUPPORTED, false },
	[NV_ADM_NS_ATTACHMENT] = { ns_attachment, NAMESPACES, false },
	[NV_ADM_KEEP_ALIVE] = { keep_alive, SUPPORTED, true },
	[NV_ADM_DOORBELL_BUFFER] = { doorbell_buffer, SUPPORTED, true },
	[NV_ADM_FORMAT] = { format, NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_NS | NV_EFFECT_CONTENT |
				    NV_EFFECT_NS | NV_EFFECT_EXCLUSIVE_NS, false },
	[NV_ADM_SANITIZE] = { sanitize, NV_EFFECT_SUPPORTED | NV_EFFECT_SCOPE_SUBSYSTEM |
					NV_EFFECT_CONTENT | NV_EFFECT_EXCLUSIVE, true },
};

#define NR_COMMANDS (sizeof(commands) / sizeof(commands[0]))

uint32_t soft_admin_effects(uint32_t opcode)
{
	return opcode < NR_COMMANDS ? commands[opcode].effects : 0;
}

uint16_t soft_admin(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	if (cmd->opcode >= NR_COMMANDS || !commands[cmd->opcode].run)
		return NV_INVALID_OPCODE;
	/* Admin commands are never fused; "PSDT: 00b for Admin commands" over PCIe (4.2). */
	if (cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))
		return NV_INVALID_FIELD;
	if (c->due_ns && soft_now_ns() >= c->due_ns)
		soft_tick(c, soft_now_ns());
	if (!c->running)
		return NV_NO_COMPLETION; /* the Keep Alive Timer expired before it came */
	if (!commands[cmd->opcode].sanitizing) {
		if (c->sanitize.running)
			return NV_SANITIZING;
		if (soft_sanitize_failed(c))
			return NV_SANITIZE_FAILED;
	}
	return commands[cmd->opcode].run(c, cmd, result);
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Fused operations (base 2.0, 3.4.2): Compare and Write, the only one there is. The first command
 * is held until the next entry of its queue is fetched; then both are executed with nothing between
 * them. It is taken only when the completion queue has room for both, and that room is kept: what is
 * held can always go on, however many submission queues share the completion queue.
 *
 * Faults are not injected into fused commands.
 */
#define _GNU_SOURCE
#include "ctrl.h"

static void finish(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
		   const struct nv_sqe *cmd, uint16_t status)
{
	c->counters->queue[sq->qid].commands++;
	status = soft_note_status(c, sq->qid, cmd, status);
	soft_post(c, cq, (uint32_t)sq->qid << 16 | sq->head, cmd->cid, status, 0, false, false);
}

static uint16_t check_pair(const struct udrv_soft *c, const struct nv_sqe *first,
			   const struct nv_sqe *second)
{
	if (second->opcode != NV_IO_WRITE || first->nsid != second->nsid ||
	    first->cdw10 != second->cdw10 || first->cdw11 != second->cdw11 ||
	    (first->cdw12 ^ second->cdw12) & 0xffff)
		return NV_INVALID_FIELD;
	return (first->cdw12 & 0xffff) > SOFT_ATOMIC(c) ? NV_INVALID_FIELD : NV_OK;
}

static void run_pair(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
		     const struct nv_sqe *cmd)
{
	struct nv_sqe first = sq->first, second = *cmd;
	uint16_t status = check_pair(c, &first, &second);
	uint32_t result = 0;

	first.flags &= (uint8_t)~NV_FLAGS_FUSE;
	second.flags &= (uint8_t)~NV_FLAGS_FUSE;
	if (status) {
		finish(c, sq, cq, &first, status);
		finish(c, sq, cq, &second, status);
		return;
	}
	status = soft_execute(c, sq->qid, &first, &result);
	finish(c, sq, cq, &first, status);
	status = status ? NV_FAILED_FUSED : soft_execute(c, sq->qid, &second, &result);
	finish(c, sq, cq, &second, status);
}

enum soft_fused soft_fused(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
			   const struct nv_sqe *cmd, uint32_t next)
{
	uint32_t fuse = cmd->flags & NV_FLAGS_FUSE;

	if (!sq->qid)
		return SOFT_NOT_FUSED; /* admin.c refuses it */
	if (sq->fused) {
		sq->fused = false;
		cq->reserved -= SOFT_FUSED_PLACES;
		if (fuse == NV_FUSE_SECOND) {
			sq->head = next;
			run_pair(c, sq, cq, cmd);
			return SOFT_FUSED_TAKEN;
		}
		/* Before this entry is taken: the host is told of the head that it has now. */
		finish(c, sq, cq, &sq->first, NV_MISSING_FUSED);
	}
	if (!fuse)
		return SOFT_NOT_FUSED;
	if (fuse == NV_FUSE_FIRST && cmd->opcode == NV_IO_COMPARE && cq->size > SOFT_FUSED_PLACES) {
		if (soft_cq_room(cq) < SOFT_FUSED_PLACES)
			return SOFT_FUSED_LATER;
		sq->head = next;
		sq->first = *cmd;
		sq->fused = true;
		cq->reserved += SOFT_FUSED_PLACES;
		return SOFT_FUSED_TAKEN;
	}
	sq->head = next;
	finish(c, sq, cq, cmd, fuse == NV_FUSE_SECOND ? NV_MISSING_FUSED : NV_INVALID_FIELD);
	return SOFT_FUSED_TAKEN;
}

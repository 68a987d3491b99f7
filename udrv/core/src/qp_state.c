// SPDX-License-Identifier: Apache-2.0
/*
 * qp_state.c - a queue pair's beginning and end: set-up, quarantine, release. The data path is in
 * qp.c and qp_reap.c.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "qp_priv.h"

uint32_t udrv_fork_generation;

static void fork_child(void)
{
	udrv_fork_generation++;
}

static int init_result;

static void init_once(void)
{
	udrv_clock_init();
	init_result = -pthread_atfork(NULL, NULL, fork_child);
}

int udrv_core_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, init_once);
	return init_result;
}

/* --- set-up ------------------------------------------------------------------------------ */

static uint32_t align_up(uint32_t v, uint32_t a)
{
	return (v + a - 1) & ~(a - 1);
}

static uint32_t free_offset(uint32_t entries)
{
	return (uint32_t)sizeof(struct udrv_qp_shared) +
	       (entries - 1) * (uint32_t)sizeof(struct udrv_tracker);
}

static uint32_t slots_offset(uint32_t entries)
{
	return align_up(free_offset(entries) + (entries - 1) * 4, UDRV_CACHELINE);
}

size_t udrv_qp_shared_size(uint32_t entries)
{
	if (entries < 2 || entries > 65535)
		return 0;
	return slots_offset(entries) + UDRV_QP_SLOTS * sizeof(struct udrv_qp_slot);
}

struct udrv_qp *udrv_qp_new(void)
{
	return aligned_alloc(UDRV_CACHELINE, sizeof(struct udrv_qp));
}

void udrv_qp_free(struct udrv_qp *qp)
{
	free(qp);
}

static int misaligned(const void *p, uintptr_t align)
{
	return !p || ((uintptr_t)p & (align - 1));
}

static void fill_free_stack(struct udrv_qp *qp)
{
	uint32_t i;

	/* LIFO: the id used last is the one whose tracker and PRP page are still in the cache */
	for (i = 0; i < qp->nr_trackers; i++)
		qp->free[i] = (qp->nr_trackers - 1 - i) * (uint32_t)sizeof(struct udrv_tracker);
	qp->shared->nr_free = qp->nr_trackers;
}

/* Registers, messages in their place, shadows: what must be there together, and how aligned. */
static int doorbells_valid(const struct udrv_qp_config *c)
{
	int shadows = !!c->sq_shadow + !!c->cq_shadow + !!c->sq_event + !!c->cq_event;

	if (shadows && (misaligned(c->sq_shadow, 4) || misaligned(c->cq_shadow, 4) ||
			misaligned(c->sq_event, 4) || misaligned(c->cq_event, 4)))
		return 0;
	if (!c->post_len)
		return !misaligned(c->sq_doorbell, 4) && !misaligned(c->cq_doorbell, 4);
	return c->post_len <= UDRV_POST_MAX && c->post_at <= c->post_len - sizeof(uint32_t) &&
	       c->post_len >= sizeof(uint32_t) && c->sq_post && c->cq_post && c->post_fd >= 0 &&
	       !c->sq_doorbell && !c->cq_doorbell;
}

static void set_how(struct udrv_doorbell *how, const struct udrv_qp_config *c, void *mmio,
		    void *shadow, const void *event, const void *post)
{
	how->mmio = mmio;
	how->shadow = shadow;
	how->event = event;
	how->post_fd = c->post_fd;
	how->post_len = c->post_len;
	how->post_at = c->post_at;
	if (c->post_len)
		memcpy(how->post, post, c->post_len);
}

int udrv_qp_init(struct udrv_qp *qp, const struct udrv_qp_config *c)
{
	struct udrv_qp_shared *sh = c->shared;

	if (c->entries < 2 || misaligned(c->shared, UDRV_CACHELINE) ||
	    misaligned(c->sq, NVME_PAGE_SIZE) || misaligned(c->cq, NVME_PAGE_SIZE) ||
	    misaligned(c->prp, NVME_PAGE_SIZE) || (c->prp_iova & NVME_PAGE_MASK) ||
	    !doorbells_valid(c) || !c->max_transfer || c->max_transfer > UDRV_QP_PRP_MAX_TRANSFER)
		return -UDRV_EINVAL;

	memset(qp, 0, sizeof(*qp));
	qp->shared = sh;
	qp->sq = c->sq;
	qp->cq = c->cq;
	qp->prp = c->prp;
	qp->prp_iova = c->prp_iova;
	qp->sq_doorbell = c->sq_doorbell;
	qp->cq_doorbell = c->cq_doorbell;
	qp->entries = c->entries;
	qp->nr_trackers = c->entries - 1u;
	qp->max_transfer = c->max_transfer;
	qp->qid = c->qid;
	qp->eventfd = c->eventfd;
	qp->flags = c->flags & ~(uint32_t)UDRV_QP_HOW;
	if (c->sq_shadow || c->post_len) {
		qp->flags |= UDRV_QP_HOW;
		set_how(&qp->how[0], c, c->sq_doorbell, c->sq_shadow, c->sq_event, c->sq_post);
		set_how(&qp->how[1], c, c->cq_doorbell, c->cq_shadow, c->cq_event, c->cq_post);
	}
	qp->fork_generation = udrv_fork_generation;
	qp->ring_after_ns = UDRV_RING_AFTER_NS;

	memset(sh, 0, sizeof(*sh));
	sh->magic = UDRV_QP_MAGIC;
	sh->abi = UDRV_QP_ABI;
	sh->epoch = 1;
	sh->qid = c->qid;
	sh->entries = c->entries;
	sh->nr_trackers = (uint16_t)qp->nr_trackers;
	sh->trackers_offset = sizeof(*sh);
	sh->free_offset = free_offset(c->entries);
	sh->slots_offset = slots_offset(c->entries);
	sh->size = (uint32_t)udrv_qp_shared_size(c->entries);
	sh->cq_phase = 1;	/* the ring is zeroed: the device writes 1 on its first pass */

	qp->trackers = (struct udrv_tracker *)((char *)sh + sh->trackers_offset);
	qp->free = (uint32_t *)((char *)sh + sh->free_offset);
	qp->slots = (struct udrv_qp_slot *)((char *)sh + sh->slots_offset);
	memset(qp->trackers, 0, qp->nr_trackers * sizeof(*qp->trackers));
	fill_free_stack(qp);
	return 0;
}

/* --- a device that may sleep -------------------------------------------------------------- */

void __udrv_qp_ring(struct udrv_qp *qp)
{
	struct udrv_qp_shared *sh = qp->shared;

	if (!(qp->flags & UDRV_QP_HOW) || !qp->how[0].shadow)
		return;	/* every move was written to the register */
	udrv_doorbell_force(&qp->how[0], sh->sq_rung);
	udrv_doorbell_force(&qp->how[1], sh->cq_rung);
	sh->sq_doorbells++;
	sh->cq_doorbells++;
	sh->forced++;
}

int udrv_qp_ring(struct udrv_qp *qp)
{
	int ret = udrv_qp_enter(qp);

	if (ret)
		return ret;
	__udrv_qp_ring(qp);
	udrv_qp_leave(qp);
	return 0;
}

/* --- what is still out ------------------------------------------------------------------- */

uint32_t udrv_qp_slot_inflight(const struct udrv_qp *qp, uint16_t slot)
{
	return slot < UDRV_QP_SLOTS ? __atomic_load_n(&qp->slot_inflight[slot], __ATOMIC_RELAXED)
				    : 0;
}

uint32_t udrv_qp_inflight(const struct udrv_qp *qp)
{
	return __atomic_load_n(&qp->inflight, __ATOMIC_RELAXED);
}

int __udrv_qp_quarantine(struct udrv_qp *qp, uint32_t slot)
{
	uint32_t cid;
	int n = 0;

	for (cid = 0; cid < qp->nr_trackers; cid++) {
		struct udrv_tracker *t = &qp->trackers[cid];

		if (slot < UDRV_QP_SLOTS && t->slot != slot)
			continue;
		if (t->state == UDRV_TRACKER_ABORTED) {
			free_tracker(qp, cid);	/* the device is done with it, and so is its owner */
			n++;
		} else if (t->state == UDRV_TRACKER_INFLIGHT) {
			t->state = UDRV_TRACKER_QUARANTINE;
			n++;
		}
	}
	return n;
}

int udrv_qp_quarantine(struct udrv_qp *qp, uint32_t slot)
{
	int ret = udrv_qp_enter(qp);

	if (ret)
		return ret;
	ret = __udrv_qp_quarantine(qp, slot);
	udrv_qp_leave(qp);
	return ret;
}

int udrv_qp_release_all(struct udrv_qp *qp)
{
	uint32_t cid;
	int n = 0;

	if (qp->fork_generation != udrv_fork_generation)
		return -UDRV_EFORKED;
	/* acquire: as udrv_qp_enter(), but a closed pair is exactly what this is for */
	if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
		return -UDRV_EBUSY;
	for (cid = 0; cid < qp->nr_trackers; cid++) {
		if (qp->trackers[cid].state != UDRV_TRACKER_FREE)
			n++;
		qp->trackers[cid].state = UDRV_TRACKER_FREE;
	}
	memset(qp->slot_inflight, 0, sizeof(qp->slot_inflight));
	qp->inflight = 0;
	qp->flags &= ~(uint32_t)UDRV_QP_ABORTED;
	fill_free_stack(qp);
	udrv_qp_leave(qp);
	return n;
}

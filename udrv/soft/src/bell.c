// SPDX-License-Identifier: Apache-2.0
/*
 * Doorbells: the registers, and shadow doorbells with EventIdx (Doorbell Buffer Config, NVMe 1.4,
 * 5.7 and 7.13).
 *
 * With shadow doorbells the host stores a new value v to the shadow page, then compares it with
 * our EventIdx e: it writes the register too if e lies in [old value, v), all modulo 2^16. So
 * - while we poll, e is kept behind the last value seen (v - 1): the host never passes it;
 * - before a sleep, e is the last value seen: the host's very next move passes it.
 * Both pages are the host's memory. A value is read once and checked by the caller as that of a
 * register is. The admin queue's doorbells are always its registers: hosts do not shadow those.
 *
 * A page that cannot be reached any more ends in a fatal error, as a queue's does: the host does
 * not write registers, so going on without the page would mean to hang.
 */
#define _GNU_SOURCE
#include "ctrl.h"

static_assert((MAX_QID + 1) * 8 <= NV_PAGE_SIZE, "5.7: all doorbells have room in one page");

static bool shadowed(const struct udrv_soft *c, uint32_t index)
{
	return c->shadow.on && index >= 2;
}

static _Atomic uint32_t *value_at(struct udrv_soft *c, uint32_t index, uint32_t rights)
{
	struct soft_shadow *s = &c->shadow;
	void *at = dma_at(&c->dma, &s->values_ref, s->values + index * 4, 4, rights);

	if (!at)
		soft_fatal(c);
	return at;
}

static void tell_event(struct udrv_soft *c, uint32_t index, uint32_t event)
{
	struct soft_shadow *s = &c->shadow;
	_Atomic uint32_t *at = dma_at(&c->dma, &s->events_ref, s->events + index * 4, 4,
				      DMA_WRITE);

	if (!at) {
		soft_fatal(c);
		return;
	}
	/* relaxed: soft_bells_arm() has the fence where the order matters */
	atomic_store_explicit(at, event & 0xffff, memory_order_relaxed);
}

/* The host need not ring: we look. */
static void disarm(struct udrv_soft *c, struct soft_bell *bell, uint32_t index)
{
	bell->armed = false;
	bell->renewed = bell->shadow;
	tell_event(c, index, bell->shadow - 1);
}

static void count(struct udrv_soft *c, uint32_t index, bool shadow)
{
	struct udrv_soft_queue_counters *n = &c->counters->queue[index / 2];

	if (shadow)
		*(index % 2 ? &n->cq_shadow : &n->sq_shadow) += 1;
	else
		*(index % 2 ? &n->cq_doorbells : &n->sq_doorbells) += 1;
}

void soft_bad_doorbell(struct udrv_soft *c)
{
	soft_event_raise(c, NV_EVENT_ERROR, NV_EVENT_BAD_DOORBELL_VALUE, NV_LOG_ERROR);
}

/* How far a doorbell goes from one value to another; anything, where one of them is no index. */
static uint32_t ahead(uint32_t from, uint32_t to, uint32_t size)
{
	return (to >= from ? to - from : to + size - from) % size;
}

static bool shadow_moved(struct udrv_soft *c, struct soft_bell *bell, uint32_t index,
			 uint32_t size, uint32_t *value)
{
	_Atomic uint32_t *at = value_at(c, index, DMA_READ);
	uint32_t moved, step;

	if (!at)
		return false;
	/* acquire: pairs with the host's release store; see the head of queue.c */
	*value = atomic_load_explicit(at, memory_order_acquire);
	if (*value == bell->shadow)
		return false;
	step = ahead(bell->shadow, *value, size);
	if (step > bell->step)
		bell->step = step;
	bell->shadow = *value;
	count(c, index, true);
	/*
	 * Not for every move: the host reads the page each time, and would miss its cache each
	 * time. But before it can come round to where EventIdx is; to be wrong costs one ring.
	 */
	moved = ahead(bell->renewed, *value, size);
	if (bell->armed || moved + 2 * bell->step >= size)
		disarm(c, bell, index);
	return true;
}

bool soft_bell_moved(struct udrv_soft *c, struct soft_bell *bell, uint32_t index, uint32_t size,
		     uint32_t *value)
{
	/* acquire: likewise */
	uint32_t mmio = atomic_load_explicit(&c->doorbells[index], memory_order_acquire);
	bool rung = mmio != bell->mmio;

	if (rung) {
		bell->mmio = mmio;
		/* A trapped one was counted when it came. */
		if (!(c->cfg.flags & UDRV_SOFT_TRAP_DOORBELLS))
			count(c, index, false);
	}
	if (shadowed(c, index)) {
		/* The register only wakes us; what counts is the shadow. Nonsense is reported. */
		if (rung && mmio >= size)
			soft_bad_doorbell(c);
		return shadow_moved(c, bell, index, size, value);
	}
	*value = mmio;
	return rung;
}

void soft_bell_start(struct udrv_soft *c, struct soft_bell *bell, uint32_t index)
{
	*bell = (struct soft_bell){ 0 };
	atomic_store_explicit(&c->doorbells[index], 0, memory_order_relaxed);
	if (shadowed(c, index))
		disarm(c, bell, index);
}

static void arm(struct udrv_soft *c, struct soft_bell *bell, uint32_t index)
{
	if (bell->armed)
		return;
	bell->armed = true;
	tell_event(c, index, bell->shadow);
}

static bool stands(struct udrv_soft *c, const struct soft_bell *bell, uint32_t index)
{
	_Atomic uint32_t *at = value_at(c, index, DMA_READ);

	return at && atomic_load_explicit(at, memory_order_relaxed) == bell->shadow;
}

bool soft_bells_arm(struct udrv_soft *c)
{
	bool still = true;

	if (!c->shadow.on)
		return true;
	/*
	 * Completion queues that have room need no waking: nobody waits for what the host takes
	 * out of them.
	 */
	for (uint32_t i = 0; i < c->nr_sqs; i++) {
		if (c->sqs[i])
			arm(c, &c->sq[c->sqs[i]].bell, 2u * c->sqs[i]);
	}
	for (uint32_t i = 0; i < c->nr_cqs; i++) {
		if (c->cqs[i] && !c->cq[c->cqs[i]].free)
			arm(c, &c->cq[c->cqs[i]].bell, 2u * c->cqs[i] + 1);
	}
	/*
	 * EventIdx before the second look at the values. Pairs with the host's full barrier between
	 * its store of a value and its load of EventIdx: either we see the value, or it sees that it
	 * has to ring.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < c->nr_sqs; i++) {
		if (c->sqs[i])
			still &= stands(c, &c->sq[c->sqs[i]].bell, 2u * c->sqs[i]);
	}
	for (uint32_t i = 0; i < c->nr_cqs; i++) {
		if (c->cqs[i] && c->cq[c->cqs[i]].bell.armed)
			still &= stands(c, &c->cq[c->cqs[i]].bell, 2u * c->cqs[i] + 1);
	}
	/* Nothing is fetched any more if a page was lost: then the sleep is the right thing. */
	return still || !c->running;
}

/* --- Doorbell Buffer Config ---------------------------------------------------------------- */

/* Go on from where the register, or an earlier shadow, stands. */
static void take_over(struct udrv_soft *c, struct soft_bell *bell, uint32_t index, bool was_on)
{
	_Atomic uint32_t *at = value_at(c, index, DMA_READ | DMA_WRITE);

	if (!at)
		return;
	if (!was_on)
		bell->shadow = bell->mmio;
	atomic_store_explicit(at, bell->shadow, memory_order_relaxed);
	disarm(c, bell, index);
}

uint16_t soft_doorbell_buffer_config(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_shadow *s = &c->shadow;
	struct dma_ref none = { 0 };
	/* The values of queues that are there already are written, too. */
	uint32_t rights = c->nr_cqs > 1 ? DMA_READ | DMA_WRITE : DMA_READ;
	bool was_on = s->on;

	/* 5.7.1: "If the ... memory ranges are invalid", this status, not a PRP's. */
	if ((cmd->prp1 | cmd->prp2) % NV_PAGE_SIZE || cmd->prp1 == cmd->prp2)
		return NV_INVALID_FIELD;
	if (!dma_at(&c->dma, &none, cmd->prp1, NV_PAGE_SIZE, rights) ||
	    !dma_at(&c->dma, &none, cmd->prp2, NV_PAGE_SIZE, DMA_WRITE))
		return NV_INVALID_FIELD;
	*s = (struct soft_shadow){ .on = true, .values = cmd->prp1, .events = cmd->prp2 };
	for (uint32_t i = 0; i < c->nr_sqs; i++) {
		if (c->sqs[i])
			take_over(c, &c->sq[c->sqs[i]].bell, 2u * c->sqs[i], was_on);
	}
	for (uint32_t i = 0; i < c->nr_cqs; i++) {
		if (c->cqs[i])
			take_over(c, &c->cq[c->cqs[i]].bell, 2u * c->cqs[i] + 1, was_on);
	}
	return NV_OK;
}

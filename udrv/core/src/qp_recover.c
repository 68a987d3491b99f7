// SPDX-License-Identifier: Apache-2.0
/*
 * qp_recover.c - what becomes of a queue pair when its controller is reset, and how one is found that
 * needs it: commands whose completion does not come.
 */
#include <string.h>

#include <udrv/stream.h>

#include "qp_priv.h"

int udrv_qp_halt(struct udrv_qp *qp)
{
	uint32_t door = UDRV_QP_OPEN;

	if (qp->fork_generation != udrv_fork_generation)
		return -UDRV_EFORKED;
	if (!__atomic_compare_exchange_n(&qp->closed, &door, UDRV_QP_HALTED, 0, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED) && door != UDRV_QP_HALTED)
		return -UDRV_ECLOSED;
	/*
	 * Acquire: pairs with the release in udrv_qp_leave() of whoever was inside. Who comes in from
	 * now on sees the door, as it is looked at after the exchange; a call that passed it before
	 * still has the owner's place, and is waited for here.
	 */
	if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQ_REL))
		return -UDRV_EBUSY;
	udrv_qp_leave(qp);
	return 0;
}

int udrv_qp_restart(struct udrv_qp *qp)
{
	struct udrv_qp_shared *sh = qp->shared;
	int n = 0, kept = 0;
	uint32_t cid;

	if (qp->fork_generation != udrv_fork_generation)
		return -UDRV_EFORKED;
	/* only while everybody is kept out: see udrv_qp_halt() */
	if (__atomic_load_n(&qp->closed, __ATOMIC_RELAXED) != UDRV_QP_HALTED)
		return -UDRV_ECLOSED;
	/* acquire: as udrv_qp_enter(); taken only by calls that are on their way out again */
	if (__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE))
		return -UDRV_EBUSY;
	sh->nr_free = 0;
	for (cid = qp->nr_trackers; cid-- > 0;) {
		struct udrv_tracker *t = &qp->trackers[cid];

		switch (t->state) {
		case UDRV_TRACKER_INFLIGHT:
			t->state = UDRV_TRACKER_ABORTED;
			n++;
			kept = 1;
			break;
		case UDRV_TRACKER_ABORTED:	/* of the reset before; nobody reaped it yet */
			kept = 1;
			break;
		case UDRV_TRACKER_QUARANTINE:
			free_tracker(qp, cid);
			break;
		default:
			t->state = UDRV_TRACKER_FREE;
			qp->free[sh->nr_free++] = cid << CID_SHIFT;
		}
	}
	memset(qp->sq, 0, (size_t)qp->entries * sizeof(*qp->sq));
	memset((void *)qp->cq, 0, (size_t)qp->entries * sizeof(*qp->cq));
	sh->sq_posted = sh->sq_rung = 0;
	sh->cq_head = sh->cq_rung = 0;
	sh->cq_phase = 1;
	qp->sq_dirty = 0;
	if (kept)
		qp->flags |= UDRV_QP_ABORTED;
	udrv_qp_leave(qp);
	return n;
}

void udrv_qp_resume(struct udrv_qp *qp)
{
	uint32_t door = UDRV_QP_HALTED;

	/* release: pairs with the acquire of the next udrv_qp_enter(), as udrv_qp_leave() does */
	__atomic_compare_exchange_n(&qp->closed, &door, UDRV_QP_OPEN, 0, __ATOMIC_RELEASE,
				    __ATOMIC_RELAXED);
}

int __udrv_qp_reap_aborted(struct udrv_qp *qp, struct udrv_completion *rows, uint32_t max)
{
	const uint64_t now = udrv_ticks();
	const uint32_t *const given = qp->free + qp->shared->nr_free;
	uint32_t cid, n = 0;

	for (cid = 0; cid < qp->nr_trackers; cid++) {
		const struct udrv_tracker *t = &qp->trackers[cid];

		if (t->state != UDRV_TRACKER_ABORTED)
			continue;
		if (n == max)	/* there are more */
			goto out;
		rows[n++] = (struct udrv_completion){
			.user_data = t->user_data,
			.latency_ns = qp->flags & UDRV_QP_UNTIMED ?
				      0 : udrv_ticks_to_ns(now - t->submit_ticks),
			.status = UDRV_STATUS_ABORTED_BY_HOST,
		};
		free_tracker(qp, cid);
	}
	qp->flags &= ~(uint32_t)UDRV_QP_ABORTED;
out:
	qp->shared->completed += n;
	if (qp->flags & UDRV_QP_STREAM)
		udrv_stream_ended(qp->stream, rows, n, given);
	return (int)n;
}

/* --- whose completion does not come --------------------------------------------------------- */

/* What is in the completion ring and was not reaped: at most one lap. */
static uint32_t walk_unreaped(const struct udrv_qp *qp, uint32_t cid, int *found)
{
	uint32_t head = __atomic_load_n(&qp->shared->cq_head, __ATOMIC_RELAXED);
	uint32_t phase = __atomic_load_n(&qp->shared->cq_phase, __ATOMIC_RELAXED) & 1;
	uint32_t n;

	for (n = 0; n < qp->entries && head < qp->entries; n++) {
		const uint64_t dw2_3 = qp->cq[head].dw2_3;	/* one load: phase and id together */

		if ((dw2_3 >> 48 & 1) != phase)
			break;
		if ((uint16_t)(dw2_3 >> 32) == cid)
			*found = 1;
		if (++head == qp->entries) {
			head = 0;
			phase ^= 1;
		}
	}
	return n;
}

uint32_t udrv_qp_unreaped(const struct udrv_qp *qp)
{
	int found = 0;

	return walk_unreaped(qp, UINT32_MAX, &found);
}

uint32_t udrv_qp_overdue(const struct udrv_qp *qp, const uint64_t *limits_ns,
			 struct udrv_overdue *out, uint32_t max)
{
	uint32_t cid, n = 0;
	uint64_t now;

	for (cid = 0; cid < qp->nr_trackers && n < max; cid++) {
		const struct udrv_tracker *t = &qp->trackers[cid];
		/* relaxed: another thread owns the pair; what is torn does not last, see qp.h */
		const uint64_t word = __atomic_load_n(&t->word, __ATOMIC_RELAXED);
		const uint64_t ticks = __atomic_load_n(&t->submit_ticks, __ATOMIC_RELAXED);
		const uint8_t opcode = (uint8_t)(word >> 24);
		uint64_t age;
		int found = 0;

		if (word >> 48 != UDRV_TRACKER_INFLIGHT || !limits_ns[opcode])
			continue;
		now = udrv_ticks();
		age = ticks && now > ticks ? udrv_ticks_to_ns(now - ticks) : 0;
		if (age <= limits_ns[opcode] && !(qp->flags & UDRV_QP_UNTIMED))
			continue;
		walk_unreaped(qp, cid, &found);
		if (found)
			continue;
		out[n++] = (struct udrv_overdue){
			.submit_ticks = ticks,
			.age_ns = age,
			.user_data = t->user_data,
			.slba = t->slba,
			.len = (uint32_t)word & 0xffffff,
			.cid = (uint16_t)cid,
			.opcode = opcode,
		};
	}
	return n;
}

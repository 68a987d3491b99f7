/* SPDX-License-Identifier: Apache-2.0 */
/* qp_priv.h - what the two halves of the data path share: qp.c submits, qp_reap.c completes. */
#ifndef UDRV_QP_PRIV_H
#define UDRV_QP_PRIV_H

#include <udrv/qp.h>

/*
 * What the checks cost can be counted with and without them (benches/instructions.py). Never build
 * a driver without.
 */
#ifndef UDRV_CHECKS
#define UDRV_CHECKS 1
#endif
#define refuse_if(cond) (UDRV_CHECKS && unlikely(cond))

#define CID_SHIFT 6	/* a tracker's byte offset is its CID times 64 */
static_assert(sizeof(struct udrv_tracker) == 1 << CID_SHIFT, "see udrv_qp.free");

static inline struct udrv_tracker *tracker_at(struct udrv_tracker *trackers, uint64_t byte_offset)
{
	return (struct udrv_tracker *)((char *)trackers + byte_offset);
}

/* Why a pair that is not open lets nobody in. */
static inline int __udrv_qp_shut(const struct udrv_qp *qp)
{
	return __atomic_load_n(&qp->closed, __ATOMIC_RELAXED) == UDRV_QP_HALTED ? -UDRV_EHALTED
										  : -UDRV_ECLOSED;
}

/* Give a command id back, and with it its claim on the slot's buffer. */
static inline void free_tracker(struct udrv_qp *qp, uint32_t cid)
{
	struct udrv_tracker *t = &qp->trackers[cid];

	t->state = UDRV_TRACKER_FREE;
	qp->inflight--;
	qp->slot_inflight[t->slot]--;
	qp->free[qp->shared->nr_free++] = cid << CID_SHIFT;
}

/* Deliver commands that a reset ended, at most max rows. Return: how many. */
int __udrv_qp_reap_aborted(struct udrv_qp *qp, struct udrv_completion *rows, uint32_t max);

#endif /* UDRV_QP_PRIV_H */

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

#endif /* UDRV_QP_PRIV_H */

// SPDX-License-Identifier: Apache-2.0
/* qp_reap.c - a queue pair's data path, the other half: completion. */
#include <udrv/barrier.h>
#include <udrv/stream.h>

#include "qp_priv.h"

/* A completion that is not for a command in flight: count it, and index nothing. */
static __attribute__((noinline, cold)) void anomaly(struct udrv_qp *qp, uint32_t cid,
						      uint32_t sqid, uint32_t row)
{
	struct udrv_qp_anomalies *a = &qp->shared->anomalies;

	if (qp->flags & UDRV_QP_STREAM)
		udrv_stream_note(qp->stream, row, cid < qp->nr_trackers && sqid == qp->qid &&
				 qp->trackers[cid].state == UDRV_TRACKER_QUARANTINE);
	if (cid >= qp->nr_trackers) {
		a->bad_cid++;
	} else if (sqid != qp->qid) {
		a->bad_sqid++;
	} else if (qp->trackers[cid].state == UDRV_TRACKER_QUARANTINE) {
		a->late++;
		free_tracker(qp, cid);
	} else {
		a->duplicate++;
	}
}

#define CQE_PHASE (1ull << 48)	/* of DW2 and DW3 */
#define CQE_SQID 0xffff0000ull

/* Completions consumed between two looks at the clock: a latency is too long by no more. */
#define CLOCK_ROWS 32
static_assert(CLOCK_ROWS <= UDRV_STREAM_PASS, "what a stream takes at a time");

/* `rows` commands of a slot are done. */
static inline void slot_done(struct udrv_qp *qp, uint32_t slot_state, uint32_t rows)
{
	qp->slot_inflight[slot_state & (UDRV_QP_SLOTS - 1)] -= rows;
}

/*
 * Consume entries from `head` on as long as they are new, at most n, which end before the ring
 * does. Return: how many entries; *rowp is advanced by those that were delivered. timed: note when each
 * was submitted, as its latency.
 */
static inline __attribute__((always_inline)) uint32_t
consume(struct udrv_qp *qp, struct udrv_completion **rowp, uint32_t n, uint32_t head,
	uint32_t phase, const int timed)
{
	struct udrv_qp_shared *const sh = qp->shared;
	struct udrv_tracker *const trackers = qp->trackers;
	struct udrv_completion *row = *rowp, *slot_row = row;
	const uint64_t trackers_size = (uint64_t)qp->nr_trackers << CID_SHIFT;
	const uint64_t expected = (uint64_t)phase << 48 | (uint64_t)qp->qid << 16;
	const uint64_t checked = opaque(CQE_PHASE | (UDRV_CHECKS ? CQE_SQID : 0));
	volatile const struct nvme_cqe *cqe = qp->cq + head, *const from = cqe, *const end = cqe + n;
	uint32_t *top = qp->free + sh->nr_free;
	uint32_t slot_state = UINT32_MAX;	/* of the run from slot_row on; that of no tracker */

	do {
		const uint64_t dw2_3 = cqe->dw2_3 ^ expected;
		struct udrv_tracker *t;
		uint64_t cid64;

		if (unlikely(dw2_3 & checked)) {
			if (dw2_3 & CQE_PHASE)
				break;
			goto not_ours;
		}
		/*
		 * The rest of the entry after its phase, and the data after both: pairs with the
		 * device, which writes data, then entry, then phase.
		 */
		udrv_dma_rmb();
		cid64 = (uint64_t)cqe->cid << CID_SHIFT;	/* one load: checked, then used */
		if (refuse_if(cid64 >= trackers_size))
			goto not_ours;
		t = tracker_at(trackers, cid64);
		if (unlikely(t->slot_state != slot_state))
			goto new_slot;
same_slot:
		row->user_data = t->user_data;
		if (timed)
			row->latency_ns = t->submit_ticks;
		row->result = cqe->result;
		row->status = (uint16_t)(dw2_3 >> 49);
		row++;
		t->state = UDRV_TRACKER_FREE;
		*top++ = (uint32_t)cid64;
		continue;
new_slot:
		if (refuse_if(t->state != UDRV_TRACKER_INFLIGHT))
			goto not_ours;
		slot_done(qp, slot_state, (uint32_t)(row - slot_row));
		slot_row = row;
		slot_state = t->slot_state;
		goto same_slot;
not_ours:
		udrv_dma_rmb();	/* as above */
		sh->nr_free = (uint32_t)(top - qp->free);
		anomaly(qp, cqe->cid, cqe->sqid, (uint32_t)(row - *rowp));
		top = qp->free + sh->nr_free;
	} while (++cqe != end);
	slot_done(qp, slot_state, (uint32_t)(row - slot_row));
	sh->nr_free = (uint32_t)(top - qp->free);
	qp->inflight -= (uint32_t)(row - *rowp);
	*rowp = row;
	return (uint32_t)(cqe - from);
}

/* As consume(), and its stream is told; see there. */
static __attribute__((noinline)) uint32_t consume_for_stream(struct udrv_qp *qp,
							      struct udrv_completion **rowp,
							      uint32_t n, uint32_t head,
							      uint32_t phase)
{
	const uint32_t *const given = qp->free + qp->shared->nr_free;	/* where the ids go */
	struct udrv_stream *const s = qp->stream;
	struct udrv_completion *const from = *rowp;
	const uint64_t looked = s->looked;
	const uint32_t seen = consume(qp, rowp, n, head, phase, 0);

	if (likely(seen))
		s->pass(s, from, (uint32_t)(*rowp - from), seen, given);
	if (!qp->inflight)
		udrv_stream_dry(s, s->looked);
	else if (seen < n)
		udrv_stream_dry(s, looked);
	return seen;
}

int __udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		   uint32_t max)
{
	struct udrv_qp_shared *sh = qp->shared;
	struct udrv_completion *row, *const start = out->rows + first;
	uint32_t head = sh->cq_head, phase = sh->cq_phase, seen = 0, n;
	int more;

	if (unlikely(first > out->capacity || max > out->capacity - first))
		return -UDRV_EINVAL;
	row = start;
	if (unlikely(!max))
		return 0;
	if (unlikely(qp->flags & (UDRV_QP_ABORTED | UDRV_QP_STREAM))) {
		if (qp->flags & UDRV_QP_ABORTED)
			return __udrv_qp_reap_aborted(qp, start, max);
		udrv_stream_look(qp->stream);
	}
	do {
		struct udrv_completion *timed = row;
		uint32_t want = max - (uint32_t)(row - start);

		if (want > CLOCK_ROWS)
			want = CLOCK_ROWS;
		if (want > qp->entries - head)
			want = qp->entries - head;
		n = likely(!(qp->flags & UDRV_QP_STREAM)) ? consume(qp, &row, want, head, phase, 1) :
							    consume_for_stream(qp, &row, want, head, phase);
		if (!n)
			break;
		seen += n;
		head += n;
		more = n == want && (uint32_t)(row - start) < max;
		if (head == qp->entries) {
			head = 0;
			phase ^= 1;
		}
		if (likely(!(qp->flags & (UDRV_QP_UNTIMED | UDRV_QP_STREAM)))) {
			const uint64_t now = udrv_ticks_after_loads();

#pragma GCC unroll 4
			for (; timed != row; timed++)
				timed->latency_ns = udrv_ticks_to_ns(now - timed->latency_ns);
		}
		/* at most one lap: a device that completes for ever must not keep us for ever */
	} while (more && seen < qp->entries);
	if (!seen)
		return 0;

	sh->cq_head = head;
	sh->cq_phase = phase;
	sh->consumed += seen;
	sh->completed += (uint32_t)(row - start);
	/*
	 * Our reads of the entries before the device may overwrite them: pairs with its read of the
	 * doorbell before it uses a slot again.
	 */
	udrv_dma_load_store();
	if (likely(!(qp->flags & UDRV_QP_HOW))) {
		udrv_mmio_write32(qp->cq_doorbell, head);
		sh->cq_doorbells++;
	} else {
		qp->waited_until = 0;	/* no silence: the next wait begins anew */
		if (udrv_doorbell_write(&qp->how[1], head, sh->cq_rung))
			sh->cq_doorbells++;
		else
			sh->cq_shadow++;
	}
	sh->cq_rung = head;
	return (int)(row - start);
}

int udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		 uint32_t max)
{
	int ret = udrv_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	ret = __udrv_qp_reap(qp, out, first, max);
	udrv_qp_leave(qp);
	return ret;
}

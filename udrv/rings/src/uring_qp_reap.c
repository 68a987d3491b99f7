// SPDX-License-Identifier: Apache-2.0
/* uring_qp_reap.c - the data path of a queue over io_uring, the other half: completion. */
#include "uring_qp_priv.h"

static void free_tracker(struct udrv_uring_qp *qp, uint32_t id)
{
	struct udrv_uring_tracker *t = &qp->trackers[id];

	t->state = UDRV_TRACKER_FREE;
	qp->inflight--;
	qp->slot_inflight[t->slot]--;
	qp->free[qp->nr_free++] = (uint16_t)id;
}

/* A CQE that is not for a command in flight: count it, and index nothing. */
static __attribute__((noinline, cold)) void anomaly(struct udrv_uring_qp *qp, uint64_t id)
{
	struct udrv_qp_anomalies *a = &qp->counters.anomalies;

	if (id >= qp->depth) {
		a->bad_cid++;
	} else if (qp->trackers[id].state == UDRV_TRACKER_QUARANTINE) {
		a->late++;
		free_tracker(qp, (uint32_t)id);
	} else {
		a->duplicate++;
	}
}

/* What a CQE says, as a row has it. */
static inline void outcome(const struct udrv_uring_qp *qp, const struct udrv_uring_tracker *t,
			   const struct io_uring_cqe *cqe, struct udrv_completion *done)
{
	int32_t res = cqe->res;

	if (likely(!(qp->flags & UDRV_URING_BLOCK))) {
		if (likely(res >= 0)) {
			done->status = (uint16_t)(res & 0x7fff);
			done->result = cqe->big_cqe[0];
			return;
		}
	} else if (likely(res >= 0 && (uint32_t)res == t->len)) {
		done->status = 0;
		done->result = 0;
		return;
	} else if (res >= 0) {
		res = -EIO;	/* fewer bytes than asked for */
	}
	done->status = UDRV_STATUS_HOST;
	done->result = (uint64_t)-(int64_t)res;
}

/* What a stream is shown of a command. */
static inline void tell(struct udrv_tracker *told, const struct udrv_uring_tracker *t)
{
	*told = (struct udrv_tracker){
		.slba = t->slba,
		.len = t->len < 0xffffff ? t->len : 0xffffff,
		.about = t->about,
		.submit_ticks = t->submit_ticks,
		.depth = t->depth,
	};
}

/*
 * Consume CQEs from *head on, at most n, into rows from `row` on. Return: how many rows. With a stream,
 * `told` (as many as CQEs) gets what it is shown of each command.
 */
static inline __attribute__((always_inline)) uint32_t
consume(struct udrv_uring_qp *qp, uint32_t *head, uint32_t n, struct udrv_completion *row,
	struct udrv_tracker *told)
{
	struct udrv_completion *const from = row;
	uint32_t i;

	for (i = 0; i < n; i++) {
		const struct io_uring_cqe *cqe = (const struct io_uring_cqe *)
			(qp->cqes + ((size_t)((*head)++ & qp->cq_mask) << qp->cqe_shift));
		struct udrv_uring_tracker *t;
		uint64_t id = cqe->user_data;

		qp->counters.consumed++;
		if (unlikely(id >= qp->depth || qp->trackers[id].state != UDRV_TRACKER_INFLIGHT)) {
			const int late = id < qp->depth &&
					 qp->trackers[id].state == UDRV_TRACKER_QUARANTINE;

			if (told)
				qp->stream->ops->note(qp->stream, (uint32_t)(row - from), late);
			if (told && late)
				tell(told++, &qp->trackers[id]);
			anomaly(qp, id);
			continue;
		}
		t = &qp->trackers[id];
		row->user_data = t->user_data;
		row->latency_ns = t->submit_ticks;
		outcome(qp, t, cqe, row);
		row++;
		if (told)
			tell(told++, t);
		free_tracker(qp, (uint32_t)id);
	}
	return (uint32_t)(row - from);
}

/* As a part of a reap, with a stream: passes of as many as it takes at a time. all: there are no more. */
static __attribute__((noinline)) uint32_t consume_for_stream(struct udrv_uring_qp *qp,
							      uint32_t *head, uint32_t n,
							      struct udrv_completion *row, int all)
{
	uint32_t given[UDRV_STREAM_PASS], rows = 0, i;
	const uint64_t looked = qp->stream->looked;

	for (i = 0; i < UDRV_STREAM_PASS; i++)
		given[i] = i * (uint32_t)sizeof(struct udrv_tracker);
	while (n) {
		const uint32_t m = n < UDRV_STREAM_PASS ? n : UDRV_STREAM_PASS;
		const uint32_t got = consume(qp, head, m, row + rows, qp->streamed);

		n -= m;
		qp->stream->pass(qp->stream, row + rows, got, m, given);
		rows += got;
	}
	/* what came while this went on is the next look's */
	if (!qp->inflight)
		udrv_stream_dry(qp->stream, qp->stream->looked);
	else if (all)
		udrv_stream_dry(qp->stream, looked);
	return rows;
}

int __udrv_uring_qp_reap(struct udrv_uring_qp *qp, const struct udrv_completions *out,
			 uint32_t first, uint32_t max)
{
	uint32_t head = *qp->khead, rows, n, i;
	int all;
	struct udrv_completion *const row = out->rows + first;
	uint64_t now;

	if (unlikely(first > out->capacity || max > out->capacity - first))
		return -UDRV_EINVAL;
	if (unlikely(qp->stream))
		udrv_stream_look(qp->stream);
	/* acquire: the CQEs, and the data, before the tail; pairs with the kernel's store of it */
	n = __atomic_load_n(qp->kcqtail, __ATOMIC_ACQUIRE) - head;
	if (!n && max && unlikely(qp->stream))
		udrv_stream_dry(qp->stream, qp->stream->looked);
	if (!n || !max)
		return 0;
	all = n <= max;
	if (!all)
		n = max;
	if (unlikely(qp->stream)) {
		rows = consume_for_stream(qp, &head, n, row, all);
	} else {
		now = udrv_ticks_after_loads();
		rows = consume(qp, &head, n, row, NULL);
		for (i = 0; i < rows; i++)
			row[i].latency_ns = udrv_ticks_to_ns(now - row[i].latency_ns);
	}
	qp->counters.completed += rows;
	/* release: our reads of the CQEs before the kernel may overwrite them */
	__atomic_store_n(qp->khead, head, __ATOMIC_RELEASE);
	return (int)rows;
}

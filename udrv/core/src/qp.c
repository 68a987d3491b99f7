// SPDX-License-Identifier: Apache-2.0
/*
 * qp.c - a queue pair's data path: who is inside, submission, completion. Set-up and release are
 * in qp_state.c.
 */
#include <udrv/barrier.h>
#include <udrv/qp.h>

/* --- ownership --------------------------------------------------------------------------- */

int udrv_qp_enter(struct udrv_qp *qp)
{
	if (unlikely(qp->fork_generation != udrv_fork_generation))
		return -UDRV_EFORKED;
	/* acquire: pairs with the release in udrv_qp_leave() of the previous owner */
	if (unlikely(__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE)))
		return -UDRV_EBUSY;
	/* relaxed: a close that races with this call takes effect on the next one */
	if (unlikely(__atomic_load_n(&qp->closed, __ATOMIC_RELAXED))) {
		udrv_qp_leave(qp);
		return -UDRV_ECLOSED;
	}
	return 0;
}

void udrv_qp_leave(struct udrv_qp *qp)
{
	/* release: all that this owner wrote is seen by the next one's acquire */
	__atomic_store_n(&qp->owner, 0, __ATOMIC_RELEASE);
}

void udrv_qp_close(struct udrv_qp *qp)
{
	__atomic_store_n(&qp->closed, 1, __ATOMIC_RELAXED);
}

/* --- submission -------------------------------------------------------------------------- */

/* Fill in the PRPs of `len` > 0 bytes at `iova`; the list page is the tracker's own. */
static inline void set_prps(struct udrv_qp *qp, struct nvme_sqe *sqe, uint32_t cid, uint64_t iova,
			    uint32_t len)
{
	uint32_t first = NVME_PAGE_SIZE - (uint32_t)(iova & NVME_PAGE_MASK);
	uint64_t page = (iova & ~(uint64_t)NVME_PAGE_MASK) + NVME_PAGE_SIZE;
	uint64_t *list;
	uint32_t i, n;

	sqe->prp1 = iova;
	if (len <= first) {
		sqe->prp2 = 0;
		return;
	}
	n = (len - first + NVME_PAGE_MASK) >> NVME_PAGE_SHIFT;
	if (n == 1) {
		sqe->prp2 = page;
		return;
	}
	/* n <= prp_entries: len <= max_transfer <= UDRV_QP_PRP_MAX_TRANSFER */
	list = qp->prp + (size_t)cid * qp->prp_entries;
	for (i = 0; i < n; i++, page += NVME_PAGE_SIZE)
		list[i] = page;
	sqe->prp2 = qp->prp_iova + ((uint64_t)cid << NVME_PAGE_SHIFT);
}

static inline uint32_t ring_next(const struct udrv_qp *qp, uint32_t i)
{
	return unlikely(++i == qp->entries) ? 0 : i;
}

/* Tell the device of everything that was posted. */
static inline void ring_sq(struct udrv_qp *qp)
{
	struct udrv_qp_shared *sh = qp->shared;
	uint64_t now = udrv_ticks();
	uint32_t i;

	for (i = sh->sq_rung; i != sh->sq_posted; i = ring_next(qp, i))
		qp->trackers[qp->slot_cid[i]].submit_ticks = now;
	/*
	 * Entries and PRP lists before the tail: pairs with the device's read of the doorbell
	 * before its reads of the ring.
	 */
	udrv_dma_wmb();
	udrv_mmio_write32(qp->sq_doorbell, sh->sq_posted);
	sh->sq_rung = sh->sq_posted;
	sh->sq_doorbells++;
}

/* Check one command of a batch. Return: its data length in bytes, or -UDRV_E*. */
static inline int64_t check_command(const struct udrv_qp *qp, const struct udrv_batch *b,
				    uint32_t i)
{
	uint8_t opcode = b->opcode[i];
	uint64_t slba = b->slba[i];
	uint64_t offset = b->offset[i];
	uint64_t nlb = b->nlb[i];
	uint64_t len;

	if (unlikely(opcode != NVME_CMD_READ && opcode != NVME_CMD_WRITE))
		return opcode == NVME_CMD_FLUSH ? 0 : -UDRV_EOPCODE;
	if (unlikely(!nlb || nlb > b->nsze || slba > b->nsze - nlb))
		return -UDRV_ERANGE;
	len = nlb << b->lba_shift;	/* nlb < 2^32, lba_shift <= 16 */
	if (unlikely(len > qp->max_transfer || nlb > 65536))
		return -UDRV_ESIZE;
	if (unlikely(offset > b->len || len > b->len - offset))
		return -UDRV_EBUFFER;
	if (unlikely((b->iova + offset) & 3))
		return -UDRV_EALIGN;
	return (int64_t)len;
}

int __udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *b, uint32_t first,
		     uint32_t count, uint32_t *bad)
{
	struct udrv_qp_shared *sh = qp->shared;
	uint32_t tail = sh->sq_posted;
	uint32_t nr_free = sh->nr_free;
	uint32_t i, n;

	if (unlikely(first > b->capacity || count > b->capacity - first ||
		     b->slot >= UDRV_QP_SLOTS || b->lba_shift < 9 || b->lba_shift > 16))
		return -UDRV_EINVAL;
	n = count < nr_free ? count : nr_free;

	for (i = first; i < first + n; i++) {
		int64_t len = check_command(qp, b, i);
		struct udrv_tracker *t;
		struct nvme_sqe *sqe;
		uint64_t slba;
		uint16_t cid;

		if (unlikely(len < 0)) {
			/* the device was not told of the ones before it: forget them */
			while (nr_free < sh->nr_free)
				qp->trackers[qp->free[nr_free++]].state = UDRV_TRACKER_FREE;
			*bad = i;
			return (int)len;
		}
		cid = qp->free[--nr_free];
		t = &qp->trackers[cid];
		slba = len ? b->slba[i] : 0;
		t->user_data = b->user_data[i];
		t->slba = slba;
		t->pool_offset = b->pool_offset + b->offset[i];
		t->len = (uint32_t)len;
		t->nsid = b->nsid;
		t->pool_id = b->pool_id;
		t->slot = b->slot;
		t->opcode = b->opcode[i];
		t->state = UDRV_TRACKER_INFLIGHT;

		sqe = &qp->sq[tail];
		sqe->cdw0 = b->opcode[i] | (uint32_t)cid << 16;
		sqe->nsid = b->nsid;
		sqe->cdw2 = 0;
		sqe->cdw3 = 0;
		sqe->mptr = 0;
		if (len) {
			set_prps(qp, sqe, cid, b->iova + b->offset[i], (uint32_t)len);
			sqe->cdw12 = (b->nlb[i] - 1) |
				     (b->control ? (uint32_t)b->control[i] << 16 : 0);
		} else {
			sqe->prp1 = 0;
			sqe->prp2 = 0;
			sqe->cdw12 = 0;
		}
		sqe->cdw10 = (uint32_t)slba;
		sqe->cdw11 = (uint32_t)(slba >> 32);
		sqe->cdw13 = 0;
		sqe->cdw14 = 0;
		sqe->cdw15 = 0;
		qp->slot_cid[tail] = cid;
		tail = ring_next(qp, tail);
	}
	if (likely(n)) {
		sh->nr_free = nr_free;
		sh->sq_posted = tail;
		sh->submitted += n;
		qp->slot_inflight[b->slot] += n;
		qp->inflight += n;
		ring_sq(qp);
	}
	return (int)n;
}

int udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *b, uint32_t first, uint32_t count,
		   uint32_t *bad)
{
	int ret = udrv_qp_enter(qp);

	if (unlikely(ret))
		return ret;
	ret = __udrv_qp_submit(qp, b, first, count, bad);
	udrv_qp_leave(qp);
	return ret;
}

int udrv_qp_submit_raw(struct udrv_qp *qp, const struct nvme_sqe *src, uint64_t iova, uint32_t len,
		       uint32_t pool_id, uint64_t pool_offset, uint16_t slot, uint64_t user_data)
{
	struct udrv_qp_shared *sh = qp->shared;
	struct udrv_tracker *t;
	struct nvme_sqe *sqe;
	uint16_t cid;
	int ret;

	if (slot >= UDRV_QP_SLOTS)
		return -UDRV_EINVAL;
	if (len > qp->max_transfer)
		return -UDRV_ESIZE;
	if (len && (iova & 3))
		return -UDRV_EALIGN;
	ret = udrv_qp_enter(qp);
	if (ret)
		return ret;
	if (!sh->nr_free) {
		udrv_qp_leave(qp);
		return -UDRV_EFULL;
	}
	cid = qp->free[--sh->nr_free];
	t = &qp->trackers[cid];
	t->user_data = user_data;
	t->slba = src->cdw10 | (uint64_t)src->cdw11 << 32;
	t->pool_offset = pool_offset;
	t->len = len;
	t->nsid = src->nsid;
	t->pool_id = pool_id;
	t->slot = slot;
	t->opcode = (uint8_t)src->cdw0;
	t->state = UDRV_TRACKER_INFLIGHT;

	sqe = &qp->sq[sh->sq_posted];
	*sqe = *src;
	sqe->cdw0 = (src->cdw0 & 0xffff) | (uint32_t)cid << 16;
	if (len)
		set_prps(qp, sqe, cid, iova, len);
	qp->slot_cid[sh->sq_posted] = cid;
	sh->sq_posted = ring_next(qp, sh->sq_posted);
	sh->submitted++;
	qp->slot_inflight[slot]++;
	qp->inflight++;
	ring_sq(qp);
	udrv_qp_leave(qp);
	return 1;
}

/* --- completion -------------------------------------------------------------------------- */

static inline void free_tracker(struct udrv_qp *qp, uint32_t cid)
{
	struct udrv_tracker *t = &qp->trackers[cid];

	t->state = UDRV_TRACKER_FREE;
	qp->inflight--;
	qp->slot_inflight[t->slot]--;
	qp->free[qp->shared->nr_free++] = (uint16_t)cid;
}

int __udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		   uint32_t max)
{
	struct udrv_qp_shared *sh = qp->shared;
	uint32_t head = sh->cq_head;
	uint32_t phase = sh->cq_phase;
	uint32_t n = 0, seen = 0;
	uint64_t now = 0;

	if (unlikely(first > out->capacity || max > out->capacity - first))
		return -UDRV_EINVAL;

	/* at most one lap: a device that completes for ever must not keep us for ever */
	while (n < max && seen < qp->entries) {
		volatile struct nvme_cqe *cqe = &qp->cq[head];
		uint32_t dw3 = cqe->dw3;
		uint32_t cid = dw3 & 0xffff;
		uint32_t dw2;

		if (((dw3 >> 16) & 1) != phase)
			break;
		/*
		 * The rest of the entry after its phase, and the data after both: pairs with the
		 * device, which writes data, then entry, then phase.
		 */
		udrv_dma_rmb();
		if (!seen)
			now = udrv_ticks();
		seen++;
		dw2 = cqe->dw2;

		if (unlikely(cid >= qp->nr_trackers)) {
			sh->anomalies.bad_cid++;
		} else if (unlikely((dw2 >> 16) != qp->qid)) {
			sh->anomalies.bad_sqid++;
		} else if (unlikely(qp->trackers[cid].state != UDRV_TRACKER_INFLIGHT)) {
			if (qp->trackers[cid].state == UDRV_TRACKER_QUARANTINE) {
				sh->anomalies.late++;
				free_tracker(qp, cid);
			} else {
				sh->anomalies.duplicate++;
			}
		} else {
			const struct udrv_tracker *t = &qp->trackers[cid];
			uint32_t row = first + n++;

			out->user_data[row] = t->user_data;
			out->result[row] = cqe->dw0 | (uint64_t)cqe->dw1 << 32;
			out->status[row] = (uint16_t)(dw3 >> 17);
			out->latency_ns[row] = udrv_ticks_to_ns(now - t->submit_ticks);
			free_tracker(qp, cid);
		}
		head = ring_next(qp, head);
		if (!head)
			phase ^= 1;
	}
	if (seen) {
		sh->cq_head = head;
		sh->cq_phase = phase;
		sh->consumed += seen;
		sh->completed += n;
		/*
		 * Our reads of the entries before the device may overwrite them: pairs with its
		 * read of the doorbell before it uses a slot again.
		 */
		udrv_dma_load_store();
		udrv_mmio_write32(qp->cq_doorbell, head);
		sh->cq_rung = head;
		sh->cq_doorbells++;
	}
	return (int)n;
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

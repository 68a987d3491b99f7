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
static inline void set_prps(struct nvme_sqe *sqe, uint64_t *lists, uint64_t lists_iova,
			    uint32_t cid, uint64_t iova, uint32_t len)
{
	uint32_t end = (uint32_t)(iova & NVME_PAGE_MASK) + len;	/* from the first page's start */
	uint64_t page;
	uint64_t *list;
	uint32_t i, n;

	sqe->prp1 = iova;
	if (likely(end <= NVME_PAGE_SIZE)) {
		sqe->prp2 = 0;
		return;
	}
	page = (iova & ~(uint64_t)NVME_PAGE_MASK) + NVME_PAGE_SIZE;
	if (end <= 2 * NVME_PAGE_SIZE) {
		sqe->prp2 = page;
		return;
	}
	/* at most one page of entries: len <= max_transfer <= UDRV_QP_PRP_MAX_TRANSFER */
	n = (end - 1) >> NVME_PAGE_SHIFT;
	list = lists + (size_t)cid * (NVME_PAGE_SIZE / 8);
	for (i = 0; i < n; i++, page += NVME_PAGE_SIZE)
		list[i] = page;
	sqe->prp2 = lists_iova + ((uint64_t)cid << NVME_PAGE_SHIFT);
}

static inline uint32_t ring_next(const struct udrv_qp *qp, uint32_t i)
{
	return unlikely(++i == qp->entries) ? 0 : i;
}

/* Tell the device of the `n` commands posted last; their ids are the n above the free stack's top. */
static inline void ring_sq(struct udrv_qp *qp, uint32_t n)
{
	struct udrv_qp_shared *sh = qp->shared;
	struct udrv_tracker *const trackers = qp->trackers;
	const uint16_t *cid = qp->free + sh->nr_free, *const end = cid + n;
	uint64_t now = udrv_ticks();

	do
		trackers[*cid].submit_ticks = now;
	while (++cid != end);
	/*
	 * Entries and PRP lists before the tail: pairs with the device's read of the doorbell
	 * before its reads of the ring.
	 */
	udrv_dma_wmb();
	udrv_mmio_write32(qp->sq_doorbell, sh->sq_posted);
	sh->sq_rung = sh->sq_posted;
	sh->sq_doorbells++;
}

/* What is wrong with a command that the checks below did not let pass: -UDRV_E*. */
static __attribute__((noinline, cold)) int why_refused(const struct udrv_qp *qp,
							 const struct udrv_batch *b, uint32_t i)
{
	uint64_t nlb = b->nlb[i];
	uint64_t len = nlb << b->lba_shift;

	if (b->opcode[i] != NVME_CMD_READ && b->opcode[i] != NVME_CMD_WRITE)
		return -UDRV_EOPCODE;
	if (!nlb || nlb > b->nsze || b->slba[i] > b->nsze - nlb)
		return -UDRV_ERANGE;
	if (len > qp->max_transfer)
		return -UDRV_ESIZE;
	if (b->offset[i] > b->len || len > b->len - b->offset[i])
		return -UDRV_EBUFFER;
	return -UDRV_EALIGN;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/*
 * Post commands first .. first + n - 1; n ids are free. Return: 0, or -UDRV_E* and the row in *bad,
 * with nothing posted.
 *
 * Fields are copied to locals because a store to a tracker or to the ring could alias any of them.
 * `has_control` is a constant at both calls: the common loop has no test for it.
 */
static inline __attribute__((always_inline)) int post(struct udrv_qp *qp,
						      const struct udrv_batch *b, uint32_t first,
						      uint32_t n, uint16_t slot, uint32_t *bad,
						      int has_control)
{
	struct udrv_qp_shared *sh = qp->shared;
	const uint8_t *const opcodes = b->opcode;
	const uint64_t *const slbas = b->slba, *const offsets = b->offset;
	const uint64_t *const user_data = b->user_data;
	const uint32_t *const nlbs = b->nlb;
	const uint64_t nsze = b->nsze, buf_len = b->len, iova = b->iova;
	const uint64_t pool_offset = b->pool_offset, nsid = (uint64_t)b->nsid << 32;
	const uint32_t lba_shift = b->lba_shift, entries = qp->entries;
	/* no more blocks than a command, the namespace and the buffer allow; below 2^32 */
	const uint32_t most = (uint32_t)min_u64(min_u64(qp->max_transfer, buf_len) >> lba_shift,
						nsze);
	const uint64_t meta = b->pool_id | (uint64_t)slot << 32 |
			      (uint64_t)UDRV_TRACKER_INFLIGHT << 56;
	struct udrv_tracker *const trackers = qp->trackers;
	struct nvme_sqe *const sq = qp->sq;
	uint64_t *const lists = qp->prp;
	const uint64_t lists_iova = qp->prp_iova;
	const uint16_t *free = qp->free + sh->nr_free;
	uint32_t tail = sh->sq_posted;
	uint32_t i;

	for (i = first; i < first + n; i++) {
		uint64_t opcode = opcodes[i], slba = slbas[i], offset = offsets[i];
		uint32_t nlb = nlbs[i];
		uint64_t len = (uint64_t)nlb << lba_shift;
		uint64_t cid = *--free;
		struct udrv_tracker *t = &trackers[cid];
		struct nvme_sqe *sqe = &sq[tail];

		if (likely(opcode - 1 <= 1)) {	/* write is 1, read is 2 */
			/* nlb - 1 wraps to a huge value for 0 */
			if (unlikely(nlb - 1 >= most || slba > nsze - nlb ||
				     offset > buf_len - len || ((iova + offset) & 3)))
				goto refused;
			set_prps(sqe, lists, lists_iova, (uint32_t)cid, iova + offset,
				 (uint32_t)len);
			sqe->cdw12_13 = nlb - 1;
			if (has_control)
				sqe->cdw12 |= (uint32_t)b->control[i] << 16;
		} else {
			if (opcode != NVME_CMD_FLUSH)
				goto refused;
			slba = len = offset = 0;
			sqe->prp1 = 0;
			sqe->prp2 = 0;
			sqe->cdw12_13 = 0;
		}
		t->user_data = user_data[i];
		t->slba = slba;
		t->pool_offset = pool_offset + offset;
		t->len_nsid = nsid | len;
		t->meta = meta | opcode << 48;

		sqe->cdw0 = (uint32_t)(opcode | cid << 16);
		sqe->nsid = (uint32_t)(nsid >> 32);
		sqe->cdw2 = 0;
		sqe->cdw3 = 0;
		sqe->mptr = 0;
		sqe->slba = slba;
		sqe->cdw14_15 = 0;
		if (unlikely(++tail == entries))
			tail = 0;
	}
	sh->nr_free -= n;
	sh->sq_posted = tail;
	return 0;
refused:
	/* the device was not told of the ones before it: forget them */
	for (free++; free < qp->free + sh->nr_free; free++)
		trackers[*free].state = UDRV_TRACKER_FREE;
	*bad = i;
	return why_refused(qp, b, i);
}

int __udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *b, uint32_t first,
		     uint32_t count, uint32_t *bad)
{
	struct udrv_qp_shared *sh = qp->shared;
	uint32_t n = count < sh->nr_free ? count : sh->nr_free;
	/* once: another thread may close the batch meanwhile, and what was checked is the index */
	uint16_t slot = *(const volatile uint16_t *)&b->slot;
	int ret;

	if (unlikely(first > b->capacity || count > b->capacity - first ||
		     slot >= UDRV_QP_SLOTS || b->lba_shift < 9 || b->lba_shift > 16))
		return -UDRV_EINVAL;
	if (unlikely(!n))
		return 0;
	ret = b->control ? post(qp, b, first, n, slot, bad, 1) : post(qp, b, first, n, slot, bad, 0);
	if (unlikely(ret))
		return ret;
	sh->submitted += n;
	qp->slot_inflight[slot] += n;
	qp->inflight += n;
	ring_sq(qp, n);
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
		set_prps(sqe, qp->prp, qp->prp_iova, cid, iova, len);
	sh->sq_posted = ring_next(qp, sh->sq_posted);
	sh->submitted++;
	qp->slot_inflight[slot]++;
	qp->inflight++;
	ring_sq(qp, 1);
	udrv_qp_leave(qp);
	return 1;
}

/* --- completion -------------------------------------------------------------------------- */

/* Give a command id back, and with it its claim on the slot's buffer. */
static inline void free_tracker(struct udrv_qp *qp, uint32_t cid)
{
	struct udrv_tracker *t = &qp->trackers[cid];

	t->state = UDRV_TRACKER_FREE;
	qp->inflight--;
	qp->slot_inflight[t->slot]--;
	qp->free[qp->shared->nr_free++] = (uint16_t)cid;
}

/* A completion that is not for a command in flight: count it, and index nothing. */
static __attribute__((noinline, cold)) void anomaly(struct udrv_qp *qp, uint32_t cid,
						      uint32_t sqid)
{
	struct udrv_qp_anomalies *a = &qp->shared->anomalies;

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

/* How many entries are there, from *head on, at most max; *head and *phase become those behind. */
static inline uint32_t count_new(const struct udrv_qp *qp, uint32_t *head, uint32_t *phase,
				 uint32_t max)
{
	volatile const struct nvme_cqe *const cq = qp->cq;
	const uint32_t entries = qp->entries;
	uint32_t h = *head, p = *phase, n = 0;

	while (n < max && ((cq[h].dw3 >> 16) & 1) == p) {
		n++;
		if (unlikely(++h == entries)) {
			h = 0;
			p ^= 1;
		}
	}
	*head = h;
	*phase = p;
	return n;
}

/* Consume n entries from `head` on. Return: how many were delivered, into out[row ...]. */
static inline uint32_t consume(struct udrv_qp *qp, const struct udrv_completions *out,
			       uint32_t row, uint32_t head, uint32_t n)
{
	struct udrv_qp_shared *sh = qp->shared;
	volatile const struct nvme_cqe *const cq = qp->cq;
	struct udrv_tracker *const trackers = qp->trackers;
	uint32_t *const slot_inflight = qp->slot_inflight;
	uint64_t *const user_data = out->user_data, *const result = out->result;
	uint64_t *const latency_ns = out->latency_ns;
	uint16_t *const status = out->status;
	const uint32_t entries = qp->entries, nr_trackers = qp->nr_trackers, qid = qp->qid;
	const uint32_t first = row;
	uint16_t *top = qp->free + sh->nr_free;
	uint64_t now;

	/*
	 * The rest of the entries after their phases, and the data after both: pairs with the
	 * device, which writes data, then entry, then phase.
	 */
	udrv_dma_rmb();
	now = udrv_ticks_after_loads();

	for (; n; n--) {
		uint64_t dw2_3 = cq[head].dw2_3, cqe_result = cq[head].result;
		uint32_t cid = (dw2_3 >> 32) & 0xffff, sqid = (uint32_t)dw2_3 >> 16;
		struct udrv_tracker *t;

		if (unlikely(++head == entries))
			head = 0;
		if (unlikely(cid >= nr_trackers || sqid != qid ||
			     trackers[cid].state != UDRV_TRACKER_INFLIGHT)) {
			sh->nr_free = (uint32_t)(top - qp->free);
			anomaly(qp, cid, sqid);
			top = qp->free + sh->nr_free;
			continue;
		}
		t = &trackers[cid];
		user_data[row] = t->user_data;
		result[row] = cqe_result;
		status[row] = (uint16_t)(dw2_3 >> 49);
		latency_ns[row] = udrv_ticks_to_ns(now - t->submit_ticks);
		row++;
		t->state = UDRV_TRACKER_FREE;
		slot_inflight[t->slot]--;
		*top++ = (uint16_t)cid;
	}
	sh->nr_free = (uint32_t)(top - qp->free);
	qp->inflight -= row - first;
	return row - first;
}

int __udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		   uint32_t max)
{
	struct udrv_qp_shared *sh = qp->shared;
	uint32_t head = sh->cq_head, phase = sh->cq_phase;
	uint32_t seen = 0, delivered = 0, want, n;

	if (unlikely(first > out->capacity || max > out->capacity - first))
		return -UDRV_EINVAL;
	/*
	 * Entries are counted before the clock is read: one that comes while they are consumed
	 * belongs to the next round, or its latency would be too short. There is another round only
	 * where some were no completions of ours. At most one lap in all: a device that completes
	 * for ever must not keep us for ever.
	 */
	do {
		uint32_t from = head;

		want = max - delivered;
		if (want > qp->entries - seen)
			want = qp->entries - seen;
		n = count_new(qp, &head, &phase, want);
		if (!n)
			break;
		seen += n;
		delivered += consume(qp, out, first + delivered, from, n);
	} while (unlikely(delivered != seen && n == want));
	if (!seen)
		return 0;

	sh->cq_head = head;
	sh->cq_phase = phase;
	sh->consumed += seen;
	sh->completed += delivered;
	/*
	 * Our reads of the entries before the device may overwrite them: pairs with its read of the
	 * doorbell before it uses a slot again.
	 */
	udrv_dma_load_store();
	udrv_mmio_write32(qp->cq_doorbell, head);
	sh->cq_rung = head;
	sh->cq_doorbells++;
	return (int)delivered;
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

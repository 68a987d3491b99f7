// SPDX-License-Identifier: Apache-2.0
/*
 * qp.c - a queue pair's data path: who is inside, and submission. Completion is in qp_reap.c, set-up
 * and release are in qp_state.c.
 */
#include <string.h>

#include <udrv/barrier.h>
#include <udrv/batch.h>

#include "qp_priv.h"

/* --- ownership --------------------------------------------------------------------------- */

int udrv_qp_enter(struct udrv_qp *qp)
{
	if (unlikely(qp->fork_generation != udrv_fork_generation))
		return -UDRV_EFORKED;
	/* acquire: pairs with the release in udrv_qp_leave() of the previous owner */
	if (unlikely(__atomic_exchange_n(&qp->owner, 1, __ATOMIC_ACQUIRE)))
		return __atomic_load_n(&qp->closed, __ATOMIC_RELAXED) == UDRV_QP_HALTED ?
		       -UDRV_EHALTED : -UDRV_EBUSY;
	/* relaxed: a close that races with this call takes effect on the next one */
	if (unlikely(__atomic_load_n(&qp->closed, __ATOMIC_RELAXED))) {
		udrv_qp_leave(qp);
		return __udrv_qp_shut(qp);
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
	__atomic_store_n(&qp->closed, UDRV_QP_CLOSED, __ATOMIC_RELAXED);
}

/* --- submission -------------------------------------------------------------------------- */

static inline uint32_t ring_next(const struct udrv_qp *qp, uint32_t i)
{
	return unlikely(++i == qp->entries) ? 0 : i;
}

static_assert(UDRV_QP_PRP_MAX_TRANSFER < 1 << 24, "a tracker's len has 24 bits");

/*
 * PRP2 of `len` bytes at prp1 that cross a page boundary. `table` is the IOVA of the entry of
 * PRP1's page in its pool's PRP table, or 0.
 */
static inline uint64_t prp2_of(const struct udrv_qp *qp, uint64_t cid, uint64_t prp1, uint64_t len,
			       uint64_t table)
{
	uint64_t page = (prp1 & ~(uint64_t)NVME_PAGE_MASK) + NVME_PAGE_SIZE;
	/* at most one page of entries: len <= max_transfer <= UDRV_QP_PRP_MAX_TRANSFER */
	uint64_t n = (prp1 + len - 1 - page) / NVME_PAGE_SIZE + 1;
	uint64_t *list, *end;

	if (n == 1)
		return page;
	if (table) {
		table += 8;
		if (likely((table & NVME_PAGE_MASK) + n * 8 <= NVME_PAGE_SIZE))
			return table;
	}
	list = qp->prp + cid * (NVME_PAGE_SIZE / 8);
	for (end = list + n; list != end; page += NVME_PAGE_SIZE)
		*list++ = page;
	return qp->prp_iova + (cid << NVME_PAGE_SHIFT);
}

/* The PRP2 of a batch's command whose data crosses a page boundary. */
static __attribute__((noinline)) void set_prp2(const struct udrv_qp *qp, const struct udrv_batch *b,
					       struct nvme_sqe *sqe, uint64_t len)
{
	uint64_t table = b->prp_table;

	if (table)
		table += (b->pool_offset + (sqe->prp1 - b->iova)) / NVME_PAGE_SIZE * 8;
	sqe->prp2 = prp2_of(qp, sqe->cdw0 >> 16, sqe->prp1, len, table);
}

/* Data that starts further into a page than this crosses its end. */
static inline int64_t last_in_page(uint64_t len)
{
	return (int64_t)NVME_PAGE_SIZE - (int64_t)len;
}

static inline int crosses_page(uint64_t prp1, int64_t last)
{
	return (int64_t)(prp1 & NVME_PAGE_MASK) > last;
}

/*
 * Tell the device of the `n` commands posted last, which are of so many shapes; their trackers are the n
 * above the free stack.
 */
static inline __attribute__((always_inline)) void ring_sq(struct udrv_qp *qp, uint32_t n, int shapes)
{
	struct udrv_qp_shared *sh = qp->shared;

	if (likely(!(qp->flags & UDRV_QP_UNTIMED))) {
		const uint32_t *free = qp->free + sh->nr_free, *const end = free + n;
		struct udrv_tracker *const trackers = qp->trackers;
		uint64_t now = udrv_ticks();
		udrv_u64x2 stamp;

		/* of this doorbell alone, however coarse the clock is */
		if (unlikely(now <= sh->last_ticks))
			now = sh->last_ticks + 1;
		sh->last_ticks = now;
		stamp = (udrv_u64x2){ now, qp->inflight |
					    (uint64_t)(shapes > 1) << 63 };	/* UDRV_DEPTH_MIXED */

#pragma GCC unroll 4
		for (; free != end; free++)
			tracker_at(trackers, *free)->stamp = stamp;
	}
	/*
	 * Entries and PRP lists before the tail: pairs with the device's read of the doorbell
	 * before its reads of the ring.
	 */
	udrv_dma_wmb();
	if (likely(!(qp->flags & UDRV_QP_HOW))) {
		udrv_mmio_write32(qp->sq_doorbell, sh->sq_posted);
		sh->sq_doorbells++;
	} else if (udrv_doorbell_write(&qp->how[0], sh->sq_posted, sh->sq_rung)) {
		sh->sq_doorbells++;
	} else {
		sh->sq_shadow++;
	}
	sh->sq_rung = sh->sq_posted;
}

/* What is wrong with a command that the checks below did not let pass: -UDRV_E*. */
static __attribute__((noinline, cold)) int why_refused(const struct udrv_qp *qp,
							 const struct udrv_batch *b,
							 const struct udrv_command *row)
{
	int ret = udrv_row_check(b, row, qp->max_transfer, 3);

	return ret ? ret : -UDRV_EALIGN;	/* 0: somebody wrote to the row meanwhile */
}

static inline uint8_t shape_opcode(uint64_t shape)
{
	return (uint8_t)(shape >> 48);
}

/* What is the same in all commands of one shape: of their trackers, and of their entries. */
static inline uint64_t word_of(uint16_t slot, uint8_t opcode, uint32_t len)
{
	return len | (uint64_t)opcode << 24 | (uint64_t)slot << 32 |
	       (uint64_t)UDRV_TRACKER_INFLIGHT << 48;
}

static inline uint64_t cdw0_nsid_of(uint32_t nsid, uint8_t opcode)
{
	return opcode | (uint64_t)nsid << 32;
}

/* The fields that the batch path leaves as they are, 0, of the next n entries. */
static __attribute__((noinline, cold)) void clean_entries(struct udrv_qp *qp, uint32_t n)
{
	uint32_t i = qp->shared->sq_posted;

	while (n--) {
		qp->sq[i].cdw2_3 = 0;
		qp->sq[i].mptr = 0;
		i = ring_next(qp, i);
	}
}

static __attribute__((noinline, cold)) void post_flush(struct udrv_tracker *t, struct nvme_sqe *sqe,
							 uint64_t user_data, uint64_t word,
							 uint64_t cdw0_nsid)
{
	t->user_data = user_data;
	t->slba = 0;
	t->offset = 0;
	t->word = word;
	t->about = UDRV_ABOUT(cdw0_nsid >> 32, NVME_CMD_FLUSH, 0);
	sqe->cdw0_nsid = cdw0_nsid;
	sqe->prp1 = 0;
	sqe->prp2 = 0;
	sqe->slba = 0;
	sqe->cdw12_15 = (udrv_u64x2){ 0, 0 };
}

/*
 * Post commands first .. first + n - 1; n ids are free. Return: how many times the shape changed, the
 * first one included; or -UDRV_E* and the row in *bad,
 * with nothing posted.
 *
 * Neighbours mostly have the same shape (opcode, length, control): what follows from it is made
 * when it changes, the checks of the length among it.
 */
static __attribute__((noinline)) int post(struct udrv_qp *qp, const struct udrv_batch *b, uint32_t first, uint32_t n,
		uint16_t slot, uint32_t *bad)
{
	struct udrv_qp_shared *const sh = qp->shared;
	struct udrv_tracker *const trackers = qp->trackers;
	const struct udrv_command *row = b->commands + first, *end;
	const uint64_t iova = b->iova;
	const uint32_t *free = qp->free + sh->nr_free;
	uint32_t tail = sh->sq_posted, rest = n, run;
	struct nvme_sqe *sqe = qp->sq + tail;
	/* what follows from the shape; the first row is a change, and nothing passes with slba_end 0 */
	uint64_t shape = ~row->shape, slba_end = 0, last_offset = 0, len = 0;
	uint64_t cdw0_nsid = 0;
	udrv_u64x2 word = { 0, 0 }, cdw12 = { 0, 0 };
	int64_t last = 0;
	uint32_t nlb0;
	int shapes = 0;

	do {
		run = qp->entries - tail;	/* to the end of the ring */
		if (run > rest)
			run = rest;
		rest -= run;
		end = row + run;
		do {
			const uint64_t slba = row->slba, offset = row->offset, prp1 = iova + offset;
			const uint64_t cid64 = *--free;
			struct udrv_tracker *const t = tracker_at(trackers, cid64);

			if (unlikely(row->shape != shape))
				goto new_shape;
same_shape:
			if (refuse_if(slba >= slba_end || offset > last_offset || (prp1 & 3)))
				goto refused;
			t->user_data = row->user_data;
			t->slba = slba;
			t->offset = offset;
			t->word_pair = word;
			sqe->cdw0_nsid = cdw0_nsid + (cid64 << (16 - CID_SHIFT));
			sqe->prp1 = prp1;
			sqe->prp2 = 0;
			sqe->slba = slba;
			sqe->cdw12_15 = cdw12;
			if (crosses_page(prp1, last))
				set_prp2(qp, b, sqe, len);
			continue;
new_shape:
			shapes++;
			if (shape_opcode(row->shape) == NVME_CMD_FLUSH) {
				post_flush(t, sqe, row->user_data, word_of(slot, NVME_CMD_FLUSH, 0),
					   cdw0_nsid_of(b->nsid, NVME_CMD_FLUSH) +
						   (cid64 << (16 - CID_SHIFT)));
				continue;
			}
			shape = row->shape;
			/* nlb - 1 wraps to a huge value for 0 */
			nlb0 = (uint32_t)shape - 1;
			len = ((uint64_t)nlb0 + 1) << b->lba_shift;
			if (refuse_if((shape_opcode(shape) != NVME_CMD_READ &&
				       shape_opcode(shape) != NVME_CMD_WRITE) ||
				      nlb0 >= b->nsze || len > qp->max_transfer || len > b->len))
				goto refused;
			slba_end = b->nsze - nlb0;
			last_offset = b->len - len;
			last = last_in_page(len);
			word[0] = word_of(slot, shape_opcode(shape), (uint32_t)len);
			cdw0_nsid = cdw0_nsid_of(b->nsid, shape_opcode(shape));
			word[1] = cdw0_nsid | (uint64_t)(nlb0 + 1) << 8;	/* UDRV_ABOUT() */
			cdw12[0] = nlb0 | (shape >> 32 & 0xffff) << 16;
			goto same_shape;
		} while (sqe++, ++row != end);
		tail += run;
		if (tail == qp->entries) {
			tail = 0;
			sqe = qp->sq;
		}
	} while (unlikely(rest));
	sh->nr_free -= n;
	sh->sq_posted = tail;
	return shapes;
refused:
	/* the device was not told of the ones before it: forget them */
	free = qp->free + sh->nr_free;
	for (end = row, row = b->commands + first; row != end; row++)
		tracker_at(trackers, *--free)->state = UDRV_TRACKER_FREE;
	*bad = (uint32_t)(end - b->commands);
	return why_refused(qp, b, end);
}

/* Note where the slot's data lies. */
static inline void set_slot(struct udrv_qp *qp, uint16_t slot, uint32_t nsid, uint32_t pool_id,
			    uint64_t pool_offset)
{
	qp->slots[slot] = (struct udrv_qp_slot){ nsid, pool_id, pool_offset };
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
	if (unlikely(qp->sq_dirty))
		clean_entries(qp, n);
	ret = post(qp, b, first, n, slot, bad);
	if (unlikely(ret < 0))
		return ret;
	set_slot(qp, slot, b->nsid, b->pool_id, b->pool_offset);
	sh->submitted += n;
	qp->slot_inflight[slot] += n;
	qp->inflight += n;
	ring_sq(qp, n, ret);
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

int udrv_qp_submit_raw(struct udrv_qp *qp, const void *command, uint64_t iova, uint32_t len,
		       uint32_t pool_id, uint64_t pool_offset, uint64_t offset, uint16_t slot,
		       uint64_t user_data)
{
	struct udrv_qp_shared *sh = qp->shared;
	const struct udrv_qp_slot *place;
	struct nvme_sqe src, *sqe;
	struct udrv_tracker *t;
	uint64_t cid;
	int ret;

	memcpy(&src, command, sizeof(src));	/* a caller's bytes are aligned to nothing */

	if (slot >= UDRV_QP_SLOTS)
		return -UDRV_EINVAL;
	if (len > qp->max_transfer)
		return -UDRV_ESIZE;
	if (len && (iova & 3))
		return -UDRV_EALIGN;
	ret = udrv_qp_enter(qp);
	if (ret)
		return ret;
	place = &qp->slots[slot];
	if (qp->slot_inflight[slot] &&
	    (place->pool_id != pool_id || place->pool_offset != pool_offset)) {
		udrv_qp_leave(qp);
		return -UDRV_EINVAL;
	}
	if (!sh->nr_free) {
		udrv_qp_leave(qp);
		return -UDRV_EFULL;
	}
	if (!qp->slot_inflight[slot])	/* else a batch's, which has one namespace */
		set_slot(qp, slot, src.nsid, pool_id, pool_offset);
	cid = qp->free[--sh->nr_free] >> CID_SHIFT;
	t = &qp->trackers[cid];
	t->user_data = user_data;
	t->slba = src.slba;
	t->offset = offset;
	t->word = word_of(slot, (uint8_t)src.cdw0, len);
	t->about = UDRV_ABOUT(src.nsid, (uint8_t)src.cdw0, UDRV_ABOUT_RAW | len >> 9);

	sqe = &qp->sq[sh->sq_posted];
	*sqe = src;
	sqe->cdw0 = (src.cdw0 & 0xffff) | (uint32_t)cid << 16;
	if (len) {
		sqe->prp1 = iova;
		sqe->prp2 = crosses_page(iova, last_in_page(len)) ? prp2_of(qp, cid, iova, len, 0) : 0;
	}
	qp->sq_dirty = 1;
	sh->sq_posted = ring_next(qp, sh->sq_posted);
	sh->submitted++;
	qp->slot_inflight[slot]++;
	qp->inflight++;
	ring_sq(qp, 1, 1);
	udrv_qp_leave(qp);
	return 1;
}

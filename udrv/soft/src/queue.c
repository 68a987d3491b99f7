// SPDX-License-Identifier: Apache-2.0
/*
 * Queues: doorbells in, commands fetched, completions posted (NVMe 1.4, 4.1 and 7.2).
 *
 * Ordering with the host, which runs in another process on the same memory:
 * - its stores to a submission queue entry come before its store to the tail doorbell (release),
 *   be it the register or its shadow; bell.c loads that with acquire before we read the entry;
 * - our stores to a completion come before the store of its last word, which has the phase
 *   (release); the host loads that word with acquire before it reads the rest;
 * - its loads of a completion come before its store to the head doorbell (release); bell.c
 *   loads that with acquire before we write the entry again.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

/* Commands taken from one queue before the next queue's turn. */
#define BURST 16u

/* A value that is out of range is reported once and otherwise ignored: 7.2.3, 5.2.1. */
static bool look_at_sq(struct udrv_soft *c, struct soft_sq *sq)
{
	uint32_t value;

	if (!soft_bell_moved(c, &sq->bell, 2u * sq->qid, sq->size, &value))
		return false;
	if (value >= sq->size)
		soft_bad_doorbell(c);
	else
		sq->tail = value;
	return true;
}

static bool look_at_cq(struct udrv_soft *c, struct soft_cq *cq)
{
	uint32_t value, taken, outstanding;

	if (!soft_bell_moved(c, &cq->bell, 2u * cq->qid + 1, cq->size, &value))
		return false;
	if (value >= cq->size) {
		soft_bad_doorbell(c);
		return true;
	}
	taken = value >= cq->head ? value - cq->head : value + cq->size - cq->head;
	outstanding = cq->size - 1 - cq->free;
	if (taken > outstanding) {
		/* The host claims to have taken what was never posted. */
		soft_bad_doorbell(c);
		return true;
	}
	cq->head = value;
	cq->free += taken;
	return true;
}

/* --- completing ---------------------------------------------------------------------------- */

static inline void put(struct udrv_soft *c, struct soft_cq *cq, uint32_t sq, uint16_t cid,
		       uint16_t status, uint32_t result, bool phase, bool signal)
{
	uint64_t iova = cq->iova + (uint64_t)cq->tail * NV_CQE_SIZE;
	struct nv_cqe *cqe = dma_at(&c->dma, &cq->ref, iova, NV_CQE_SIZE, DMA_WRITE);
	uint32_t last = (uint32_t)status << 17 | (uint32_t)phase << 16 | cid;

	if (!cqe) {
		/* A completion that cannot be delivered: the host would wait for ever. */
		soft_fatal(c);
		return;
	}
	cqe->result = result;
	cqe->reserved = 0;
	cqe->sq = sq;
	/* release: pairs with the host's acquire load of the phase; it publishes the above */
	__atomic_store_n(&cqe->status, last, __ATOMIC_RELEASE);

	cq->free--;
	cq->posted++;
	cq->unsignalled |= signal;
	if (++cq->tail == cq->size) {
		cq->tail = 0;
		cq->phase = !cq->phase;
	}
}

static void post(struct udrv_soft *c, struct soft_cq *cq, const struct soft_sq *sq, uint16_t cid,
		 uint16_t status, uint32_t result)
{
	put(c, cq, (uint32_t)sq->qid << 16 | sq->head, cid, status, result, cq->phase, true);
}

void soft_post(struct udrv_soft *c, struct soft_cq *cq, uint32_t sq, uint16_t cid,
	       uint16_t status, uint32_t result, bool wrong_phase, bool silent)
{
	put(c, cq, sq, cid, status, result, cq->phase != wrong_phase, !silent);
}

bool soft_complete_admin(struct udrv_soft *c, uint16_t cid, uint16_t status, uint32_t result)
{
	if (!soft_cq_room(&c->cq[0]))
		return false;
	post(c, &c->cq[0], &c->sq[0], cid, status, result);
	return true;
}

/* One signal for all that a pass posted, not one each: completions stand in memory anyway. */
static void signal_cqs(struct udrv_soft *c)
{
	for (uint32_t i = 0; i < c->nr_cqs; i++) {
		struct soft_cq *cq = &c->cq[c->cqs[i]];

		if (!cq->unsignalled)
			continue;
		cq->unsignalled = false;
		if (cq->interrupts && soft_irq_raise(c, cq->vector))
			c->counters->queue[cq->qid].interrupts++;
	}
}

/* --- fetching ------------------------------------------------------------------------------ */

uint16_t soft_execute(struct udrv_soft *c, uint16_t sqid, const struct nv_sqe *cmd,
		      uint32_t *result)
{
	uint16_t status = sqid ? soft_io(c, cmd) : soft_admin(c, cmd, result);

	/* The client cut its file under the command: what was moved is not what was asked for. */
	if (dma_lost()) {
		dma_drop_lost(&c->dma);
		if (!status)
			status = NV_DATA_TRANSFER;
	}
	return status;
}

uint16_t soft_note_status(struct udrv_soft *c, uint16_t sqid, const struct nv_sqe *cmd,
			  uint16_t status)
{
	if (!status)
		return status;
	c->counters->queue[sqid].errors++;
	status |= NV_MORE;
	soft_log_error(c, cmd, sqid, status);
	return status;
}

static void execute(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
		    const struct nv_sqe *cmd)
{
	uint32_t result = 0;
	uint16_t status;

	c->counters->queue[sq->qid].commands++;
	status = soft_execute(c, sq->qid, cmd, &result);
	if (status == NV_NO_COMPLETION)
		return;
	status = soft_note_status(c, sq->qid, cmd, status);
	post(c, cq, sq, cmd->cid, status, result);
}

/* Nothing is fetched that could not be completed: 4.1.2. */
static void stall(struct udrv_soft *c, struct soft_sq *sq)
{
	c->counters->queue[sq->cqid].cq_full += !sq->stalled;
	sq->stalled = true;
}

/* Copy the entry at the head. Return: whether it could be read. */
static bool fetch(struct udrv_soft *c, struct soft_sq *sq, struct nv_sqe *cmd)
{
	uint64_t iova = sq->iova + (uint64_t)sq->head * NV_SQE_SIZE;
	const void *entry = dma_at(&c->dma, &sq->ref, iova, NV_SQE_SIZE, DMA_READ);

	if (entry) {
		memcpy(cmd, entry, sizeof(*cmd));
		/*
		 * Once: what is checked is what is executed. Without this the compiler may take a
		 * field from the host's memory again, instead of from the copy.
		 */
		atomic_signal_fence(memory_order_seq_cst);
	}
	/* Zeroes in place of memory that was cut are no command; loop.c sees to the rest. */
	if (!entry || dma_lost()) {
		soft_fatal(c);
		return false;
	}
	return true;
}

static bool serve(struct udrv_soft *c, struct soft_sq *sq)
{
	struct soft_cq *cq = &c->cq[sq->cqid];
	uint32_t n;

	for (n = 0; n < BURST && sq->head != sq->tail && c->running; n++) {
		uint32_t next = sq->head + 1 == sq->size ? 0 : sq->head + 1;
		enum soft_fused fused = SOFT_NOT_FUSED;
		struct nv_sqe cmd;

		if ((!sq->fused && !soft_cq_room(cq)) ||
		    (c->injecting && c->inject->late.nr == LATE_MAX)) {
			stall(c, sq);
			break;
		}
		if (!fetch(c, sq, &cmd))
			break;
		if (cmd.flags & NV_FLAGS_FUSE || sq->fused)
			fused = soft_fused(c, sq, cq, &cmd, next);
		if (fused == SOFT_FUSED_LATER) {
			stall(c, sq);
			break;
		}
		sq->stalled = false;
		if (fused == SOFT_FUSED_TAKEN)
			continue;
		sq->head = next;
		if (!c->injecting)
			execute(c, sq, cq, &cmd);
		else
			soft_fault_command(c, sq, cq, &cmd);
	}
	return n != 0;
}

bool soft_queues_pass(struct udrv_soft *c)
{
	bool work = false;

	for (uint32_t i = 0; i < c->nr_cqs; i++)
		work |= look_at_cq(c, &c->cq[c->cqs[i]]);
	soft_events_deliver(c);
	if (c->injecting)
		work |= soft_fault_pass(c);
	/*
	 * Round robin: the same burst for every queue in every pass. An admin command may delete
	 * queues, which moves the list under the loop; a queue that is skipped by that has its turn
	 * in the next pass.
	 */
	for (uint32_t i = 0; i < c->nr_sqs && c->running; i++) {
		struct soft_sq *sq = &c->sq[c->sqs[i]];

		work |= look_at_sq(c, sq);
		if (sq->head != sq->tail)
			work |= serve(c, sq);
	}
	signal_cqs(c);
	return work;
}

/* --- made and deleted ---------------------------------------------------------------------- */

static void list_add(uint16_t *list, uint32_t *nr, uint16_t qid)
{
	list[(*nr)++] = qid;
}

static void list_del(uint16_t *list, uint32_t *nr, uint16_t qid)
{
	uint32_t i = 0;

	while (i < *nr && list[i] != qid)
		i++;
	if (i == *nr)
		return;
	(*nr)--;
	memmove(&list[i], &list[i + 1], (*nr - i) * sizeof(list[0]));
}

static void start_sq(struct udrv_soft *c, uint16_t qid, uint16_t cqid, uint32_t size,
		     uint64_t iova)
{
	c->sq[qid] = (struct soft_sq){ .live = true, .qid = qid, .cqid = cqid, .size = size,
				       .iova = iova };
	soft_bell_start(c, &c->sq[qid].bell, 2u * qid);
	c->cq[cqid].nr_sqs++;
	list_add(c->sqs, &c->nr_sqs, qid);
}

static void start_cq(struct udrv_soft *c, uint16_t qid, uint32_t size, uint64_t iova,
		     bool interrupts, uint16_t vector)
{
	c->cq[qid] = (struct soft_cq){ .live = true, .phase = true, .interrupts = interrupts,
				       .qid = qid, .vector = vector, .size = size,
				       .epoch = c->cq_epoch[qid]++, .free = size - 1,
				       .iova = iova };
	soft_bell_start(c, &c->cq[qid].bell, 2u * qid + 1);
	list_add(c->cqs, &c->nr_cqs, qid);
}

void soft_queues_start_admin(struct udrv_soft *c)
{
	start_cq(c, 0, (c->aqa >> 16 & 0xfff) + 1, c->acq, true, 0);
	start_sq(c, 0, 0, (c->aqa & 0xfff) + 1, c->asq);
}

void soft_queues_clear(struct udrv_soft *c)
{
	if (c->injecting)
		soft_fault_queues_gone(c);
	memset(c->sq, 0, sizeof(c->sq));
	memset(c->cq, 0, sizeof(c->cq));
	c->nr_sqs = 0;
	c->nr_cqs = 0;
}

/* What Create I/O Submission and Completion Queue have in common: 5.3 and 5.4. */
static uint16_t check_create(struct udrv_soft *c, const struct nv_sqe *cmd, bool in_use,
			     uint32_t entry_size_log2)
{
	uint32_t qid = cmd->cdw10 & 0xffff, size = (cmd->cdw10 >> 16) + 1;

	if (qid < 1 || qid > c->allocated_queues || in_use)
		return NV_QID_INVALID;
	if (size < 2 || size > c->cfg.entries || !entry_size_log2)
		return NV_QSIZE_INVALID;
	if (!(cmd->cdw11 & 1))
		return NV_INVALID_FIELD; /* CAP.CQR: physically contiguous queues only */
	if (cmd->prp1 % NV_PAGE_SIZE)
		return NV_PRP_OFFSET;
	return NV_OK;
}

/* Every page of it must be there: better to hear it now than as a fatal status later. */
static bool memory_mapped(struct udrv_soft *c, uint64_t iova, uint64_t size, uint32_t rights)
{
	struct dma_ref ref = { 0 };

	for (uint64_t done = 0; done < size; done += NV_PAGE_SIZE) {
		uint64_t left = size - done;
		uint32_t part = left < NV_PAGE_SIZE ? (uint32_t)left : NV_PAGE_SIZE;

		if (!dma_at(&c->dma, &ref, iova + done, part, rights))
			return false;
	}
	return true;
}

uint16_t soft_create_sq(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint16_t qid = (uint16_t)cmd->cdw10, cqid = (uint16_t)(cmd->cdw11 >> 16);
	uint32_t size = (cmd->cdw10 >> 16) + 1;
	bool in_use = qid <= MAX_QID && c->sq[qid].live;
	uint16_t status = check_create(c, cmd, in_use, NV_CC_IOSQES(c->cc));

	if (status)
		return status;
	if (cqid > c->allocated_queues)
		return NV_QID_INVALID;
	if (cqid == 0 || !c->cq[cqid].live)
		return NV_CQ_INVALID;
	if (!memory_mapped(c, cmd->prp1, (uint64_t)size * NV_SQE_SIZE, DMA_READ))
		return NV_DATA_TRANSFER;
	start_sq(c, qid, cqid, size, cmd->prp1);
	return NV_OK;
}

uint16_t soft_create_cq(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint16_t qid = (uint16_t)cmd->cdw10, vector = (uint16_t)(cmd->cdw11 >> 16);
	uint32_t size = (cmd->cdw10 >> 16) + 1;
	bool in_use = qid <= MAX_QID && c->cq[qid].live;
	uint16_t status = check_create(c, cmd, in_use, NV_CC_IOCQES(c->cc));

	if (status)
		return status;
	if (vector >= c->nr_vectors)
		return NV_VECTOR_INVALID;
	if (!memory_mapped(c, cmd->prp1, (uint64_t)size * NV_CQE_SIZE, DMA_WRITE))
		return NV_DATA_TRANSFER;
	start_cq(c, qid, size, cmd->prp1, cmd->cdw11 & 2, vector);
	return NV_OK;
}

uint16_t soft_delete_sq(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint16_t qid = (uint16_t)cmd->cdw10;

	if (qid == 0 || qid > MAX_QID || !c->sq[qid].live)
		return NV_QID_INVALID;
	/* Commands are executed as they are fetched, so none is outstanding unless it was delayed. */
	if (c->injecting)
		soft_fault_sq_gone(c, qid);
	if (c->sq[qid].fused) /* the host takes it for aborted: 3.3.1.3 */
		c->cq[c->sq[qid].cqid].reserved -= SOFT_FUSED_PLACES;
	c->cq[c->sq[qid].cqid].nr_sqs--;
	memset(&c->sq[qid], 0, sizeof(c->sq[qid]));
	list_del(c->sqs, &c->nr_sqs, qid);
	return NV_OK;
}

uint16_t soft_delete_cq(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint16_t qid = (uint16_t)cmd->cdw10;

	if (qid == 0 || qid > MAX_QID || !c->cq[qid].live)
		return NV_QID_INVALID;
	if (c->cq[qid].nr_sqs)
		return NV_QUEUE_DELETION;
	memset(&c->cq[qid], 0, sizeof(c->cq[qid]));
	list_del(c->cqs, &c->nr_cqs, qid);
	return NV_OK;
}

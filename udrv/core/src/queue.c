// SPDX-License-Identifier: Apache-2.0
/* queue.c - a queue pair of qp.h behind the functions of queue.h. */
#include <udrv/queue.h>
#include <udrv/wait.h>

static int enter(void *queue)
{
	return udrv_qp_enter(queue);
}

static void leave(void *queue)
{
	udrv_qp_leave(queue);
}

static int submit(void *queue, const struct udrv_batch *batch, uint32_t first, uint32_t count,
		  uint32_t *bad)
{
	return __udrv_qp_submit(queue, batch, first, count, bad);
}

static int reap(void *queue, const struct udrv_completions *out, uint32_t first, uint32_t max)
{
	return __udrv_qp_reap(queue, out, first, max);
}

static int wait(void *queue, const struct udrv_completions *out, uint32_t min, uint32_t max,
		uint64_t timeout_ns, uint64_t spin_ns)
{
	return __udrv_qp_wait(queue, out, min, max, timeout_ns, spin_ns);
}

static int quarantine(void *queue, uint32_t slot)
{
	return __udrv_qp_quarantine(queue, slot);
}

static void ring(void *queue)
{
	__udrv_qp_ring(queue);
}

static uint32_t room(const void *queue)
{
	return ((const struct udrv_qp *)queue)->shared->nr_free;
}

static void cost(const void *queue, struct udrv_queue_cost *cost)
{
	const struct udrv_qp_shared *sh = ((const struct udrv_qp *)queue)->shared;

	cost->sq_doorbells = sh->sq_doorbells;
	cost->cq_doorbells = sh->cq_doorbells;
	cost->system_calls = 0;
}

static const struct udrv_queue_ops ops = {
	.enter = enter,
	.leave = leave,
	.submit = submit,
	.reap = reap,
	.wait = wait,
	.quarantine = quarantine,
	.ring = ring,
	.room = room,
	.cost = cost,
};

void udrv_qp_as_queue(struct udrv_qp *qp, struct udrv_queue *queue)
{
	queue->ops = &ops;
	queue->handle = qp;
}

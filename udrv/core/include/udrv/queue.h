/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.h - a queue of any transport, for loops in C that serve all of them (the load generator).
 *
 * The functions are those of qp.h under other names; what is said there holds here. `submit`,
 * `reap`, `wait`, `quarantine` and `ring` are the unlocked ones: between a successful `enter` and
 * `leave` only.
 */
#ifndef UDRV_QUEUE_H
#define UDRV_QUEUE_H

#include <udrv/qp.h>

/* What a queue has cost since it was made, in what its transport pays with. */
struct udrv_queue_cost {
	uint64_t sq_doorbells;
	uint64_t cq_doorbells;
	uint64_t system_calls;	/* of submitting and waiting */
};

struct udrv_queue_ops {
	int (*enter)(void *queue);
	void (*leave)(void *queue);
	int (*submit)(void *queue, const struct udrv_batch *batch, uint32_t first, uint32_t count,
		      uint32_t *bad);
	int (*reap)(void *queue, const struct udrv_completions *out, uint32_t first, uint32_t max);
	int (*wait)(void *queue, const struct udrv_completions *out, uint32_t min, uint32_t max,
		    uint64_t timeout_ns, uint64_t spin_ns);
	int (*quarantine)(void *queue, uint32_t slot);	/* as udrv_qp_quarantine() */
	void (*ring)(void *queue);	/* as udrv_qp_ring(); NULL: there is nothing to ring */
	uint32_t (*room)(const void *queue);	/* commands that can be submitted now */
	void (*cost)(const void *queue, struct udrv_queue_cost *cost);
};

struct udrv_queue {
	const struct udrv_queue_ops *ops;
	void *handle;
};

/* Show a queue pair of qp.h as a queue. */
void udrv_qp_as_queue(struct udrv_qp *qp, struct udrv_queue *queue);

#endif /* UDRV_QUEUE_H */

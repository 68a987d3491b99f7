// SPDX-License-Identifier: Apache-2.0
/* lane.c - one command in one call. The state of a lane is changed inside of its queue only. */
#include <pthread.h>
#include <string.h>

#include <udrv/lane.h>

void udrv_lane_init(struct udrv_lane *l, const struct udrv_queue *queue, uint16_t slot,
		    uint64_t spin_ns, uint64_t slice_ns)
{
	memset(l, 0, sizeof(*l));
	l->queue = *queue;
	l->batch.slot = slot;
	l->out.capacity = 1;
	l->out.rows = &l->done;
	l->spin_ns = spin_ns;
	l->slice_ns = slice_ns;
}

/* Wait for the command of this lane, inside of its queue, and leave it unless it is pending. */
static int finish(struct udrv_lane *l)
{
	int ret;

	do
		ret = l->queue.ops->wait(l->queue.handle, &l->out, 1, 1, l->slice_ns, l->spin_ns);
	while (ret == 1 && l->done.user_data != l->serial);	/* of one that was given up */
	if (unlikely(ret != 1)) {	/* too slow, closed, or no wait: it may be in flight */
		__atomic_store_n(&l->holder, (uint64_t)pthread_self(), __ATOMIC_RELAXED);
		return ret ? ret : -UDRV_EAGAIN;
	}
	ret = l->done.status;
	__atomic_store_n(&l->holder, 0, __ATOMIC_RELAXED);
	l->queue.ops->leave(l->queue.handle);
	return ret;
}

int udrv_lane_run(struct udrv_lane *l, const struct udrv_batch *target, uint32_t opcode,
		  uint64_t slba, uint32_t nlb)
{
	uint32_t bad;
	uint16_t slot;
	int ret = l->queue.ops->enter(l->queue.handle);

	if (unlikely(ret))
		return ret;
	if (unlikely(l->lent)) {
		l->queue.ops->leave(l->queue.handle);
		return -UDRV_EBUSY;
	}
	l->command = (struct udrv_command){
		.slba = slba,
		.user_data = ++l->serial,
		.nlb = nlb,
		.control = (uint16_t)(opcode >> 16),
		.opcode = (uint8_t)opcode,
	};
	slot = l->batch.slot;
	l->batch = *target;
	l->batch.capacity = 1;
	l->batch.commands = &l->command;
	l->batch.slot = slot;
	ret = l->queue.ops->submit(l->queue.handle, &l->batch, 0, 1, &bad);
	if (unlikely(ret != 1)) {
		l->queue.ops->leave(l->queue.handle);
		return ret < 0 ? ret : -UDRV_EFULL;
	}
	return finish(l);
}

static int held_by_me(const struct udrv_lane *l)
{
	/* relaxed: only the thread itself can have stored its own name */
	return __atomic_load_n(&l->holder, __ATOMIC_RELAXED) == (uint64_t)pthread_self();
}

int udrv_lane_wait(struct udrv_lane *l)
{
	return held_by_me(l) ? finish(l) : -UDRV_EBUSY;
}

int udrv_lane_give_up(struct udrv_lane *l, uint16_t slot)
{
	int old = l->batch.slot;

	if (!held_by_me(l))
		return -UDRV_EBUSY;
	l->batch.slot = slot;
	__atomic_store_n(&l->holder, 0, __ATOMIC_RELAXED);
	l->queue.ops->leave(l->queue.handle);
	return old;
}

int udrv_lane_lend(struct udrv_lane *l, int lent)
{
	int ret = l->queue.ops->enter(l->queue.handle);

	if (ret)
		return ret;
	l->lent = !!lent;
	l->queue.ops->leave(l->queue.handle);
	return 0;
}

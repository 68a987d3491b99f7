// SPDX-License-Identifier: Apache-2.0
/*
 * lane.c - one command in one call. Who may be inside is settled by its state, and then by the
 * queue's own exchange.
 */
#include <pthread.h>
#include <string.h>

#include <udrv/lane.h>

/* Where user_data of lanes begins: batches count from 0, and one that was left must not match. */
#define FIRST_SERIAL (1ull << 63)

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
	l->serial = FIRST_SERIAL;
	l->fork_generation = udrv_fork_generation;
}

static int take(struct udrv_lane *l)
{
	uint32_t expected = UDRV_LANE_FREE;

	/* acquire: pairs with the release in leave() of the one before */
	return __atomic_compare_exchange_n(&l->state, &expected, UDRV_LANE_RUNNING, 0,
					   __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void leave(struct udrv_lane *l)
{
	__atomic_store_n(&l->holder, 0, __ATOMIC_RELAXED);
	l->queue.ops->leave(l->queue.handle);
	/* release: all of this call before the next one's acquire */
	__atomic_store_n(&l->state, UDRV_LANE_FREE, __ATOMIC_RELEASE);
}

/* Wait for the command of this lane, inside of its queue, and leave it unless it is pending. */
static int finish(struct udrv_lane *l)
{
	int ret;

	do
		ret = l->queue.ops->wait(l->queue.handle, &l->out, 1, 1, l->slice_ns, l->spin_ns);
	while (ret == 1 && l->done.user_data != l->serial);	/* of one that was given up */
	if (unlikely(ret != 1)) {	/* too slow, closed, or no wait: it may be in flight */
		if (ret == -UDRV_EHALTED) {	/* whoever resets the controller waits for us */
			l->parked = 1;
			l->queue.ops->leave(l->queue.handle);
		}
		__atomic_store_n(&l->holder, (uint64_t)pthread_self(), __ATOMIC_RELAXED);
		return ret ? ret : -UDRV_EAGAIN;
	}
	ret = l->done.status;
	leave(l);
	return ret;
}

int udrv_lane_run(struct udrv_lane *l, const struct udrv_batch *target, uint32_t opcode,
		  uint64_t slba, uint32_t nlb)
{
	uint32_t bad;
	uint16_t slot;
	int ret;

	if (unlikely(!take(l)))
		return -UDRV_EBUSY;
	ret = l->queue.ops->enter(l->queue.handle);
	if (unlikely(ret)) {
		__atomic_store_n(&l->state, UDRV_LANE_FREE, __ATOMIC_RELEASE);
		return ret;
	}
	l->command = (struct udrv_command){
		.slba = slba,
		.user_data = ++l->serial,
		.nlb = nlb,
		.control = (uint16_t)(opcode >> 16),
		.opcode = (uint8_t)opcode,
	};
	slot = l->batch.slot;
	l->target = target;
	l->batch = *target;
	l->batch.capacity = 1;
	l->batch.commands = &l->command;
	l->batch.slot = slot;
	ret = l->queue.ops->submit(l->queue.handle, &l->batch, 0, 1, &bad);
	if (unlikely(ret != 1)) {
		leave(l);
		return ret < 0 ? ret : -UDRV_EFULL;
	}
	return finish(l);
}

int udrv_lane_held(const struct udrv_lane *l, const struct udrv_batch *target)
{
	/* relaxed: only the thread itself can have stored its own name, and `target` before it */
	return __atomic_load_n(&l->holder, __ATOMIC_RELAXED) == (uint64_t)pthread_self() &&
	       l->target == target && l->fork_generation == udrv_fork_generation;
}

/* Take the queue again after a reset. */
static int unpark(struct udrv_lane *l)
{
	int ret = l->parked ? l->queue.ops->enter(l->queue.handle) : 0;

	if (!ret)
		l->parked = 0;
	return ret;
}

int udrv_lane_wait(struct udrv_lane *l, const struct udrv_batch *target)
{
	int ret;

	if (unlikely(l->fork_generation != udrv_fork_generation))
		return -UDRV_EFORKED;
	if (!udrv_lane_held(l, target))
		return -UDRV_EBUSY;
	ret = unpark(l);
	return ret ? ret : finish(l);
}

int udrv_lane_give_up(struct udrv_lane *l, const struct udrv_batch *target, uint16_t slot)
{
	int ret, old = l->batch.slot;

	if (unlikely(l->fork_generation != udrv_fork_generation))
		return -UDRV_EFORKED;
	if (!udrv_lane_held(l, target))
		return -UDRV_EBUSY;
	ret = unpark(l);
	l->batch.slot = slot;
	if (ret) {
		/*
		 * Closed meanwhile: nobody will be told of anything. Or halted, maybe for good: if a reset
		 * delivers the command yet, finish() knows it by its serial number, as do borrowers.
		 */
		l->parked = 0;
		__atomic_store_n(&l->holder, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&l->state, UDRV_LANE_FREE, __ATOMIC_RELEASE);
		return old;
	}
	/* inside still: nobody may be told of its completion, not even whoever comes next */
	l->queue.ops->quarantine(l->queue.handle, (uint32_t)old);
	leave(l);
	return old;
}

int udrv_lane_lend(struct udrv_lane *l, int lent)
{
	uint32_t expected = UDRV_LANE_FREE;
	int ret;

	if (!lent) {
		expected = UDRV_LANE_LENT;
		/* release: what the borrower did before the next call's acquire */
		__atomic_compare_exchange_n(&l->state, &expected, UDRV_LANE_FREE, 0,
					    __ATOMIC_RELEASE, __ATOMIC_RELAXED);
		return 0;
	}
	/* acquire: as take() */
	if (!__atomic_compare_exchange_n(&l->state, &expected, UDRV_LANE_LENT, 0, __ATOMIC_ACQUIRE,
					 __ATOMIC_RELAXED) && expected != UDRV_LANE_LENT)
		return -UDRV_EBUSY;
	ret = l->queue.ops->enter(l->queue.handle);
	if (ret)
		__atomic_store_n(&l->state, UDRV_LANE_FREE, __ATOMIC_RELEASE);
	else
		l->queue.ops->leave(l->queue.handle);
	return ret;
}

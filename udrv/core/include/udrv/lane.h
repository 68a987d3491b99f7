/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.h - one command at a time on a queue, in one call: submit, wait, reap.
 *
 * What a blocking read from Python costs is mostly Python, so all that does not change from call to
 * call lies ready: the queue, its slot, the row of the completion. Works on any transport's queue.
 *
 * A lane is free, running (a thread is inside of a call), pending (its command takes long: the
 * call was left with -UDRV_EAGAIN, keeps the queue, and comes back) or lent (its queue is used by
 * other calls meanwhile). Nobody waits here for another thread: the answer is -UDRV_EBUSY.
 *
 * A pending lane belongs to one call: a thread and a target. The thread alone would not do: a
 * signal handler or a finaliser that runs on it may call, too.
 */
#ifndef UDRV_LANE_H
#define UDRV_LANE_H

#include <udrv/queue.h>

enum udrv_lane_state {
	UDRV_LANE_FREE = 0,
	UDRV_LANE_RUNNING,	/* or pending */
	UDRV_LANE_LENT,
};

struct udrv_lane {
	struct udrv_queue queue;
	struct udrv_batch batch;
	struct udrv_command command;
	struct udrv_completions out;
	struct udrv_completion done;
	uint64_t spin_ns;	/* of each wait, as in wait.h */
	uint64_t slice_ns;	/* the longest wait of one call */
	uint64_t serial;
	uint64_t holder;	/* pthread_self() of the thread that left it pending, or 0 */
	const struct udrv_batch *target;	/* of the last command */
	/*
	 * Not by the queue's own exchange: a look at whether a lane is lent would keep its borrower
	 * out for that moment.
	 */
	uint32_t state;		/* enum udrv_lane_state */
	uint32_t fork_generation;
	uint32_t parked;	/* pending, and outside of the queue while its controller is reset */
	uint32_t __reserved;
};

/* Make a lane of a queue and a slot of it. `slot` may be changed while the lane is lent or held. */
void udrv_lane_init(struct udrv_lane *lane, const struct udrv_queue *queue, uint16_t slot,
		    uint64_t spin_ns, uint64_t slice_ns);

/*
 * Run one command: `opcode` with CDW12 31:16 in its bits 31:16, `nlb` blocks from `slba`, data from
 * the buffer's first byte on. Namespace and buffer are those of `target`; its rows and slot are not
 * used.
 * Return: the status of its completion (0 is success; `done` is the rest of it); -UDRV_E*, after
 * which the lane is pending if udrv_lane_held(), and nothing is in flight if not. -UDRV_EAGAIN is
 * pending: call udrv_lane_wait(), or give up; likewise -UDRV_EHALTED, once the reset of the
 * controller is over. -UDRV_EBUSY is not.
 */
int udrv_lane_run(struct udrv_lane *lane, const struct udrv_batch *target, uint32_t opcode,
		  uint64_t slba, uint32_t nlb);

/* Whether a command of this thread with this target is pending; never in a forked child. */
int udrv_lane_held(const struct udrv_lane *lane, const struct udrv_batch *target);

/* Wait on, by the call that holds it. Return: as udrv_lane_run(). */
int udrv_lane_wait(struct udrv_lane *lane, const struct udrv_batch *target);

/*
 * Let go of a pending lane, by the call that holds it, with the command in flight: it is put into
 * quarantine, and `slot` is for the next one. While the pair is halted it stays as it is: a reset that
 * succeeds delivers it to whoever reaps next, which a lane passes over. Return: the old slot, or -UDRV_E*.
 */
int udrv_lane_give_up(struct udrv_lane *lane, const struct udrv_batch *target, uint16_t slot);

/*
 * Lend the queue out (1) or take it back (0); both can be repeated. To take back what is not lent
 * does nothing. Return: 0, or -UDRV_E* (-UDRV_EBUSY: a call is inside).
 */
int udrv_lane_lend(struct udrv_lane *lane, int lent);

#endif /* UDRV_LANE_H */

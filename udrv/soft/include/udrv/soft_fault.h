/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udrv/soft_fault.h - faults that the software controller injects, and what it tells of them
 *
 * Fixed-size structures: a table of faults is handed over when a controller starts (a file) or
 * while it runs (a datagram), and is taken or refused as a whole. What is not documented to be
 * optional must be zero where it is not used.
 *
 * docs/faults.md says what each effect is to a driver.
 */
#ifndef UDRV_SOFT_FAULT_H
#define UDRV_SOFT_FAULT_H

#include <stdint.h>

#define UDRV_FAULT_MAGIC 0x746c6675u /* "uflt" */
#define UDRV_FAULT_VERSION 1u
#define UDRV_FAULT_MAX 64u /* faults that a controller holds at a time */
#define UDRV_FAULT_NAME 32u
#define UDRV_FAULT_ARGS 4u
#define UDRV_FAULT_FOREVER UINT64_MAX
#define UDRV_MODEL_MAX_DIES 256u
#define UDRV_MODEL_MAX_CHANNELS 64u

/*
 * Effects, with their arguments: u[] are integers, f[] are real numbers.
 */
enum udrv_fault_effect {
	/* protocol: what becomes of a command's completion */
	UDRV_FAULT_DROP = 1, /* none is posted */
	UDRV_FAULT_LATE = 2, /* u0 microseconds later */
	UDRV_FAULT_DUPLICATE = 3, /* once more, u0 microseconds later */
	UDRV_FAULT_WRONG_PHASE = 4, /* with the phase of the lap before */
	UDRV_FAULT_UNKNOWN_CID = 5, /* with command id u0; u1: as an extra one */
	UDRV_FAULT_WRONG_SQID = 6, /* with submission queue u0; u1: as an extra one */
	UDRV_FAULT_WRONG_SQHD = 7, /* with submission queue head u0 */
	UDRV_FAULT_SPURIOUS_INTERRUPT = 8, /* the vector is signalled before anything is posted */
	UDRV_FAULT_MISSING_INTERRUPT = 9, /* posted, and the vector is not signalled for it */
	UDRV_FAULT_DELETED_QUEUE = 10, /* held, and posted once its submission queue is deleted */
	/* the controller; u0 of the first two: 0 when a command matches, 1 when the time comes */
	UDRV_FAULT_CFS = 16, /* CSTS.CFS */
	UDRV_FAULT_ALL_ONES = 17, /* registers and configuration space; u1 microseconds, 0: for good */
	UDRV_FAULT_NEVER_READY = 18, /* at CC.EN = 1 */
	UDRV_FAULT_SLOW_READY = 19, /* CSTS.RDY = 1 after u0 microseconds */
	UDRV_FAULT_SLOW_RESET = 20, /* CSTS.RDY = 0 after u0 microseconds */
	UDRV_FAULT_SHUTDOWN_HANG = 21, /* CSTS.SHST stays "occurring" */
	/* asynchronous event of type u0, information u1, log page u2, though masked */
	UDRV_FAULT_EVENT_STORM = 22,
	/* data and status */
	UDRV_FAULT_STATUS = 32, /* status field u0 (SC, SCT, DNR); u1: executed all the same */
	UDRV_FAULT_MEDIA_ERROR = 33, /* not executed; read error or write fault, counted by SMART */
	UDRV_FAULT_CORRUPT = 34, /* u0 bits of the data are flipped, and the status is success */
	UDRV_FAULT_TORN = 35, /* of a write the first u0 blocks are written; success */
	/* latency, added to what the model (or the machine) takes */
	UDRV_FAULT_FACTOR = 48, /* latency times f0; needs a model */
	UDRV_FAULT_ADD = 49, /* u0 to u0 + u1 microseconds */
	UDRV_FAULT_THROTTLE = 50, /* 1 to u1 times u0 microseconds */
	UDRV_FAULT_STALL = 51, /* until the end of the scope's present period */
	UDRV_FAULT_RETRY = 52, /* u0 microseconds, then again with probability f0, u1 times at most */
	UDRV_FAULT_BANDWIDTH = 53, /* no more than u0 KiB/s */
	UDRV_FAULT_THERMAL = 54, /* see struct udrv_fault; times f0; needs a model, as do these: */
	UDRV_FAULT_GC = 55, /* healthy: collecting garbage after writes; times f0 */
	UDRV_FAULT_SLC = 56, /* healthy: writes behind a full cache; times f0 */
};

/* udrv_fault.flags */
#define UDRV_FAULT_HEALTHY 1u /* normal for a healthy drive: a detector must not flag it */

/**
 * struct udrv_fault - one fault: where it applies, and its effect
 * @opcodes:	a bit for each opcode; all zero: any
 * @lba_first:	blocks; with a range, commands without blocks do not match
 * @lba_last:	the last one; UDRV_FAULT_FOREVER with @lba_first 0: any command
 * @start_us:	since the fault was loaded
 * @end_us:	UDRV_FAULT_FOREVER: never
 * @period_us:	from @start_us on it is active for @on_us of each period; 0: always
 * @on_us:	1 to @period_us
 * @after:	matching commands that are let through first
 * @every:	of those that follow, each n-th is taken; 1: all
 * @count:	effects, then it is spent; UDRV_FAULT_FOREVER: no limit
 * @seed:	of the probability and of what the effect draws
 * @probability: that a command which was taken has the effect, above 0 to 1
 * @queue_first: submission queue; 0 is the admin queue
 * @queue_last:	the last one
 * @nsid:	namespace; 0: any
 * @dies:	with @stripe: only blocks of one die of so many; 0: all
 * @die:	which one
 * @stripe:	blocks on a die before the next die's
 * @effect:	enum udrv_fault_effect
 * @flags:	UDRV_FAULT_HEALTHY
 * @u:		arguments; of UDRV_FAULT_THERMAL, _GC and _SLC: a bucket of KiB that the matching
 *		commands fill (GC and SLC: writes), u0 drains in a second, u1 is the level at which the
 *		effect begins and u2 the one at which it ends
 * @f:		arguments
 * @name:	UTF-8, padded with zeroes
 */
struct udrv_fault {
	uint64_t opcodes[4];
	uint64_t lba_first;
	uint64_t lba_last;
	uint64_t start_us;
	uint64_t end_us;
	uint64_t period_us;
	uint64_t on_us;
	uint64_t after;
	uint64_t every;
	uint64_t count;
	uint64_t seed;
	double probability;
	uint32_t queue_first;
	uint32_t queue_last;
	uint32_t nsid;
	uint32_t dies;
	uint32_t die;
	uint32_t stripe;
	uint32_t effect;
	uint32_t flags;
	uint64_t u[UDRV_FAULT_ARGS];
	double f[UDRV_FAULT_ARGS];
	char name[UDRV_FAULT_NAME];
};

/* udrv_fault_check() - 1 if a controller would take it (with a model, if it needs one), 0 if not */
int udrv_fault_check(const struct udrv_fault *fault);

/**
 * struct udrv_model - the latency of a healthy drive; all zeroes: as fast as the machine
 * @dies:	flash dies, which work in parallel; 0: no model
 * @channels:	which the dies share for transfers
 * @stripe:	bytes on a die before the next die's, 512 to 1 MiB
 * @read_ns:	of a die, for a stripe or a part of it
 * @program_ns:	likewise, for a write
 * @transfer_ns: of 4 KiB over a channel
 * @overhead_ns: of any command
 * @buffer_ns:	programming that a die may be behind before writes wait
 * @jitter:	of a die's times, relative: a uniform ± this, 0 to 1
 * @seed:	of the jitter
 */
struct udrv_model {
	uint32_t dies;
	uint32_t channels;
	uint32_t stripe;
	uint32_t read_ns;
	uint32_t program_ns;
	uint32_t transfer_ns;
	uint32_t overhead_ns;
	uint32_t buffer_ns;
	double jitter;
	uint64_t seed;
};

/**
 * struct udrv_fault_table - what a controller starts with, followed by @count struct udrv_fault
 */
struct udrv_fault_table {
	uint32_t magic;
	uint32_t version;
	uint32_t count;
	uint32_t reserved;
	struct udrv_model model;
};

/* --- while it runs: a datagram each way ----------------------------------------------------- */

enum udrv_control_op {
	UDRV_CONTROL_LIST = 1, /* answered by the table, with counters */
	UDRV_CONTROL_ADD = 2, /* all of them, or none; @id of the answer is the first one's id */
	UDRV_CONTROL_REPLACE = 3, /* likewise, in place of all others */
	UDRV_CONTROL_CLEAR = 4, /* the fault of this @id, or all if 0 */
	UDRV_CONTROL_SYNC = 5, /* write the ground truth to its file, up to now */
};

/**
 * struct udrv_control - a request (then faults follow) or a reply (then statuses follow)
 * @error:	of a reply: 0, or an errno: EINVAL (and @id is the index of the fault that is not
 *		valid), ENOSPC (too many), ENODATA (the effect needs a model), ENOENT (no such id)
 */
struct udrv_control {
	uint32_t magic;
	uint32_t version;
	uint32_t op;
	uint32_t count;
	uint32_t id;
	int32_t error;
};

/**
 * struct udrv_fault_status - a fault that is loaded
 * @id:		never used again for another one
 * @matched:	commands (or resets, ...) in its scope and in its time
 * @applied:	effects
 */
struct udrv_fault_status {
	uint32_t id;
	uint32_t reserved;
	uint64_t matched;
	uint64_t applied;
	struct udrv_fault fault;
};

/* --- the ground truth ------------------------------------------------------------------------ */

enum udrv_truth_kind {
	UDRV_TRUTH_COMPLETION = 1, /* of the completion (@cqid, @epoch, @nth) */
	UDRV_TRUTH_LOST = 2, /* of a command that has no completion: @sqid, @cid, @submit_ns */
	UDRV_TRUTH_CONTROLLER = 3, /* of the controller, or of an interrupt of @cqid */
};

/**
 * struct udrv_truth - one effect of one fault; the file is these, one behind the other
 * @nth:	completions posted on this completion queue before, since it was created
 * @time_ns:	CLOCK_MONOTONIC: when it was posted, lost, or happened
 * @submit_ns:	when the command was fetched; 0 if there is none
 * @onset_ns:	when the fault became active: it was loaded, its window or its period began, its
 *		bucket was full
 * @added_ns:	latency that this fault added
 * @slba:	of the command, 0 without
 * @fault:	id of the fault
 * @epoch:	how many completion queues of this id there were before
 * @effect:	enum udrv_fault_effect
 * @kind:	enum udrv_truth_kind
 * @flags:	of the fault
 */
struct udrv_truth {
	uint64_t nth;
	uint64_t time_ns;
	uint64_t submit_ns;
	uint64_t onset_ns;
	uint64_t added_ns;
	uint64_t slba;
	uint32_t fault;
	uint32_t epoch;
	uint16_t cqid;
	uint16_t sqid;
	uint16_t cid;
	uint8_t effect;
	uint8_t kind;
	uint8_t opcode;
	uint8_t flags;
	uint16_t reserved[3];
};

#endif /* UDRV_SOFT_FAULT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench.h - the load generator: one job is one thread on one queue pair.
 *
 * The caller owns all memory (job, result, scratch, verify table, DMA buffer); nothing is
 * allocated here. Offsets are drawn independently ("norandommap" in fio's words): in one pass over
 * the range some blocks are hit twice and some never, and that is what keeps the loop free of a
 * bitmap.
 *
 * Time. clat is from the doorbell write to the pass that saw the completion, as udrv_qp_reap()
 * reports it. lat is from the intended start to the end of that pass. In a closed loop (no rate)
 * the intended start is the moment before the submission call. In an open loop it is the arrival's
 * time in the schedule, however late the command was issued: a device (or a host) that stalls
 * makes every arrival behind the stall late, and each of them is counted as such. slat is how long
 * the submission call took. All commands of one doorbell share slat and the start of clat.
 */
#ifndef UDRV_BENCH_H
#define UDRV_BENCH_H

#include <udrv/hist.h>
#include <udrv/queue.h>
#include <udrv/wait.h>

enum udrv_bench_flag {
	UDRV_BENCH_RANDOM = 1,	/* else sequential, wrapping at the end of the range */
	UDRV_BENCH_VERIFY = 2,	/* writes carry the pattern, reads are checked against it */
	/*
	 * Read every unit that the verify table knows as written once, in ascending order, and
	 * check it; read_percent, the rate and max_ios are ignored. Needs UDRV_BENCH_VERIFY.
	 */
	UDRV_BENCH_READBACK = 4,
};

enum udrv_bench_process {
	UDRV_BENCH_CLOSED = 0,	/* the next command as soon as one is done */
	UDRV_BENCH_LINEAR = 1,	/* equal spacing */
	UDRV_BENCH_POISSON = 2,	/* exponential spacing, rate_iops on average */
};

/* What is wrong with a block that was read, see udrv_pattern_check(). */
enum udrv_bench_bad {
	UDRV_BENCH_GOOD = 0,
	UDRV_BENCH_BAD_MAGIC,		/* no pattern at all: never written, or not transferred */
	UDRV_BENCH_BAD_LBA,		/* another block's data: misplaced write or read */
	UDRV_BENCH_BAD_SEED,		/* written by another run */
	UDRV_BENCH_BAD_GENERATION,	/* an older write's data: stale, or a lost write */
	UDRV_BENCH_BAD_PAYLOAD,		/* header of one write, data of another, or corrupt */
};

/* Progress, for another thread to read at any time; each value is whole, the set is not. */
struct udrv_bench_live {
	uint64_t ios[2];	/* completed without error; [0] reads, [1] writes */
	uint64_t bytes[2];
	uint64_t errors;
	uint64_t inflight;
} __cacheline_aligned;

struct udrv_bench_direction {
	uint64_t ios;		/* completed without error */
	uint64_t bytes;
	uint64_t errors;
	struct udrv_hist slat;	/* nanoseconds */
	struct udrv_hist clat;
	struct udrv_hist lat;
};

struct udrv_bench_result {
	struct udrv_bench_direction dir[2];	/* [0] reads, [1] writes */
	uint64_t elapsed_ns;	/* from the start to the last completion, or to giving up */
	uint64_t issued;
	uint32_t unfinished;	/* still in flight: put the slot into quarantine */
	uint32_t timed_out;	/* nothing completed for timeout_ns */

	uint16_t first_status;	/* of the first error, as udrv_completions.status */
	uint8_t first_opcode;
	uint8_t saturated;	/* see udrv_bench_run() */
	uint32_t first_bad_kind;	/* enum udrv_bench_bad */
	uint32_t first_result;	/* Dword 0 that came with it, or an errno: UDRV_STATUS_HOST */
	uint32_t __reserved;
	uint64_t first_error_slba;

	uint64_t blocks_checked;	/* logical blocks, not units */
	uint64_t blocks_unchecked;	/* read, but not written in this run: nothing to compare */
	uint64_t verify_failures;	/* logical blocks */
	uint64_t first_bad_lba;

	uint64_t lag_max_ns;	/* open loop: issue later than intended, the worst */
	uint64_t lag_end_ns;	/* ... and when issuing ended */
	uint64_t backlog;	/* arrivals that were due and not issued when issuing ended */

	uint64_t sq_doorbells;
	uint64_t cq_doorbells;
	uint64_t system_calls;	/* of submitting and waiting, as the queue counts them */
	uint64_t polls;		/* passes over the completion queue; 0 where it slept */
	uint64_t empty_polls;

	uint64_t cpu_ns;	/* of this thread */
	uint64_t user_ns;
	uint64_t system_ns;
	uint64_t voluntary_switches;
	uint64_t involuntary_switches;
};

struct udrv_bench_job {
	struct udrv_queue queue;	/* of any transport; with free commands for iodepth */
	/*
	 * Namespace, buffer and slot of the commands; its columns are not used. The buffer holds
	 * iodepth pieces of buffer_stride bytes.
	 */
	const struct udrv_batch *base;
	void *buffer;		/* this process's address of the buffer; needed for verify only */
	void *scratch;		/* udrv_bench_scratch_size() bytes, 64-byte aligned */
	/*
	 * One element per unit, zeroed before the first run, kept for the read-back; owned by one
	 * job; of no more use after a run that left commands unfinished. NULL (reads only): any generation is accepted, so stale data is not found.
	 */
	uint32_t *verify_table;
	struct udrv_bench_live *live;
	struct udrv_bench_result *result;

	uint32_t flags;		/* enum udrv_bench_flag */
	uint32_t process;	/* enum udrv_bench_process */
	uint32_t read_percent;	/* 0 to 100; drawn anew for each command */
	uint32_t iodepth;	/* 1 to UDRV_BENCH_MAX_DEPTH, and free command ids for it */
	uint32_t unit_blocks;	/* logical blocks of one command */
	uint32_t buffer_stride;	/* bytes, at least a unit */
	uint64_t start_block;
	uint64_t units;		/* the range is units * unit_blocks */
	uint64_t seed;		/* of offsets, mix and arrivals */
	uint64_t pattern_seed;

	uint64_t runtime_ns;	/* 0: no limit of time */
	uint64_t max_ios;	/* 0: no limit of number; one of the two, or READBACK, is needed */
	uint64_t max_errors;	/* stop issuing after so many; 0: never */
	uint64_t timeout_ns;	/* give up when nothing completes for so long, > 0 */
	uint64_t spin_ns;	/* as udrv_qp_wait(): UDRV_SPIN_ONLY polls, 0 sleeps at once */
	double rate_iops;	/* of this job, reads and writes together; open loop only */

	uint32_t stop __cacheline_aligned;	/* set by any thread: issue no more, drain, return */
};

#define UDRV_BENCH_MAX_DEPTH 65534
#define UDRV_BENCH_MAX_RATE 1e9

size_t udrv_bench_scratch_size(uint32_t iodepth);

/* Zero a result and set its histograms up. udrv_bench_run() does so itself. */
void udrv_bench_result_reset(struct udrv_bench_result *result);

/*
 * Run the job to its end and drain it. Holds the queue pair throughout. Device errors and verify
 * failures do not make it fail: they are counted in the result.
 *
 * `saturated` is set when an open loop ended with a backlog of more than 16 arrivals and 1 % of
 * all that were due: the device did not keep up, and lat_ns tells more about the run's length than
 * about the device.
 *
 * Return: 0, -UDRV_EINVAL for a job that cannot be, -UDRV_EFULL if fewer than iodepth command ids
 * are free, another -UDRV_E* of the queue pair, or -errno of waiting. The result is filled in
 * either way; look at `unfinished` in either case.
 */
int udrv_bench_run(struct udrv_bench_job *job);

/*
 * The pattern of one logical block: magic, LBA, seed and generation, then words that depend on all
 * of those and on their place. `bytes` is a multiple of 8 and at least 64. A block that passes the
 * check is, to one chance in 2^64, the one that was written there, whole.
 */
void udrv_pattern_fill(void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
		       uint32_t generation);
/* Return: enum udrv_bench_bad. generation 0 accepts any. */
uint32_t udrv_pattern_check(const void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
			    uint32_t generation);

/*
 * The arrival schedule on its own, for tests: intended starts of the first n commands, in
 * nanoseconds from the start of the job.
 */
void udrv_bench_schedule(uint32_t process, double rate_iops, uint64_t seed, uint64_t *out,
			 uint32_t n);

#endif /* UDRV_BENCH_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udrv/soft_sim.h - a drive in virtual time
 *
 * The model and the faults of udrv/soft_fault.h, which the served controller has in real time,
 * under a load that is part of the configuration. No clock: the same configuration gives the same
 * completions.
 */
#ifndef UDRV_SOFT_SIM_H
#define UDRV_SOFT_SIM_H

#include <stdint.h>

#include <udrv/soft_fault.h>

#define UDRV_SIM_MAX_LOADS 16u
#define UDRV_SIM_MAX_DEPTH 1024u
#define UDRV_SIM_LATENCY_UNIT 16u /* nanoseconds */
#define UDRV_SIM_SATURATED 1u /* a record's flag: the latency is at least 2^32 - 1 units */

/**
 * struct udrv_sim_load - what the host does for a while; the loads follow each other in a circle
 * @duration_us: how long, at least 1
 * @think_us:	between a completion and the next command in its place: exponential, on average this
 * @depth:	commands in flight, up to UDRV_SIM_MAX_DEPTH; 0: nothing is done
 * @blocks:	of a command, 1 to 65535
 * @sequential:	one place after the other; 0: anywhere
 * @reads:	share of reads, 0 to 1; the rest are writes
 */
struct udrv_sim_load {
	uint64_t duration_us;
	uint64_t think_us;
	uint32_t depth;
	uint32_t blocks;
	uint32_t sequential;
	uint32_t reserved;
	double reads;
};

/**
 * struct udrv_sim_config - a drive and its load
 * @end_ns:	commands are submitted from 0 to before this
 * @timeout_us:	after which the host gives a command up that was dropped, and sends the next
 * @blocks:	of the namespace, at least those of a command
 * @seed:	of the load
 * @lba_shift:	9 or 12
 * @queues:	1 to 64; the places in flight are dealt out to them
 */
struct udrv_sim_config {
	uint64_t end_ns;
	uint64_t timeout_us;
	uint64_t blocks;
	uint64_t seed;
	uint32_t lba_shift;
	uint32_t queues;
	uint32_t nr_loads;
	uint32_t nr_faults;
	struct udrv_model model;
	struct udrv_sim_load load[UDRV_SIM_MAX_LOADS];
	struct udrv_fault fault[UDRV_FAULT_MAX];
};

/**
 * struct udrv_sim_columns - completions, in their order: arrays of @capacity
 * @latency:	in units of 16 ns
 * @nlb:	blocks
 * @depth:	commands in flight on the queue when this one was submitted, itself included
 * @status:	SC 7:0, SCT 10:8, DNR 14
 * @flags:	UDRV_SIM_SATURATED
 * @truth:	the effects of these completions, and of commands that were lost meanwhile
 */
struct udrv_sim_columns {
	uint64_t capacity;
	uint64_t truth_capacity;
	uint64_t *submit_ns;
	uint64_t *slba;
	uint32_t *latency;
	uint16_t *nlb;
	uint16_t *depth;
	uint16_t *qid;
	uint16_t *status;
	uint8_t *opcode;
	uint8_t *flags;
	uint16_t *ns_index;
	struct udrv_truth *truth;
	uint64_t nr;
	uint64_t nr_truth;
};

struct udrv_sim;

/**
 * udrv_sim_new() - make a drive
 * Return: 0, -ENOMEM, or -EINVAL if the configuration is not within its ranges.
 */
int udrv_sim_new(const struct udrv_sim_config *cfg, struct udrv_sim **sim);

/**
 * udrv_sim_run() - go on until the columns are full (one of them), or to the end
 * @out:	@nr and @nr_truth are set
 * Return: 1 if there is more, 0 if that was the end.
 */
int udrv_sim_run(struct udrv_sim *sim, struct udrv_sim_columns *out);

void udrv_sim_free(struct udrv_sim *sim);

#endif /* UDRV_SOFT_SIM_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.h - the parts of fault injection
 *
 *   fault_match.c  which faults a command meets: a pure function of fault, its state, and time
 *   model.c        how long a command takes: a pure function of model, command, and time
 *   late.c         completions that are not due yet
 *   truth.c        the log of what was injected
 *   control.c      the table while the controller runs
 *   inject.c       loading; completions that are due; the controller's own faults
 *   fault.c        what a command meets
 *
 * Nothing is allocated but when the first fault or the model is loaded. fault_match.c and model.c
 * know neither the controller nor the clock: the simulation uses them as they are.
 */
#ifndef UDRV_SOFT_SRC_FAULT_H
#define UDRV_SOFT_SRC_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include <udrv/soft_fault.h>

#define LATE_MAX 16384u
#define NOTES_MAX 6u /* effects on one command; a fault beyond that does not apply to it */
#define TRUTH_BUFFER 512u

/* --- fault_match.c --------------------------------------------------------------------------- */

enum fault_on {
	FAULT_ON_COMMAND,
	FAULT_ON_TIME,
	FAULT_ON_ENABLE,
	FAULT_ON_RESET,
	FAULT_ON_SHUTDOWN,
};

/**
 * struct fault_event - what a fault may apply to
 * @blocks:	0: a command without blocks
 * @bytes:	of its data
 */
struct fault_event {
	uint8_t on;
	uint8_t opcode;
	uint16_t sqid;
	uint32_t nsid;
	uint32_t blocks;
	uint32_t bytes;
	bool write;
	uint64_t slba;
};

/**
 * struct fault_state - a loaded fault
 * @loaded_ns:	when
 * @level:	of a bucket, bytes; @drained_ns: when it was looked at last
 * @free_ns:	of a bandwidth: when what came before is through
 * @full:	the bucket's effect is on, since @onset_ns; @onsets: how often it was
 * @full_ns:	how long it was on, the times that ended
 */
struct fault_state {
	struct udrv_fault fault;
	uint32_t id;
	uint32_t onsets;
	bool full;
	uint64_t loaded_ns;
	uint64_t matched;
	uint64_t applied;
	uint64_t onset_ns;
	uint64_t full_ns;
	uint64_t drained_ns;
	uint64_t free_ns;
	double level;
};

/* fault_random() - 64 random bits that depend on seed and index alone */
uint64_t fault_random(uint64_t seed, uint64_t index);

/* fault_fraction() - likewise, 0 to below 1 */
double fault_fraction(uint64_t seed, uint64_t index);

/* fault_valid() - whether every field is in its range */
bool fault_valid(const struct udrv_fault *f);
bool fault_needs_model(const struct udrv_fault *f);
bool fault_model_valid(const struct udrv_model *m);

/**
 * fault_selects() - whether a fault applies now
 * @onset_ns:	since when it is active
 * Counts the match; the caller counts in @s->applied what had an effect.
 */
bool fault_selects(struct fault_state *s, const struct fault_event *e, uint64_t now_ns,
		   uint64_t *onset_ns);

/* fault_due() - when a fault that waits for its time alone is due, UINT64_MAX if it is not */
uint64_t fault_due(const struct fault_state *s);

/* --- model.c --------------------------------------------------------------------------------- */

struct soft_model {
	struct udrv_model cfg;
	uint64_t commands;
	uint64_t die_free[UDRV_MODEL_MAX_DIES];
	uint64_t channel_free[UDRV_MODEL_MAX_CHANNELS];
};

/* model_latency() - nanoseconds that a command takes on a healthy drive, and note that it did */
uint64_t model_latency(struct soft_model *m, const struct fault_event *e, uint64_t at,
		       uint64_t now_ns);

/**
 * model_added() - nanoseconds that a fault adds
 * @latency_ns:	so far
 * @onset_ns:	as fault_selects() told; changed where the effect has an onset of its own
 * Return: 0 if there is no effect.
 */
uint64_t model_added(struct fault_state *s, const struct fault_event *e, uint64_t latency_ns,
		     uint64_t now_ns, uint64_t *onset_ns);

/* model_heat() - how full a bucket is; 1 is where its effect begins */
double model_heat(const struct fault_state *s, uint64_t now_ns);

/* --- late.c ---------------------------------------------------------------------------------- */

struct soft_note {
	uint32_t fault;
	uint8_t effect;
	uint8_t flags;
	uint64_t onset_ns;
	uint64_t added_ns;
};

/**
 * struct soft_late - a completion, and when it is due
 * @held:	until its submission queue is deleted, and @hold_ns longer
 * @freed:	it was deleted
 * @silent:	without an interrupt
 * @wrong_head: @head is posted in place of the queue's
 * @own_cid:	the command's, whatever @cid is posted
 * @own_sqid:	likewise
 */
struct soft_late {
	uint64_t due_ns;
	uint64_t order;
	uint64_t submit_ns;
	uint64_t slba;
	uint64_t hold_ns;
	uint32_t result;
	uint32_t epoch;
	uint16_t cqid;
	uint16_t sqid;
	uint16_t own_sqid;
	uint16_t cid;
	uint16_t own_cid;
	uint16_t status;
	uint16_t head;
	uint8_t opcode;
	bool held;
	bool freed;
	bool silent;
	bool wrong_head;
	bool wrong_phase;
	uint8_t nr_notes;
	struct soft_note notes[NOTES_MAX];
};

/* struct late_heap - the earliest first; of equals, the one that came first */
struct late_heap {
	uint32_t nr;
	uint64_t order;
	struct soft_late *at;
};

void late_push(struct late_heap *h, struct soft_late *late);
void late_pop(struct late_heap *h, struct soft_late *late);

/* late_renew() - make it a heap again, after due times were changed */
void late_renew(struct late_heap *h);

/* --- truth.c --------------------------------------------------------------------------------- */

struct truth_log {
	int fd;
	uint32_t nr;
	struct udrv_truth buffer[TRUTH_BUFFER];
};

void truth_add(struct truth_log *log, const struct udrv_truth *entry);
void truth_flush(struct truth_log *log);

/* --- fault.c, inject.c, control.c ---------------------------------------------------------------------- */

struct udrv_soft;
struct soft_sq;
struct soft_cq;
struct nv_sqe;
struct iovec;

/**
 * struct soft_inject - all of it, for one controller
 * @removed:	registers read all ones, until @back_ns
 * @ready_ns:	CSTS.RDY does not follow CC.EN before; 0: it has
 * @tear:	blocks that the write at hand may write, or UINT32_MAX
 */
struct soft_inject {
	uint32_t nr;
	uint32_t next_id;
	bool removed;
	uint32_t tear;
	uint32_t csts; /* or-ed to CSTS until @ready_ns */
	uint64_t back_ns;
	uint64_t ready_ns;
	struct soft_model model;
	struct late_heap late;
	struct truth_log truth;
	struct fault_state fault[UDRV_FAULT_MAX];
};

/**
 * soft_inject_open() - load what cfg.faults_fd holds
 * Return: 0 or a negative errno: -EINVAL if it is no valid table.
 */
int soft_inject_open(struct udrv_soft *c);
void soft_inject_close(struct udrv_soft *c);

/* soft_inject_load() - take over faults, all or none. Return: 0 or a negative errno. */
int soft_inject_load(struct udrv_soft *c, const struct udrv_fault *faults, uint32_t nr,
		     bool replace, uint32_t *bad);
int soft_inject_unload(struct udrv_soft *c, uint32_t id);

/* The hooks below are called only while c->injecting. */

void soft_fault_command(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
			const struct nv_sqe *cmd);

/* soft_fault_pass() - post what is due. Return: whether there was anything. */
bool soft_fault_pass(struct udrv_soft *c);

/* soft_fault_patience() - bound a sleep of @wait_ns (-1: for ever) by what is due next */
int64_t soft_fault_patience(struct udrv_soft *c, int64_t wait_ns);

/* soft_fault_sq_gone() - a submission queue was deleted */
void soft_fault_sq_gone(struct udrv_soft *c, uint16_t sqid);

/* soft_fault_queues_gone() - all queues are gone: a reset */
void soft_fault_queues_gone(struct udrv_soft *c);

/* soft_fault_registers() - before a read of registers. Return: whether they read all ones. */
bool soft_fault_registers(struct udrv_soft *c);

/* soft_fault_enable() - at CC.EN = 1. Return: whether the controller is not to become ready now. */
bool soft_fault_enable(struct udrv_soft *c);
void soft_fault_reset(struct udrv_soft *c);

/* soft_fault_shutdown() - Return: whether it does not end. */
bool soft_fault_shutdown(struct udrv_soft *c);

/**
 * soft_fault_abort() - end a command early whose completion is not due
 * Return: false if it is none.
 */
bool soft_fault_abort(struct udrv_soft *c, uint16_t sqid, uint16_t cid);

/* soft_fault_soon() - whether a completion is due so soon that the CPU is not to be given away */
bool soft_fault_soon(const struct udrv_soft *c, uint64_t now_ns);

/**
 * soft_fault_heat() - what thermal faults make of the drive
 * @onsets:	how often throttling began
 * @seconds:	how long it lasted, the times that ended
 * Return: kelvins above the temperature of an idle drive.
 */
uint32_t soft_fault_heat(const struct udrv_soft *c, uint32_t *onsets, uint32_t *seconds);

/* soft_fault_tear() - shorten the segments of a write to what a torn write writes */
void soft_fault_tear(struct udrv_soft *c, uint32_t lba_shift);

/* soft_fault_tell() - the ground truth of a completion, or of one that there will not be */
void soft_fault_tell(struct udrv_soft *c, const struct soft_late *late, uint8_t kind, uint64_t nth,
		     uint64_t now_ns);

/* soft_fault_post() - post a completion now, and tell */
void soft_fault_post(struct udrv_soft *c, const struct soft_late *late, uint64_t now_ns);

/* soft_fault_remove() - the device is gone: UDRV_FAULT_ALL_ONES */
void soft_fault_remove(struct udrv_soft *c, const struct udrv_fault *f, uint64_t now_ns);

/* soft_control() - answer what came to cfg.control_fd */
void soft_control(struct udrv_soft *c);

#endif /* UDRV_SOFT_SRC_FAULT_H */

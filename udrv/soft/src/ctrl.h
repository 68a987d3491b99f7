/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctrl.h - the controller: what all its parts share
 *
 *   ctrl.c      made and freed; registers, enable, shutdown, reset
 *   pci.c       configuration space, interrupts
 *   queue.c     fetching, completing, creating and deleting queues
 *   fused.c     Compare and Write, fused
 *   cmb.c       the controller memory buffer
 *   bell.c      doorbells: registers, and shadow doorbells in the host's memory
 *   admin.c     admin commands; identify.c, feature.c, log.c, event.c, ns.c (management, attachment,
 *               Format), sanitize.c, selftest.c, firmware.c belong to it
 *   io.c        I/O commands; nvm.c those that are no plain Read or Write; pi.c metadata's
 *               protection information; prp.c finds their data; media.c keeps it
 *   fault.c     what is injected (fault.h lists its parts); nothing of it costs while it is off
 *   server.c    vfio-user messages; conn.c moves them; loop.c is the one loop
 *
 * One thread runs all of it; nothing here is shared with another thread, and the only things
 * shared with another process are the doorbells and the client's memory. Whatever comes out of
 * those is read once, into a local, and then checked.
 */
#ifndef UDRV_SOFT_CTRL_H
#define UDRV_SOFT_CTRL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include <udrv/soft.h>

#include "dma.h"
#include "fault.h"
#include "state.h"
#include "wire.h"

#define BAR0_SIZE 0x4000u
#define BAR0_DOORBELLS 0x1000u
#define BAR0_DOORBELLS_SIZE 0x1000u
#define BAR0_MSIX_TABLE 0x2000u
#define BAR0_MSIX_PBA 0x3000u
#define PCI_CONFIG_SIZE 0x1000u

#define MAX_QID UDRV_SOFT_MAX_QUEUES
#define MAX_MDTS 9u
#define MAX_SEGMENTS ((1u << MAX_MDTS) + 1)
#define TEMPERATURE_K 310u
#define WARNING_TEMPERATURE_K 343u
#define CRITICAL_TEMPERATURE_K 358u
#define CONTROLLER_ID 1u
#define SOFT_FORMATS 5u
/* Copy: source ranges, blocks of one and of all of them */
#define SOFT_COPY_RANGES 16u
#define SOFT_COPY_RANGE 256u
#define SOFT_COPY_BLOCKS 1024u

static_assert(MAX_VECTORS * 16 <= BAR0_MSIX_PBA - BAR0_MSIX_TABLE, "the MSI-X table has room");
static_assert((MAX_QID + 1) * 8 <= BAR0_DOORBELLS_SIZE, "the doorbells have room");

/**
 * struct soft_bell - a doorbell
 * @mmio:	the value that was read from the register last, valid or not
 * @shadow:	likewise, from the shadow doorbell buffer
 * @renewed:	the value of @shadow when the host was last told not to ring
 * @step:	the longest move seen
 * @armed:	the host was told to ring by the register when it moves on from @shadow
 */
struct soft_bell {
	uint32_t mmio;
	uint32_t shadow;
	uint32_t renewed;
	uint32_t step;
	bool armed;
};

/**
 * struct soft_shadow - what Doorbell Buffer Config set up (NVMe 1.4, 5.7)
 * @values:	I/O virtual address of the shadow doorbells, which the host writes
 * @events:	likewise of the EventIdx values, which we write
 */
struct soft_shadow {
	bool on;
	uint64_t values;
	uint64_t events;
	struct dma_ref values_ref;
	struct dma_ref events_ref;
};

/**
 * struct soft_sq - a submission queue
 * @stalled:	the completion queue had no room when this queue had its last turn
 * @fused:	@first is the first command of a fused operation and waits for the second
 */
struct soft_sq {
	bool live;
	bool stalled;
	uint16_t qid;
	uint16_t cqid;
	uint32_t size;
	uint32_t head;
	uint32_t tail;
	struct soft_bell bell;
	uint64_t iova;
	struct dma_ref ref;
	bool fused;
	struct nv_sqe first;
};

/**
 * struct soft_cq - a completion queue
 * @free:	entries that may be written before the host's head doorbell moves
 * @unsignalled: something was posted since the vector was signalled last
 * @nr_sqs:	submission queues that complete here
 * @reserved:	of @free, for completions that are not due yet
 * @posted:	completions, since it was created
 * @epoch:	completion queues of this id before it
 */
struct soft_cq {
	bool live;
	bool phase;
	bool interrupts;
	bool unsignalled;
	uint16_t qid;
	uint16_t vector;
	uint32_t size;
	uint32_t head;
	uint32_t tail;
	uint32_t free;
	uint32_t reserved;
	uint32_t epoch;
	uint64_t posted;
	struct soft_bell bell;
	uint32_t nr_sqs;
	uint64_t iova;
	struct dma_ref ref;
};

/**
 * struct soft_irq - one MSI-X vector
 * @fd:		the client's eventfd, or -1
 * @masked:	by the client's DEVICE_SET_IRQS
 * @pending:	raised while masked
 */
struct soft_irq {
	int fd;
	bool masked;
	bool pending;
};

struct udrv_soft {
	struct udrv_soft_config cfg;

	/* registers */
	uint64_t cap;
	uint32_t intms;
	uint32_t cc;
	uint32_t csts;
	uint32_t aqa;
	uint64_t asq;
	uint64_t acq;
	bool running; /* RDY, not CFS, not shut down: commands are fetched */
	bool injecting; /* there is something in @inject */
	struct soft_inject *inject;

	/* queues: by id, and the live ones in the order in which they are served */
	_Atomic uint32_t *doorbells; /* SQ tail of queue n at 2n, CQ head at 2n + 1 */
	int doorbell_fd;
	struct soft_shadow shadow;
	struct soft_sq sq[MAX_QID + 1];
	struct soft_cq cq[MAX_QID + 1];
	uint32_t nr_sqs;
	uint32_t nr_cqs;
	uint16_t sqs[MAX_QID + 1];
	uint16_t cqs[MAX_QID + 1];
	uint32_t allocated_queues;
	uint32_t cq_epoch[MAX_QID + 1];

	struct soft_features feature; /* current values */
	struct soft_features feature_default;
	struct soft_features feature_saved;
	struct soft_clock clock;
	struct soft_events event;
	struct soft_statistics stat;
	struct soft_self_test test;
	struct soft_sanitize sanitize;
	struct soft_firmware slots;
	uint64_t born_ns;
	uint64_t alive_ns; /* when the Keep Alive Timer was restarted last */
	uint64_t due_ns; /* when soft_tick() is due, 0 never */
	uint32_t nr_changed_ns; /* since the log of them was read */
	uint32_t changed_ns[UDRV_SOFT_MAX_NS];

	uint8_t pci[PCI_CONFIG_SIZE];
	uint8_t msix_table[MAX_VECTORS * 16];
	uint32_t nr_vectors;
	struct soft_irq irq[MAX_VECTORS];

	struct soft_media media[UDRV_SOFT_MAX_NS]; /* by NSID - 1 */
	uint64_t capacity; /* bytes that all namespaces may have together */

	struct soft_cmb cmb;
	struct dma_table dma;
	struct dma_ref list_ref;
	struct dma_ref data_ref;
	uint32_t nr_segments;
	struct iovec segment[MAX_SEGMENTS];
	union { /* what an admin command answers with */
		uint8_t page[NV_PAGE_SIZE];
		struct nv_id_ctrl id_ctrl;
		struct nv_id_ns id_ns;
		struct nv_smart smart;
		struct nv_firmware firmware;
		struct nv_effects effects;
		struct nv_self_test_log self_test;
		struct nv_sanitize_log sanitized;
		uint16_t words[NV_PAGE_SIZE / 2];
		uint32_t dwords[NV_PAGE_SIZE / 4];
	};
	uint8_t *scratch; /* struct scratch of nvm.c: for commands that cannot work in place */

	struct udrv_soft_counters *counters; /* shared with the caller, or private */
	bool counters_mapped;
};

/* --- ctrl.c -------------------------------------------------------------------------------- */

/* soft_now_ns() - CLOCK_MONOTONIC, nanoseconds */
uint64_t soft_now_ns(void);

/* soft_bar_read() - registers, MSI-X table and PBA, doorbells; the range was checked */
void soft_bar_read(struct udrv_soft *c, uint32_t offset, void *data, uint32_t count);

/**
 * soft_bar_write() - likewise; naturally aligned accesses of 4 or 8 bytes
 * Return: 0 or -EINVAL.
 */
int soft_bar_write(struct udrv_soft *c, uint32_t offset, const void *data, uint32_t count);

/* soft_enable() - what CC.EN from 0 to 1 does */
void soft_enable(struct udrv_soft *c);

/* soft_fatal() - CSTS.CFS: nothing more is fetched until a reset */
void soft_fatal(struct udrv_soft *c);

/* soft_controller_reset() - CC.EN from 1 to 0 */
void soft_controller_reset(struct udrv_soft *c);

/* soft_function_reset() - as a function-level reset of a PCI function does it */
void soft_function_reset(struct udrv_soft *c);

/* --- pci.c --------------------------------------------------------------------------------- */

void soft_pci_reset(struct udrv_soft *c);
void soft_pci_write(struct udrv_soft *c, uint32_t offset, const uint8_t *data, uint32_t count);

/**
 * soft_irq_arm() - take over an eventfd for a vector; -1 disarms
 * Closes the one that it had.
 */
void soft_irq_arm(struct udrv_soft *c, uint32_t vector, int fd);
void soft_irq_mask(struct udrv_soft *c, uint32_t vector, bool mask);
bool soft_irq_raise(struct udrv_soft *c, uint32_t vector);

/* --- cmb.c --------------------------------------------------------------------------------- */

int soft_cmb_open(struct udrv_soft *c);
void soft_cmb_close(struct udrv_soft *c);
void soft_cmb_reset(struct udrv_soft *c);
void soft_cmb_control(struct udrv_soft *c, uint32_t half, uint32_t value); /* CMBMSC, high: 1 */
bool soft_cmb_is(const struct udrv_soft *c, uint64_t iova); /* a mapping there is the buffer's */
void soft_cmb_unmapped(struct udrv_soft *c); /* all mappings went, and this one is no client's */
void soft_cmb_registers(const struct udrv_soft *c, uint8_t *image);

/* --- bell.c -------------------------------------------------------------------------------- */

/**
 * soft_bell_moved() - look at a doorbell
 * @index:	2n for the tail of submission queue n, 2n + 1 for the head of completion queue n
 * @size:	entries of that queue
 * @value:	what was read, if it changed; not checked
 * Return: whether it changed since the last look.
 */
bool soft_bell_moved(struct udrv_soft *c, struct soft_bell *bell, uint32_t index, uint32_t size,
		     uint32_t *value);

/* soft_bell_start() - a new queue's doorbell reads 0, whatever an earlier one of its id left */
void soft_bell_start(struct udrv_soft *c, struct soft_bell *bell, uint32_t index);

/**
 * soft_bells_arm() - before a sleep from which only a register write wakes
 * Return: whether to sleep: false if a doorbell moved meanwhile.
 */
bool soft_bells_arm(struct udrv_soft *c);

/* soft_bad_doorbell() - report an Invalid Doorbell Write Value */
void soft_bad_doorbell(struct udrv_soft *c);

uint16_t soft_doorbell_buffer_config(struct udrv_soft *c, const struct nv_sqe *cmd);

/* --- queue.c ------------------------------------------------------------------------------- */

/* soft_queues_pass() - serve every queue once. Return: whether there was anything to do. */
bool soft_queues_pass(struct udrv_soft *c);

void soft_queues_start_admin(struct udrv_soft *c);
void soft_queues_clear(struct udrv_soft *c);
uint16_t soft_create_sq(struct udrv_soft *c, const struct nv_sqe *cmd);
uint16_t soft_create_cq(struct udrv_soft *c, const struct nv_sqe *cmd);
uint16_t soft_delete_sq(struct udrv_soft *c, const struct nv_sqe *cmd);
uint16_t soft_delete_cq(struct udrv_soft *c, const struct nv_sqe *cmd);

/**
 * soft_complete_admin() - complete an admin command out of turn
 * Return: false if the admin completion queue has no room.
 */
bool soft_complete_admin(struct udrv_soft *c, uint16_t cid, uint16_t status, uint32_t result);

/* soft_cq_room() - completions that may be posted which have no place yet */
static inline uint32_t soft_cq_room(const struct soft_cq *cq)
{
	return cq->free - cq->reserved;
}

/**
 * soft_post() - post a completion; the caller made sure that there is room
 * @sq:		its third word: SQHD 15:0, SQID 31:16
 * @wrong_phase: with the phase of the lap before
 * @silent:	no interrupt for it
 */
void soft_post(struct udrv_soft *c, struct soft_cq *cq, uint32_t sq, uint16_t cid,
	       uint16_t status, uint32_t result, bool wrong_phase, bool silent);

/**
 * soft_execute() - execute a command
 * Return: enum nv_status, as the handlers return it.
 */
uint16_t soft_execute(struct udrv_soft *c, uint16_t sqid, const struct nv_sqe *cmd,
		      uint32_t *result);

/* soft_note_status() - count and log an error. Return: the status to post. */
uint16_t soft_note_status(struct udrv_soft *c, uint16_t sqid, const struct nv_sqe *cmd,
			  uint16_t status);

/* Of a completion queue, while the first command of a fused operation waits for the second */
#define SOFT_FUSED_PLACES 2u

enum soft_fused {
	SOFT_NOT_FUSED, /* a command like any other */
	SOFT_FUSED_TAKEN, /* dealt with */
	SOFT_FUSED_LATER, /* there is no room for both */
};

/**
 * soft_fused() - a command that is fused, or that follows the first of two that are
 * @next:	the queue's head once the command is taken; set if it is
 */
enum soft_fused soft_fused(struct udrv_soft *c, struct soft_sq *sq, struct soft_cq *cq,
			   const struct nv_sqe *cmd, uint32_t next);

/* AWUN and ACWU, 0's based: what is executed at a time, in blocks of the largest size */
#define SOFT_ATOMIC(c) ((1u << (c)->cfg.mdts) - 1)

/* --- admin.c, identify.c, feature.c, event.c ----------------------------------------------- */

/**
 * soft_admin() - execute an admin command
 * @result:	Dword 0 of its completion, 0 on entry
 * Return: enum nv_status.
 */
uint16_t soft_admin(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);

uint32_t soft_admin_effects(uint32_t opcode); /* the dword of log page 05h */

uint16_t soft_identify(struct udrv_soft *c, const struct nv_sqe *cmd);

uint16_t soft_set_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);
uint16_t soft_get_feature(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);
uint32_t soft_feature_effects(uint32_t fid); /* the dword of log page 12h */
void soft_features_init(struct udrv_soft *c);
void soft_features_reset(struct udrv_soft *c);

uint16_t soft_get_log(struct udrv_soft *c, const struct nv_sqe *cmd);
void soft_log_error(struct udrv_soft *c, const struct nv_sqe *cmd, uint16_t sqid,
		    uint16_t status);
uint64_t soft_power_on_hours(const struct udrv_soft *c);

void soft_event_raise(struct udrv_soft *c, enum nv_event_type type, uint32_t info, uint32_t log);
void soft_events_deliver(struct udrv_soft *c);
uint8_t soft_warnings(const struct udrv_soft *c); /* the SMART log's byte 0 */
void soft_check_temperature(struct udrv_soft *c);

/* soft_temperature() - kelvins, and how often and long (seconds) throttling was on */
uint32_t soft_temperature(const struct udrv_soft *c, uint32_t *onsets, uint32_t *seconds);
void soft_ns_changed(struct udrv_soft *c, uint32_t nsid);

/* soft_schedule() - work out c->due_ns anew; soft_tick() - do what is due at @now */
void soft_schedule(struct udrv_soft *c);
void soft_tick(struct udrv_soft *c, uint64_t now);

/* --- selftest.c, firmware.c, sanitize.c, ns.c ---------------------------------------------- */

enum soft_test_result { /* base 2.0, figure 213 */
	SOFT_TEST_PASSED = 0,
	SOFT_TEST_COMMAND = 1, /* aborted by: a Device Self-test command */
	SOFT_TEST_RESET = 2,
	SOFT_TEST_REMOVED = 3,
	SOFT_TEST_FORMAT = 4,
	SOFT_TEST_FAILED = 7,
	SOFT_TEST_SANITIZE = 9,
};

uint16_t soft_self_test(struct udrv_soft *c, const struct nv_sqe *cmd);
void soft_self_test_abort(struct udrv_soft *c, enum soft_test_result why);
void soft_self_test_end(struct udrv_soft *c);
void soft_self_test_log(struct udrv_soft *c, struct nv_self_test_log *log);

void soft_firmware_init(struct udrv_soft *c);
void soft_firmware_reset(struct udrv_soft *c);
uint16_t soft_firmware_download(struct udrv_soft *c, const struct nv_sqe *cmd);
uint16_t soft_firmware_commit(struct udrv_soft *c, const struct nv_sqe *cmd);

uint16_t soft_sanitize(struct udrv_soft *c, const struct nv_sqe *cmd);
void soft_sanitize_end(struct udrv_soft *c);
bool soft_sanitize_failed(const struct udrv_soft *c);
uint32_t soft_sanitize_special(const struct udrv_soft *c); /* of a new namespace */
void soft_sanitize_written(struct udrv_soft *c); /* data came after a sanitize operation */
void soft_sanitize_log(const struct udrv_soft *c, struct nv_sanitize_log *log);

void soft_ns_configured(struct soft_media *m); /* one that udrv_soft_new() opened */
void soft_ns_formats(struct nv_id_ns *id);
uint64_t soft_unallocated(const struct udrv_soft *c);
uint16_t soft_format(struct udrv_soft *c, const struct nv_sqe *cmd);
uint16_t soft_ns_management(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result);
uint16_t soft_ns_attachment(struct udrv_soft *c, const struct nv_sqe *cmd);

/* --- io.c ---------------------------------------------------------------------------------- */

uint16_t soft_io(struct udrv_soft *c, const struct nv_sqe *cmd);
uint32_t soft_io_effects(uint32_t opcode); /* the dword of log page 05h */

/* --- prp.c --------------------------------------------------------------------------------- */

/**
 * soft_map_data() - resolve a command's PRPs into c->segment
 * @len:	bytes, 1 to the largest transfer
 * @rights:	DMA_READ (host to controller) or DMA_WRITE
 * Return: NV_OK, NV_PRP_OFFSET or NV_DATA_TRANSFER.
 */
uint16_t soft_map_data(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t len,
		       uint32_t rights);

/* soft_scatter() - copy @len bytes to c->segment; soft_gather() - from it */
void soft_scatter(struct udrv_soft *c, const void *data, size_t len);
void soft_gather(struct udrv_soft *c, void *data, size_t len);

/* soft_answer() - copy @len bytes to where the command's PRPs point; soft_fetch() - from there */
uint16_t soft_answer(struct udrv_soft *c, const struct nv_sqe *cmd, const void *data,
		     uint32_t len);
uint16_t soft_fetch(struct udrv_soft *c, const struct nv_sqe *cmd, void *data, uint32_t len);

static inline bool soft_ns_allocated(const struct udrv_soft *c, uint32_t nsid)
{
	return nsid - 1 < UDRV_SOFT_MAX_NS && c->media[nsid - 1].allocated;
}

static inline bool soft_ns_active(const struct udrv_soft *c, uint32_t nsid)
{
	return nsid - 1 < UDRV_SOFT_MAX_NS && c->media[nsid - 1].attached;
}

#include "media.h"

#endif /* UDRV_SOFT_CTRL_H */

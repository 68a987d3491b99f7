/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udrv/soft.h - a software NVMe controller that speaks vfio-user
 *
 * One controller, one thread, one client at a time. udrv_soft_new() makes a controller with its
 * namespaces, udrv_soft_run() serves one connected client until it leaves, and may be called
 * again for the next one: the namespaces keep their data, everything else is reset.
 *
 * The caller owns the sockets and descriptors that it passes; a controller keeps duplicates of
 * nothing and closes nothing that it did not open. All of this is for one thread.
 */
#ifndef UDRV_SOFT_H
#define UDRV_SOFT_H

#include <stddef.h>
#include <stdint.h>

#include <udrv/soft_fault.h>

#define UDRV_SOFT_MAX_NS 32
#define UDRV_SOFT_MAX_QUEUES 128 /* I/O queue pairs */

/* udrv_soft_config.flags */
#define UDRV_SOFT_TRAP_DOORBELLS 1u /* no mapping of doorbells: clients use REGION_WRITE */

/* Why udrv_soft_run() returned; below zero it is a negative errno. */
#define UDRV_SOFT_PEER_CLOSED 0
#define UDRV_SOFT_STOPPED 1

/**
 * struct udrv_soft_ns - one namespace; NSID is its index in the configuration plus 1
 * @blocks:	size in logical blocks, at least 1
 * @lba_shift:	log2 of the block size: 9 (512 bytes) or 12 (4096 bytes)
 * @fd:		file that backs it, at least as long as the namespace; -1: memory
 */
struct udrv_soft_ns {
	uint64_t blocks;
	uint32_t lba_shift;
	int32_t fd;
};

/**
 * struct udrv_soft_config - all that a controller is made from
 * @size:	sizeof(struct udrv_soft_config): tells a caller built from another version
 * @flags:	UDRV_SOFT_*
 * @sock_fd:	for udrv_soft_child(): the connected client
 * @ready_fd:	for udrv_soft_child(): gets one byte when the controller is up, then is closed
 * @counters_fd: a file of at least sizeof(struct udrv_soft_counters), or -1
 * @control_fd:	datagram socket for requests while it runs (struct udrv_control), or -1
 * @faults_fd:	file with a struct udrv_fault_table, read by udrv_soft_new(), or -1
 * @truth_fd:	file that gets a struct udrv_truth for each injected effect, or -1
 * @nr_ns:	namespaces in @ns, 1 to UDRV_SOFT_MAX_NS
 * @nn:		number of NSIDs (Identify NN), at least @nr_ns; those above are inactive
 * @queues:	I/O queue pairs, 1 to UDRV_SOFT_MAX_QUEUES
 * @entries:	largest queue in entries, 2 to 65536 (CAP.MQES is one less)
 * @mdts:	largest transfer is 4096 << @mdts bytes, 1 to 9
 * @spin_us:	how long to poll after the last work before sleeping, microseconds
 * @cmb_bytes:	size of the controller memory buffer: 0, or a power of two of 4 KiB to 1 GiB
 * @serial:	ASCII, padded with spaces
 * @ns:		the namespaces
 */
struct udrv_soft_config {
	uint32_t size;
	uint32_t flags;
	int32_t sock_fd;
	int32_t ready_fd;
	int32_t counters_fd;
	int32_t control_fd;
	int32_t faults_fd;
	int32_t truth_fd;
	uint32_t nr_ns;
	uint32_t nn;
	uint32_t queues;
	uint32_t entries;
	uint32_t mdts;
	uint32_t spin_us;
	uint64_t cmb_bytes;
	char serial[20];
	struct udrv_soft_ns ns[UDRV_SOFT_MAX_NS];
};

/**
 * struct udrv_soft_queue_counters - what one queue pair saw since the controller was made
 * @sq_doorbells: writes of the submission doorbell register: each one where doorbells are trapped;
 *		where they are mapped, changes seen (a client may write faster than we look)
 * @cq_doorbells: likewise of the completion doorbell
 * @sq_shadow:	changes seen of the shadow submission doorbell
 * @cq_shadow:	changes seen of the shadow completion doorbell
 * @commands:	commands fetched
 * @errors:	of these, completed with an error status
 * @interrupts:	times the vector was signalled for this completion queue
 * @cq_full:	times that commands had to wait for room in the completion queue
 */
struct udrv_soft_queue_counters {
	uint64_t sq_doorbells;
	uint64_t cq_doorbells;
	uint64_t commands;
	uint64_t errors;
	uint64_t interrupts;
	uint64_t cq_full;
	uint64_t sq_shadow;
	uint64_t cq_shadow;
};

/**
 * struct udrv_soft_counters - written by the serving thread alone, readable at any time
 *
 * Log page C0h, too: a client that has no other way to them reads them there.
 *
 * @messages:	vfio-user messages handled
 * @refused:	of these, answered by an error
 * @naps:	times the thread went to sleep
 * @enables:	times CC.EN went from 0 to 1
 * @queue:	by queue id; 0 is the admin queue
 */
struct udrv_soft_counters {
	uint64_t messages;
	uint64_t refused;
	uint64_t naps;
	uint64_t enables;
	struct udrv_soft_queue_counters queue[UDRV_SOFT_MAX_QUEUES + 1];
};

struct udrv_soft;

/**
 * udrv_soft_new() - make a controller
 * @cfg:	checked and copied; its descriptors must stay open as long as the controller lives
 * @ctrl:	the controller, on success
 *
 * Return: 0, or a negative errno (-EINVAL: the configuration is not within its ranges).
 */
int udrv_soft_new(const struct udrv_soft_config *cfg, struct udrv_soft **ctrl);

/**
 * udrv_soft_run() - serve one client
 * @ctrl:	the controller
 * @sock:	connected UNIX stream socket of the client
 * @stop_fd:	ends the call when it becomes readable; -1 for none
 *
 * While it runs, this process's SIGBUS handler is the controller's (a client may shrink memory
 * that it shared); the previous one is put back. On return the controller is reset, and nothing
 * of the client's memory or descriptors is left.
 *
 * Return: UDRV_SOFT_PEER_CLOSED, UDRV_SOFT_STOPPED, or a negative errno: -EPROTO if the client
 * broke the protocol so that the connection could not go on.
 */
int udrv_soft_run(struct udrv_soft *ctrl, int sock, int stop_fd);

/**
 * udrv_soft_control() - answer what waits at cfg.control_fd; does not block
 * @ctrl:	the controller
 *
 * udrv_soft_run() does so by itself: this is for the time between two clients.
 */
void udrv_soft_control(struct udrv_soft *ctrl);

/**
 * udrv_soft_free() - release a controller and its memory; NULL is allowed
 * @ctrl:	the controller
 */
void udrv_soft_free(struct udrv_soft *ctrl);

/**
 * udrv_soft_child() - the main function of a process that is one controller for one client
 * @config:	a struct udrv_soft_config, at any alignment
 * @len:	its length in bytes
 *
 * SIGINT is ignored from here on: an interrupt typed at the terminal is for the parent, whose
 * end of the socket ends this process.
 *
 * Return: an exit status: 0 if all went well; else the reason is on standard error.
 */
int udrv_soft_child(const void *config, size_t len);

#endif /* UDRV_SOFT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * soft_rig.h - a software controller in this process, and its client, which the input drives
 *
 * udrv_soft_run() runs as it is. Whenever it would wait for its socket it calls ppoll(), and there
 * (soft_rig.c wraps it) the client takes its next step: so all interleavings are the input's, in one
 * thread, and a finding is reproduced by its input alone. Time is the input's, too.
 *
 * Every mapping that the controller makes has a page without access on each side.
 */
#ifndef UDRV_FUZZ_SOFT_RIG_H
#define UDRV_FUZZ_SOFT_RIG_H

#include <stdbool.h>

#include "conn.h"
#include "ctrl.h"
#include "fault.h"
#include "input.h"

#define RIG_FILES 3u
#define RIG_PAGES 28u /* of the first file; the others have fewer */
#define RIG_IOVA 0x100000ull /* where the first one is mapped, if the client behaves */
#define RIG_QUEUES 3u

/* Pages of the first file */
enum rig_page {
	PAGE_ASQ, PAGE_ACQ, PAGE_SQ1, PAGE_CQ1, PAGE_SQ2, PAGE_CQ2, PAGE_SHADOW, PAGE_EVENTS,
	PAGE_DATA,
};

struct rig {
	struct input in;
	struct udrv_soft *c;
	int sock; /* the client's end, -1 once it hung up */
	int control;
	bool talked; /* something was sent on either */
	int file[RIG_FILES];
	uint8_t *memory; /* the first file, as the client sees it: never cut, see rig_cut() */
	uint32_t tail[RIG_QUEUES];
	uint32_t entries;
	uint16_t cid;
};

/* What a harness gives. A step returns false when the client leaves. */
typedef bool (*rig_step)(struct rig *r);
typedef void (*rig_config)(struct rig *r, struct udrv_soft_config *cfg);

void rig_run(const uint8_t *data, size_t size, rig_config config, rig_step step);

uint64_t rig_iova(uint32_t page);

/* rig_address() - mostly of a page of the first file; else past its end, another file's, any */
uint64_t rig_address(struct input *in);

/* rig_cut() - one of the files loses or gets pages while it is mapped (not the first one's start) */
void rig_cut(struct rig *r);

/* rig_kind_of_fd() - a descriptor of any kind; the caller closes it */
int rig_kind_of_fd(struct rig *r);

void rig_map(struct rig *r);
void rig_advance(uint64_t ns);

/* rig_enable() - as a driver does it: admin queues, then two I/O queue pairs */
void rig_enable(struct rig *r);

/* rig_put() - a command into a queue of the first file, and its doorbell */
void rig_put(struct rig *r, uint32_t queue, const struct nv_sqe *cmd);

/* rig_check() - what must hold of a controller whatever happened to it */
void rig_check(const struct udrv_soft *c);

#endif /* UDRV_FUZZ_SOFT_RIG_H */

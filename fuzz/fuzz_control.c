// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_control.c - the control socket: any datagram, tables of faults that are valid in all but one
 * thing, and then a driver that meets those faults.
 */
#define _GNU_SOURCE
#include "soft_rig.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static int faults_fd = -1, truth_fd = -1;

/* One that udrv_fault_check() takes, mostly, of any effect. */
static struct udrv_fault fault(struct input *in)
{
	struct udrv_fault f = { .lba_last = UDRV_FAULT_FOREVER, .end_us = UDRV_FAULT_FOREVER,
				.every = 1, .count = UDRV_FAULT_FOREVER, .probability = 1,
				.queue_last = 65535 };
	uint8_t how = in_u8(in);

	f.effect = in_u8(in) % 58;
	for (uint32_t i = 0; i < UDRV_FAULT_ARGS; i++)
		f.u[i] = how & 1 ? in_word(in) : in_u8(in) % 8;
	f.f[0] = 1 + in_u8(in) / 16.0;
	if (how & 2) {
		f.start_us = in_word(in) & 0xffff;
		f.period_us = in_u8(in);
		f.on_us = f.period_us ? 1 + in_u8(in) % f.period_us : 0;
	}
	if (how & 4) {
		f.lba_first = in_u8(in);
		f.lba_last = in_word(in);
		f.dies = in_u8(in);
		f.die = in_u8(in);
		f.stripe = (uint32_t)in_word(in);
	}
	if (how & 8) {
		f.after = in_u8(in) % 4;
		f.every = 1 + in_u8(in) % 4;
		f.count = in_word(in);
		f.probability = in_u8(in) / 255.0;
		f.seed = in_u8(in);
	}
	if (how & 16) {
		f.opcodes[0] = in_word(in);
		f.nsid = in_u8(in) % 4;
		f.queue_first = in_u8(in) % 3;
	}
	if (how >= 0xf0) { /* anything, not-a-numbers among it */
		uint32_t at = in_below(in, sizeof(f)), n = 1 + in_u8(in) % 16;
		uint8_t any[16];

		in_bytes(in, any, sizeof(any));
		memcpy((uint8_t *)&f + at, any, n < sizeof(f) - at ? n : sizeof(f) - at);
	}
	return f;
}

static void datagram(struct rig *r)
{
	static union {
		struct udrv_control head;
		uint8_t bytes[sizeof(struct udrv_control) + 80 * sizeof(struct udrv_fault)];
	} m;
	uint8_t how = in_u8(&r->in);
	uint32_t n = how & 0x40 ? in_below(&r->in, 80) : how & 3;
	size_t len = sizeof(m.head);

	m.head = (struct udrv_control){ .magic = UDRV_FAULT_MAGIC, .version = UDRV_FAULT_VERSION,
					.op = 1 + in_below(&r->in, 6), .count = n,
					.id = in_u8(&r->in) % 8 };
	if (how & 0x80)
		m.head.op = UDRV_CONTROL_ADD;
	if (m.head.op == UDRV_CONTROL_ADD || m.head.op == UDRV_CONTROL_REPLACE) {
		for (uint32_t i = 0; i < n; i++) {
			struct udrv_fault f = fault(&r->in);

			memcpy(m.bytes + len, &f, sizeof(f));
			len += sizeof(f);
		}
	}
	if ((how & 0x38) == 0x38) {
		m.head.count = (uint32_t)in_word(&r->in);
		len = in_below(&r->in, sizeof(m));
	}
	r->talked = true;
	(void)!send(r->control, &m, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void command(struct rig *r)
{
	static const uint8_t io[] = { NV_IO_READ, NV_IO_WRITE, NV_IO_FLUSH, NV_IO_WRITE_ZEROES,
				      NV_IO_COMPARE, NV_IO_DATASET };
	uint32_t queue = in_below(&r->in, RIG_QUEUES);
	uint8_t how = in_u8(&r->in);
	struct nv_sqe cmd = { .cid = r->cid++, .nsid = 1 + (how & 1), .prp1 = rig_address(&r->in),
			      .prp2 = rig_address(&r->in), .cdw10 = in_u8(&r->in),
			      .cdw12 = in_u8(&r->in) % 20u };

	if (queue)
		cmd.opcode = io[how % sizeof(io)];
	else
		cmd.opcode = how & 0x80 ? NV_ADM_ASYNC_EVENT : in_u8(&r->in) % 0x1a;
	if (!queue && (cmd.opcode == NV_ADM_CREATE_SQ || cmd.opcode == NV_ADM_CREATE_CQ)) {
		cmd.cdw10 = (1u + (how & 1)) | (r->entries - 1) << 16;
		cmd.cdw11 = cmd.opcode == NV_ADM_CREATE_CQ ? 3 : 1 | (1u + (how & 1)) << 16;
	}
	rig_put(r, queue, &cmd);
}

static void take(struct rig *r)
{
	for (uint32_t q = 0; q < RIG_QUEUES; q++)
		atomic_store(&r->c->doorbells[2 * q + 1], r->c->cq[q].tail);
}

static void config(struct rig *r, struct udrv_soft_config *cfg)
{
	uint8_t how = in_u8(&r->in);
	struct udrv_fault_table table = { .magic = UDRV_FAULT_MAGIC,
					  .version = UDRV_FAULT_VERSION };

	cfg->flags = how & 1 ? UDRV_SOFT_TRAP_DOORBELLS : 0;
	if (how & 2) {
		MUST(ftruncate(truth_fd, 0) == 0);
		cfg->truth_fd = truth_fd;
	}
	if (how & 4)
		return;
	/* a model, which some effects need */
	table.model = (struct udrv_model){ .dies = 1 + in_u8(&r->in), .channels = 1 + (how >> 4),
					   .stripe = 4096, .read_ns = in_u16(&r->in),
					   .program_ns = in_u16(&r->in), .transfer_ns = 500,
					   .overhead_ns = 100, .buffer_ns = in_u16(&r->in),
					   .jitter = in_u8(&r->in) / 255.0 };
	if (!(how & 8)) {
		MUST(pwrite(faults_fd, &table, sizeof(table), 0) == sizeof(table));
		MUST(ftruncate(faults_fd, sizeof(table)) == 0);
		cfg->faults_fd = faults_fd;
	}
}

static bool started;

static bool step(struct rig *r)
{
	uint8_t what;
	uint32_t value;

	if (!started) {
		started = true;
		rig_map(r);
		rig_enable(r);
		return true;
	}
	what = in_u8(&r->in);
	if (what < 0x40) {
		datagram(r);
	} else if (what < 0xa0) {
		command(r);
	} else if (what < 0xc0) {
		take(r);
	} else if (what < 0xd8) {
		rig_advance(in_word(&r->in) << (what & 3) * 8);
	} else if (what < 0xe8) {
		value = what & 1 ? (what & 2 ? 0x4001 : 0) : NV_CC_EN | 6 << 16 | 4 << 20;
		soft_bar_write(r->c, NV_REG_CC, &value, sizeof(value));
	} else if (what < 0xf0) {
		soft_function_reset(r->c);
		rig_enable(r);
	} else if (what < 0xf8) {
		(void)soft_fault_registers(r->c);
		soft_bar_read(r->c, NV_REG_CSTS, &value, sizeof(value));
	} else {
		uint8_t noise[64];

		in_bytes(&r->in, noise, sizeof(noise));
		r->talked = true;
		(void)!send(r->control, noise, what & 0x3f, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (faults_fd < 0) {
		faults_fd = memfd_create("faults", MFD_CLOEXEC);
		truth_fd = memfd_create("truth", MFD_CLOEXEC);
		MUST(faults_fd >= 0 && truth_fd >= 0);
	}
	started = false;
	rig_run(data, size, config, step);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_nvme.c - the NVMe side: registers, doorbells, configuration space, any command with any PRPs,
 * and memory that moves, overlaps, shrinks and goes meanwhile. Messages are fuzz_vfio_user.c's part:
 * here the client calls what their handlers call.
 */
#include "soft_rig.h"

#include <sys/eventfd.h>
#include <unistd.h>

static const uint8_t admin_opcodes[] = {
	NV_ADM_DELETE_SQ, NV_ADM_CREATE_SQ, NV_ADM_GET_LOG, NV_ADM_DELETE_CQ, NV_ADM_CREATE_CQ,
	NV_ADM_IDENTIFY, NV_ADM_ABORT, NV_ADM_SET_FEATURES, NV_ADM_GET_FEATURES,
	NV_ADM_ASYNC_EVENT, NV_ADM_NS_MANAGEMENT, NV_ADM_FIRMWARE_COMMIT,
	NV_ADM_FIRMWARE_DOWNLOAD, NV_ADM_SELF_TEST, NV_ADM_NS_ATTACHMENT, NV_ADM_KEEP_ALIVE,
	NV_ADM_DOORBELL_BUFFER, NV_ADM_FORMAT, NV_ADM_SANITIZE,
};
static const uint8_t io_opcodes[] = {
	NV_IO_FLUSH, NV_IO_WRITE, NV_IO_READ, NV_IO_WRITE_UNCORRECTABLE, NV_IO_COMPARE,
	NV_IO_WRITE_ZEROES, NV_IO_DATASET, NV_IO_VERIFY, NV_IO_COPY, NV_IO_READ, NV_IO_WRITE,
};

/* A command whose fields are each good or bad by themselves. */
static void step_command(struct rig *r)
{
	struct input *in = &r->in;
	uint32_t queue = in_below(in, RIG_QUEUES);
	uint8_t how = in_u8(in);
	struct nv_sqe cmd = { .cid = r->cid++ };

	if (how & 1)
		cmd.opcode = in_u8(in);
	else if (queue)
		cmd.opcode = io_opcodes[in_below(in, sizeof(io_opcodes))];
	else
		cmd.opcode = admin_opcodes[in_below(in, sizeof(admin_opcodes))];
	cmd.nsid = how & 2 ? (uint32_t)in_word(in) : 1 + in_below(in, 2);
	cmd.flags = (how & 0x1c) == 0x1c ? in_u8(in) : 0;
	cmd.prp1 = rig_address(in);
	cmd.prp2 = rig_address(in);
	if (how & 0x20)
		cmd.mptr = rig_address(in);
	cmd.cdw10 = how & 0x40 ? (uint32_t)in_word(in) : in_u8(in);
	cmd.cdw11 = how & 0x80 ? (uint32_t)in_word(in) : in_u8(in) & 7u;
	cmd.cdw12 = (uint32_t)in_word(in);
	if (how & 0x20) {
		cmd.cdw13 = (uint32_t)in_word(in);
		cmd.cdw14 = (uint32_t)in_word(in);
		cmd.cdw15 = (uint32_t)in_word(in);
		cmd.cdw2 = (uint32_t)in_word(in);
		cmd.cdw3 = (uint32_t)in_word(in);
	}
	rig_put(r, queue, &cmd);
}

static void step_raw_command(struct rig *r)
{
	struct nv_sqe cmd;
	uint32_t queue = in_below(&r->in, RIG_QUEUES);

	in_bytes(&r->in, &cmd, sizeof(cmd));
	rig_put(r, queue, &cmd);
}

/* PRP lists, ranges of Dataset Management and Copy, structures: what commands find in a page. */
static void step_scribble(struct rig *r)
{
	uint32_t page = PAGE_DATA + in_below(&r->in, RIG_PAGES - PAGE_DATA);
	uint32_t at = in_below(&r->in, 512), n = in_u8(&r->in);
	uint64_t *to = (uint64_t *)(r->memory + page * 4096ul);
	bool addresses = in_u8(&r->in) & 1;

	for (uint32_t i = 0; i < n && in_left(&r->in); i++)
		to[(at + i) % 512] = addresses ? rig_address(&r->in) : in_word(&r->in);
}

/* Behind everybody's back: queues and shadow doorbells too. */
static void step_poke(struct rig *r)
{
	uint32_t at = in_u32(&r->in) % (RIG_PAGES * 4096u), n = in_u8(&r->in) % 64;
	uint32_t room = RIG_PAGES * 4096u - at;

	in_bytes(&r->in, r->memory + at, n < room ? n : room);
}

static void step_register(struct rig *r)
{
	uint8_t data[8];
	uint32_t kind = in_u8(&r->in), offset = in_u16(&r->in) % BAR0_SIZE, count = kind & 1 ? 8 : 4;
	uint64_t word = in_word(&r->in);

	if (kind & 2)
		offset %= 0x70;
	memcpy(data, &word, sizeof(data));
	if (kind & 4)
		count = kind >> 4;
	if (count > BAR0_SIZE - offset || count > sizeof(data))
		return;
	soft_bar_write(r->c, offset, data, count);
}

static void step_read(struct rig *r)
{
	uint32_t offset = in_u16(&r->in) % BAR0_SIZE, count = 1 + in_below(&r->in, 4096);
	uint32_t room = BAR0_SIZE - offset;
	uint8_t *data;

	count = count < room ? count : room;
	data = malloc(count);
	MUST(data);
	soft_bar_read(r->c, offset, data, count);
	free(data);
}

static void step_config(struct rig *r)
{
	uint8_t data[16];
	uint32_t offset = in_u16(&r->in) % PCI_CONFIG_SIZE, count = 1 + in_below(&r->in, 16);
	uint32_t room = PCI_CONFIG_SIZE - offset;

	if (offset & 0x800)
		offset &= 0x7f;
	in_bytes(&r->in, data, sizeof(data));
	soft_pci_write(r->c, offset, data, count < room ? count : room);
}

static void step_doorbell(struct rig *r)
{
	uint32_t index = in_u8(&r->in) % (2 * RIG_QUEUES + 4), value = (uint32_t)in_word(&r->in);

	atomic_store_explicit(&r->c->doorbells[index], value, memory_order_release);
}

static void step_take(struct rig *r)
{
	for (uint32_t q = 0; q < RIG_QUEUES; q++) {
		if (!r->c->cq[q].live)
			continue;
		if (r->c->shadow.on && q)
			*(uint32_t *)(r->memory + PAGE_SHADOW * 4096ul + 8 * q + 4) =
				r->c->cq[q].tail;
		atomic_store_explicit(&r->c->doorbells[2 * q + 1], r->c->cq[q].tail,
				      memory_order_release);
	}
}

static void step_map(struct rig *r)
{
	uint64_t iova = rig_address(&r->in), size = 4096ull * in_below(&r->in, 12);
	uint64_t offset = 4096ull * in_below(&r->in, 8);
	uint8_t how = in_u8(&r->in);
	int fd = how & 0x40 ? -1 : r->file[how % RIG_FILES];

	if (how & 0x80) {
		size = in_word(&r->in);
		offset = in_word(&r->in);
	} else {
		iova &= ~0xfffull;
	}
	if (how & 0x20)
		iova = (1ull << 32) + (iova & 0xf000);
	dma_add(&r->c->dma, iova, size, how >> 2 & 3, fd, offset);
}

static void step_unmap(struct rig *r)
{
	uint8_t which = in_u8(&r->in);
	const struct dma_map *m;

	if (which == 0xff)
		dma_clear(&r->c->dma);
	if (!r->c->dma.nr)
		return;
	m = &r->c->dma.maps[which % r->c->dma.nr];
	dma_remove(&r->c->dma, m->iova, m->size);
}

static void step_interrupt(struct rig *r)
{
	uint32_t vector = in_u8(&r->in) % r->c->nr_vectors;

	switch (in_u8(&r->in) & 3) {
	case 0:
		soft_irq_arm(r->c, vector, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
		break;
	case 1:
		soft_irq_arm(r->c, vector, -1);
		break;
	default:
		soft_irq_mask(r->c, vector, in_u8(&r->in) & 1);
	}
}

static void config(struct rig *r, struct udrv_soft_config *cfg)
{
	uint8_t how = in_u8(&r->in);

	cfg->flags = how & 1 ? UDRV_SOFT_TRAP_DOORBELLS : 0;
	cfg->cmb_bytes = how & 2 ? 16384 : 0;
	cfg->ns[1].fd = how & 4 ? 0 : -1; /* 0: a file */
	cfg->mdts = how & 8 ? 2 : MAX_MDTS;
}

static bool start(struct rig *r)
{
	uint8_t how = in_u8(&r->in);

	if (how & 1)
		return true; /* the input does it itself, or does not */
	rig_map(r);
	rig_enable(r);
	if (how & 2) {
		struct nv_sqe cmd = { .opcode = NV_ADM_DOORBELL_BUFFER,
				      .prp1 = rig_iova(PAGE_SHADOW),
				      .prp2 = rig_iova(PAGE_EVENTS) };

		rig_put(r, 0, &cmd);
	}
	if (how & 12) { /* another format: metadata, protection information */
		struct nv_sqe cmd = { .opcode = NV_ADM_FORMAT, .nsid = 1,
				      .cdw10 = (uint32_t)in_u8(&r->in) };

		rig_put(r, 0, &cmd);
		soft_queues_pass(r->c);
	}
	return true;
}

static bool started;

static bool step(struct rig *r)
{
	uint8_t what;

	if (!started) {
		started = true;
		return start(r);
	}
	what = in_u8(&r->in);
	if (what < 0x70)
		step_command(r);
	else if (what < 0x78)
		step_raw_command(r);
	else if (what < 0x90)
		step_scribble(r);
	else if (what < 0x98)
		step_poke(r);
	else if (what < 0xa0)
		step_register(r);
	else if (what < 0xa4)
		step_read(r);
	else if (what < 0xa8)
		step_config(r);
	else if (what < 0xb0)
		step_doorbell(r);
	else if (what < 0xc0)
		step_take(r);
	else if (what < 0xc8)
		step_map(r);
	else if (what < 0xcc)
		step_unmap(r);
	else if (what < 0xd0)
		rig_cut(r);
	else if (what < 0xd4)
		step_interrupt(r);
	else if (what < 0xd8)
		rig_advance(in_word(&r->in) << (what & 3) * 8);
	else if (what < 0xda)
		soft_function_reset(r->c);
	else if (what < 0xdc)
		rig_enable(r);
	else
		step_command(r);
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	started = false;
	rig_run(data, size, config, step);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_vfio_user.c - the server's side of the protocol: any bytes, any descriptors, any split of the
 * stream, and an end at any point. Messages are mostly well formed in all but one thing, because noise
 * alone does not get past the header.
 */
#define _GNU_SOURCE
#include "soft_rig.h"

#include <sys/socket.h>
#include <unistd.h>

#define MAX_MESSAGE 512u
#define MAX_FDS 20u

/* Send with descriptors; a full socket or a server that left is no matter. */
static void send_part(struct rig *r, const void *data, size_t len, const int *fds, uint32_t nr_fds)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control;
	struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nr_fds) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
		memcpy(CMSG_DATA(&control.align), fds, sizeof(int) * nr_fds);
	}
	r->talked = true;
	if (len)
		(void)!sendmsg(r->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static struct {
	uint8_t bytes[MAX_MESSAGE];
	uint32_t len;
	uint32_t sent;
	int fds[MAX_FDS];
	uint32_t nr_fds;
} out;

static void forget(void)
{
	while (out.nr_fds)
		close(out.fds[--out.nr_fds]);
	out.len = out.sent = 0;
}

static void add(const void *data, uint32_t len)
{
	MUST(len <= MAX_MESSAGE - out.len);
	memcpy(out.bytes + out.len, data, len);
	out.len += len;
}

static void add_fd(struct rig *r)
{
	int fd = rig_kind_of_fd(r);

	if (fd >= 0)
		out.fds[out.nr_fds++] = fd;
}

static void version(struct rig *r)
{
	static const char *const texts[] = {
		"{\"capabilities\":{\"max_msg_fds\":8}}", "{\"capabilities\":{\"max_msg_fds\":0}}",
		"", "{\"max_msg_fds\" : 99999999999999999999}", "{\"max_msg_fds\"", "\"max_msg_fds\":",
	};
	struct vu_version v = { .major = VU_MAJOR, .minor = VU_MINOR };
	uint8_t how = in_u8(&r->in);
	const char *text = texts[how % 6];

	if (how & 0x80)
		v.minor = in_u16(&r->in);
	if ((how & 0xe0) == 0xe0)
		v.major = in_u16(&r->in);
	add(&v, sizeof(v));
	if ((how & 0x60) == 0x60) {
		char any[32];

		in_bytes(&r->in, any, sizeof(any));
		add(any, sizeof(any));
	} else {
		add(text, (uint32_t)strlen(text) + !(how & 8));
	}
}

static void dma(struct rig *r, bool map)
{
	struct vu_dma_map m = { .argsz = sizeof(m), .flags = 3, .address = rig_address(&r->in),
				.size = 4096ull * (1 + in_below(&r->in, RIG_PAGES)) };
	struct vu_dma_unmap u = { .argsz = sizeof(u), .address = m.address, .size = m.size };
	uint8_t how = in_u8(&r->in);

	if (how & 1) {
		m.address = u.address = RIG_IOVA;
		m.size = u.size = RIG_PAGES * 4096ull;
	}
	if (how & 2)
		u.flags = m.flags = (uint32_t)in_word(&r->in);
	if (how & 4)
		u.size = m.size = in_word(&r->in);
	if (how & 8)
		m.offset = in_word(&r->in);
	if (map && how & 0xc0)
		add_fd(r);
	if (map)
		add(&m, sizeof(m));
	else
		add(&u, sizeof(u));
}

static void info(struct rig *r, uint32_t size)
{
	struct vu_region_info i = { .argsz = in_u8(&r->in) & 1 ? 4096 : (uint32_t)in_word(&r->in),
				    .index = in_u8(&r->in) % 12 };

	add(&i, size);
}

static void irqs(struct rig *r)
{
	static const uint32_t flags[] = {
		VU_IRQ_DATA_EVENTFD | VU_IRQ_ACTION_TRIGGER, VU_IRQ_DATA_NONE | VU_IRQ_ACTION_TRIGGER,
		VU_IRQ_DATA_BOOL | VU_IRQ_ACTION_TRIGGER, VU_IRQ_DATA_NONE | VU_IRQ_ACTION_MASK,
		VU_IRQ_DATA_BOOL | VU_IRQ_ACTION_UNMASK, VU_IRQ_DATA_NONE | VU_IRQ_ACTION_UNMASK,
	};
	struct vu_irq_set s = { .argsz = sizeof(s), .index = VU_IRQ_MSIX };
	uint8_t how = in_u8(&r->in);

	s.flags = how & 0x80 ? (uint32_t)in_word(&r->in) : flags[how % 6];
	s.start = how & 0x40 ? (uint32_t)in_word(&r->in) : 0;
	s.count = in_below(&r->in, 8);
	if (how & 0x20)
		s.count = (uint32_t)in_word(&r->in);
	if (how & 0x10)
		s.index = in_u8(&r->in);
	add(&s, sizeof(s));
	if (s.flags & VU_IRQ_DATA_BOOL) {
		uint8_t bools[8];

		in_bytes(&r->in, bools, sizeof(bools));
		add(bools, s.count < 8 ? s.count : 8);
	}
	if (s.flags & VU_IRQ_DATA_EVENTFD) {
		for (uint32_t i = 0; i < s.count && i < 8; i++)
			add_fd(r);
	}
}

static void access_region(struct rig *r, bool write)
{
	static const uint32_t regions[] = { VU_REGION_BAR0, VU_REGION_BAR0, VU_REGION_CONFIG,
					    VU_REGION_CMB };
	struct vu_access a = { .region = regions[in_below(&r->in, 4)] };
	uint8_t how = in_u8(&r->in), data[64];

	a.offset = how & 1 ? in_word(&r->in) : in_u8(&r->in) & 0x7cu;
	a.count = how & 2 ? (uint32_t)in_word(&r->in) : 4u << (how >> 7);
	if (how & 4)
		a.region = in_u8(&r->in);
	add(&a, sizeof(a));
	if (write) {
		in_bytes(&r->in, data, sizeof(data));
		add(data, a.count < sizeof(data) ? a.count : sizeof(data));
	}
}

static void payload(struct rig *r, uint16_t command)
{
	uint8_t any[64];

	switch (command) {
	case VU_VERSION:
		version(r);
		break;
	case VU_DMA_MAP:
	case VU_DMA_UNMAP:
		dma(r, command == VU_DMA_MAP);
		break;
	case VU_DEVICE_GET_INFO:
	case VU_DEVICE_GET_IRQ_INFO:
		info(r, 16);
		break;
	case VU_DEVICE_GET_REGION_INFO:
		info(r, 32);
		break;
	case VU_DEVICE_SET_IRQS:
		irqs(r);
		break;
	case VU_REGION_READ:
	case VU_REGION_WRITE:
		access_region(r, command == VU_REGION_WRITE);
		break;
	case VU_DEVICE_RESET:
		break;
	default:
		in_bytes(&r->in, any, sizeof(any));
		add(any, in_u8(&r->in) % sizeof(any));
	}
}

static void make_message(struct rig *r)
{
	uint8_t how = in_u8(&r->in);
	struct vu_header head = { .msg_id = in_u8(&r->in), .command = in_u8(&r->in) % 16 };

	forget();
	add(&head, sizeof(head));
	payload(r, head.command);
	head.size = out.len;
	if (how == 0xff)
		in_bytes(&r->in, &head, sizeof(head));
	else if (how >= 0xf8)
		head.size = (uint32_t)in_word(&r->in);
	else if (how >= 0xf0)
		head.flags = (uint32_t)in_word(&r->in);
	else if (how >= 0xe0)
		head.flags = VU_NO_REPLY;
	for (uint32_t n = how >= 0xd8 && how < 0xe0 ? in_below(&r->in, MAX_FDS) : 0;
	     n && out.nr_fds < MAX_FDS; n--)
		add_fd(r);
	memcpy(out.bytes, &head, sizeof(head));
}

/* The next piece of the message; what is left of it comes after other things happened. */
static void send_some(struct rig *r, uint32_t most)
{
	uint32_t left = out.len - out.sent, len = most && most < left ? most : left;

	send_part(r, out.bytes + out.sent, len, out.fds, out.nr_fds);
	out.sent += len;
	while (out.nr_fds)
		close(out.fds[--out.nr_fds]);
}

static void config(struct rig *r, struct udrv_soft_config *cfg)
{
	uint8_t how = in_u8(&r->in);

	cfg->flags = how & 1 ? UDRV_SOFT_TRAP_DOORBELLS : 0;
	cfg->cmb_bytes = 16384;
}

static bool step(struct rig *r)
{
	uint8_t what = in_u8(&r->in), noise[32];

	if (out.sent < out.len) {
		send_some(r, what & 0x80 ? what & 0x3f : 0);
		return true;
	}
	if (what < 0xb0) {
		make_message(r);
		send_some(r, what & 1 ? in_u8(&r->in) : 0);
	} else if (what < 0xb8) {
		/* two at once: the second one's descriptors come with the first one's bytes */
		make_message(r);
		send_some(r, 0);
		make_message(r);
		send_some(r, 0);
	} else if (what < 0xbc) {
		in_bytes(&r->in, noise, sizeof(noise));
		send_part(r, noise, 1 + what % sizeof(noise), NULL, 0);
	} else if (what < 0xc8) {
		rig_cut(r);
	} else if (what < 0xd0) {
		if (!r->c->dma.nr)
			rig_map(r);
		if (!r->c->nr_cqs && r->c->dma.nr)
			rig_enable(r);
	} else if (what < 0xe0) {
		struct nv_sqe cmd;

		in_bytes(&r->in, &cmd, sizeof(cmd));
		rig_put(r, in_below(&r->in, RIG_QUEUES), &cmd);
	} else if (what == 0xfe) {
		/* longer than any message may be, whatever its header says */
		static uint8_t flood[96 << 10];

		in_bytes(&r->in, flood, 32);
		send_part(r, flood, sizeof(flood), NULL, 0);
	} else if (what < 0xe8) {
		atomic_store(&r->c->doorbells[in_u8(&r->in)], (uint32_t)in_word(&r->in));
	} else if (what == 0xff) {
		return false; /* hang up here */
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	forget();
	rig_run(data, size, config, step);
	forget();
	return 0;
}

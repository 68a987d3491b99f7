// SPDX-License-Identifier: Apache-2.0
/*
 * vfio-user commands. A handler gets a payload whose length is all that is known of it, and
 * returns 0 with a reply in place, or a positive errno for an error reply. Only what makes the
 * connection useless closes it.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CLIENT_FDS 1024u

static uint32_t payload_len(const struct conn *conn)
{
	return conn->head.size - (uint32_t)sizeof(conn->head);
}

static void reply_with(struct conn *conn, const void *data, uint32_t len)
{
	memcpy(conn->out + conn->out_len, data, len);
	conn->out_len += len;
}

/* --- VERSION ------------------------------------------------------------------------------- */

/*
 * The one capability that concerns us is how many descriptors the client takes in a message,
 * and a search for its name finds it in any JSON. What is no JSON is not noticed; nothing depends
 * on it.
 */
static bool parse_capabilities(struct conn *conn, const char *text, uint32_t len)
{
	static const char key[] = "\"max_msg_fds\"";
	const char *at;
	char *end;
	unsigned long n;

	if (!len)
		return true;
	if (text[len - 1] != '\0')
		return false;
	at = strstr(text, key);
	if (!at)
		return true;
	at += sizeof(key) - 1;
	at += strspn(at, " \t\r\n");
	if (*at++ != ':')
		return false;
	at += strspn(at, " \t\r\n");
	if (*at < '0' || *at > '9')
		return false;
	errno = 0;
	n = strtoul(at, &end, 10);
	if (errno)
		return false;
	conn->client_fds = n < MAX_CLIENT_FDS ? (uint32_t)n : MAX_CLIENT_FDS;
	return true;
}

static int version(struct udrv_soft *c, struct conn *conn)
{
	struct vu_version v;
	uint32_t len = payload_len(conn);
	int n;

	(void)c;
	if (conn->negotiated || len < sizeof(v) || conn->nr_fds)
		return EINVAL;
	memcpy(&v, conn->in, sizeof(v));
	if (v.major != VU_MAJOR)
		return EINVAL;
	if (!parse_capabilities(conn, (const char *)conn->in + sizeof(v),
				len - (uint32_t)sizeof(v)))
		return EINVAL;
	if (v.minor > VU_MINOR)
		v.minor = VU_MINOR;
	reply_with(conn, &v, sizeof(v));
	n = snprintf((char *)conn->out + conn->out_len, sizeof(conn->out) - conn->out_len,
		     "{\"capabilities\":{\"max_msg_fds\":%u,\"max_data_xfer_size\":%u,"
		     "\"max_dma_maps\":%u,\"pgsizes\":4096}}",
		     CONN_MAX_FDS, CONN_MAX_XFER, DMA_MAX_MAPS);
	conn->out_len += (uint32_t)n + 1; /* with the terminating NUL */
	conn->negotiated = true;
	return 0;
}

/* --- memory -------------------------------------------------------------------------------- */

static int dma_map(struct udrv_soft *c, struct conn *conn)
{
	struct vu_dma_map m;

	if (payload_len(conn) != sizeof(m) || conn->nr_fds > 1)
		return EINVAL;
	memcpy(&m, conn->in, sizeof(m));
	if (m.argsz < sizeof(m))
		return EINVAL;
	static_assert(DMA_READ == 1 && DMA_WRITE == 2, "rights are the message's flags");
	/*
	 * Without a descriptor the memory could be reached by messages to the client, which we do
	 * not send: it is recorded, and a command that points into it fails.
	 */
	return -dma_add(&c->dma, m.address, m.size, m.flags, conn->nr_fds ? conn->fds[0] : -1,
			m.offset);
}

static int dma_unmap(struct udrv_soft *c, struct conn *conn)
{
	struct vu_dma_unmap m;
	int err = 0;

	if (payload_len(conn) != sizeof(m) || conn->nr_fds)
		return EINVAL;
	memcpy(&m, conn->in, sizeof(m));
	if (m.argsz < sizeof(m))
		return EINVAL;
	if (m.flags == VU_UNMAP_ALL && !m.address && !m.size) {
		dma_clear(&c->dma);
		soft_cmb_unmapped(c);
	} else if (m.flags) {
		return EOPNOTSUPP; /* dirty pages are not tracked */
	} else if (soft_cmb_is(c, m.address)) {
		return ENOENT; /* the controller's own: CMBMSC takes it away */
	} else {
		err = -dma_remove(&c->dma, m.address, m.size);
	}
	reply_with(conn, &m, sizeof(m));
	return err;
}

/* --- what there is ------------------------------------------------------------------------- */

static int device_info(struct udrv_soft *c, struct conn *conn)
{
	struct vu_device_info info;

	(void)c;
	if (payload_len(conn) < sizeof(info))
		return EINVAL;
	memcpy(&info, conn->in, sizeof(info));
	if (info.argsz < sizeof(info))
		return EINVAL;
	info = (struct vu_device_info){ .argsz = sizeof(info),
					.flags = VU_DEVICE_RESETS | VU_DEVICE_PCI,
					.num_regions = VU_REGIONS, .num_irqs = VU_IRQS };
	reply_with(conn, &info, sizeof(info));
	return 0;
}

static uint32_t region_size(const struct udrv_soft *c, uint32_t index)
{
	if (index == VU_REGION_CMB)
		return (uint32_t)c->cmb.bytes;
	if (index == VU_REGION_BAR0)
		return BAR0_SIZE;
	return index == VU_REGION_CONFIG ? PCI_CONFIG_SIZE : 0;
}

/*
 * Only the doorbells can be mapped, and the controller memory buffer: a register has to be told that
 * it was written.
 */
static int region_info(struct udrv_soft *c, struct conn *conn)
{
	static const struct vu_sparse_cap cap = { .id = VU_CAP_SPARSE_MMAP, .version = 1,
						  .nr_areas = 1, .offset = BAR0_DOORBELLS,
						  .size = BAR0_DOORBELLS_SIZE };
	struct vu_region_info info;
	uint32_t room;
	bool mappable;

	if (payload_len(conn) < sizeof(info))
		return EINVAL;
	memcpy(&info, conn->in, sizeof(info));
	if (info.argsz < sizeof(info) || info.index >= VU_REGIONS)
		return EINVAL;
	room = info.argsz;
	mappable = info.index == VU_REGION_BAR0 && conn->client_fds &&
		   !(c->cfg.flags & UDRV_SOFT_TRAP_DOORBELLS);
	info = (struct vu_region_info){ .argsz = sizeof(info), .index = info.index,
					.size = region_size(c, info.index) };
	if (info.size)
		info.flags = VU_REGION_FLAG_READ | VU_REGION_FLAG_WRITE;
	if (info.index == VU_REGION_CMB && info.size && conn->client_fds) {
		info.flags |= VU_REGION_FLAG_MMAP; /* all of it */
		conn->out_fd = c->cmb.fd;
	}
	if (!mappable) {
		reply_with(conn, &info, sizeof(info));
		return 0;
	}
	info.flags |= VU_REGION_FLAG_MMAP | VU_REGION_FLAG_CAPS;
	info.argsz += (uint32_t)sizeof(cap);
	/* In a cut reply, too: QEMU refuses the flag without an offset before it looks at argsz. */
	info.cap_offset = sizeof(info);
	if (room >= info.argsz) {
		reply_with(conn, &info, sizeof(info));
		reply_with(conn, &cap, sizeof(cap));
		conn->out_fd = c->doorbell_fd;
	} else {
		/* argsz tells how much room to make before asking again. */
		reply_with(conn, &info, sizeof(info));
	}
	return 0;
}

static uint32_t irq_count(const struct udrv_soft *c, uint32_t index)
{
	return index == VU_IRQ_MSIX ? c->nr_vectors : 0;
}

static int irq_info(struct udrv_soft *c, struct conn *conn)
{
	struct vu_irq_info info;

	if (payload_len(conn) < sizeof(info))
		return EINVAL;
	memcpy(&info, conn->in, sizeof(info));
	if (info.argsz < sizeof(info) || info.index >= VU_IRQS)
		return EINVAL;
	info = (struct vu_irq_info){ .argsz = sizeof(info), .index = info.index,
				     .count = irq_count(c, info.index) };
	if (info.count)
		info.flags = VU_IRQ_EVENTFD | VU_IRQ_MASKABLE;
	reply_with(conn, &info, sizeof(info));
	return 0;
}

/* --- interrupts ---------------------------------------------------------------------------- */

/* A write to a pipe or a socket could block the only thread; one to a file would change it. */
static bool is_eventfd(int fd)
{
	static const char kind[] = "anon_inode:[eventfd]";
	char path[32], target[sizeof(kind)];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target));
	return n == sizeof(kind) - 1 && !memcmp(target, kind, sizeof(kind) - 1);
}

static int arm(struct udrv_soft *c, struct conn *conn, const struct vu_irq_set *s)
{
	if (conn->nr_fds && conn->nr_fds != s->count)
		return EINVAL;
	for (uint32_t i = 0; i < conn->nr_fds; i++) {
		if (!is_eventfd(conn->fds[i]))
			return EINVAL;
	}
	for (uint32_t i = 0; i < s->count; i++) {
		/* "If no file descriptors are provided, this de-assigns" */
		soft_irq_arm(c, s->start + i, conn->nr_fds ? conn->fds[i] : -1);
		if (conn->nr_fds)
			conn->fds[i] = -1;
	}
	return 0;
}

static int set_irqs(struct udrv_soft *c, struct conn *conn)
{
	const uint8_t *bools = conn->in + sizeof(struct vu_irq_set);
	struct vu_irq_set s;
	uint32_t data, action, limit, extra;

	if (payload_len(conn) < sizeof(s))
		return EINVAL;
	memcpy(&s, conn->in, sizeof(s));
	extra = payload_len(conn) - (uint32_t)sizeof(s);
	data = s.flags & VU_IRQ_DATA_MASK;
	action = s.flags & ~VU_IRQ_DATA_MASK;
	limit = s.index < VU_IRQS ? irq_count(c, s.index) : 0;
	if (s.argsz < sizeof(s) || s.start > limit || s.count > limit - s.start)
		return EINVAL;
	if (action != VU_IRQ_ACTION_TRIGGER && action != VU_IRQ_ACTION_MASK &&
	    action != VU_IRQ_ACTION_UNMASK)
		return EINVAL;
	if (data != VU_IRQ_DATA_EVENTFD && conn->nr_fds)
		return EINVAL;
	if (extra != (data == VU_IRQ_DATA_BOOL ? s.count : 0))
		return EINVAL;

	if (data == VU_IRQ_DATA_EVENTFD) {
		/* Eventfds that tell of masking are not offered. */
		return action == VU_IRQ_ACTION_TRIGGER && s.count ? arm(c, conn, &s) : EINVAL;
	}
	if (data != VU_IRQ_DATA_NONE && data != VU_IRQ_DATA_BOOL)
		return EINVAL;
	if (!s.count) {
		if (data != VU_IRQ_DATA_NONE || action != VU_IRQ_ACTION_TRIGGER || s.start)
			return EINVAL;
		for (uint32_t i = 0; i < limit; i++)
			soft_irq_arm(c, i, -1);
		return 0;
	}
	for (uint32_t i = 0; i < s.count; i++) {
		if (data == VU_IRQ_DATA_BOOL && !bools[i])
			continue;
		if (action == VU_IRQ_ACTION_TRIGGER)
			soft_irq_raise(c, s.start + i);
		else
			soft_irq_mask(c, s.start + i, action == VU_IRQ_ACTION_MASK);
	}
	return 0;
}

/* --- region access ------------------------------------------------------------------------- */

static int check_access(const struct udrv_soft *c, const struct conn *conn, struct vu_access *a)
{
	uint32_t size;

	if (payload_len(conn) < sizeof(*a) || conn->nr_fds)
		return EINVAL;
	memcpy(a, conn->in, sizeof(*a));
	size = a->region < VU_REGIONS ? region_size(c, a->region) : 0;
	if (!a->count || a->count > CONN_MAX_XFER || a->offset > size ||
	    a->count > size - a->offset)
		return EINVAL;
	return 0;
}

static int region_read(struct udrv_soft *c, struct conn *conn)
{
	struct vu_access a;
	int err = check_access(c, conn, &a);

	if (err)
		return err;
	if (payload_len(conn) != sizeof(a))
		return EINVAL;
	reply_with(conn, &a, sizeof(a));
	if (c->injecting && soft_fault_registers(c))
		memset(conn->out + sizeof(a), 0xff, a.count);
	else if (a.region == VU_REGION_BAR0)
		soft_bar_read(c, (uint32_t)a.offset, conn->out + sizeof(a), a.count);
	else if (a.region == VU_REGION_CMB)
		memcpy(conn->out + sizeof(a), c->cmb.memory + a.offset, a.count);
	else
		memcpy(conn->out + sizeof(a), &c->pci[a.offset], a.count);
	conn->out_len += a.count;
	return 0;
}

static int region_write(struct udrv_soft *c, struct conn *conn)
{
	const uint8_t *data = conn->in + sizeof(struct vu_access);
	struct vu_access a;
	int err = check_access(c, conn, &a);

	if (err)
		return err;
	if (payload_len(conn) != sizeof(a) + a.count)
		return EINVAL;
	if (c->injecting && soft_fault_registers(c))
		err = 0; /* nobody is there to take it */
	else if (a.region == VU_REGION_BAR0)
		err = -soft_bar_write(c, (uint32_t)a.offset, data, a.count);
	else if (a.region == VU_REGION_CMB)
		memcpy(c->cmb.memory + a.offset, data, a.count);
	else
		soft_pci_write(c, (uint32_t)a.offset, data, a.count);
	reply_with(conn, &a, sizeof(a));
	return err;
}

static int device_reset(struct udrv_soft *c, struct conn *conn)
{
	if (payload_len(conn) || conn->nr_fds)
		return EINVAL;
	soft_function_reset(c);
	return 0;
}

/* --- all of them --------------------------------------------------------------------------- */

typedef int (*message_fn)(struct udrv_soft *c, struct conn *conn);

static const message_fn handlers[] = {
	[VU_VERSION] = version,
	[VU_DMA_MAP] = dma_map,
	[VU_DMA_UNMAP] = dma_unmap,
	[VU_DEVICE_GET_INFO] = device_info,
	[VU_DEVICE_GET_REGION_INFO] = region_info,
	[VU_DEVICE_GET_IRQ_INFO] = irq_info,
	[VU_DEVICE_SET_IRQS] = set_irqs,
	[VU_REGION_READ] = region_read,
	[VU_REGION_WRITE] = region_write,
	[VU_DEVICE_RESET] = device_reset,
};

int server_handle(struct udrv_soft *c, struct conn *conn)
{
	uint32_t command = conn->head.command;
	int error = EOPNOTSUPP, err;

	c->counters->messages++;
	if (!conn->negotiated && command != VU_VERSION)
		error = EINVAL;
	else if (command < sizeof(handlers) / sizeof(handlers[0]) && handlers[command])
		error = handlers[command](c, conn);
	c->counters->refused += error != 0;
	err = conn_reply(conn, error);
	conn_forget(conn);
	if (err)
		return err;
	/* Without a version there is nothing to talk about. */
	return conn->negotiated ? 0 : -EPROTO;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * The table of faults while the controller runs. A datagram is a whole request, and is answered by
 * one: nothing is half applied, and no connection has to be kept. Who may send is who may open the
 * socket's file, or holds its other end.
 */
#define _GNU_SOURCE
#include "ctrl.h"
#include "fault.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Requests between two passes over the queues. */
#define TURN 4u

union message {
	struct udrv_control head;
	uint8_t bytes[sizeof(struct udrv_control) +
		      UDRV_FAULT_MAX * sizeof(struct udrv_fault_status)];
};

static_assert(sizeof(struct udrv_control) % 8 == 0, "what follows is aligned");

static uint32_t list(struct udrv_soft *c, union message *m)
{
	struct udrv_fault_status *to = (void *)(m->bytes + sizeof(m->head));
	const struct soft_inject *in = c->inject;

	for (uint32_t i = 0; i < in->nr; i++) {
		const struct fault_state *s = &in->fault[i];

		to[i] = (struct udrv_fault_status){ .id = s->id, .matched = s->matched,
						    .applied = s->applied, .fault = s->fault };
	}
	return in->nr;
}

static int answer(struct udrv_soft *c, union message *m, size_t len)
{
	const struct udrv_fault *faults = (const void *)(m->bytes + sizeof(m->head));
	struct udrv_control *head = &m->head;
	uint32_t count = head->count, op = head->op;

	head->count = 0;
	if (head->magic != UDRV_FAULT_MAGIC || head->version != UDRV_FAULT_VERSION)
		return EPROTO;
	switch (op) {
	case UDRV_CONTROL_LIST:
		head->count = list(c, m);
		return 0;
	case UDRV_CONTROL_ADD:
	case UDRV_CONTROL_REPLACE:
		if (count > UDRV_FAULT_MAX)
			return ENOSPC;
		if (len != sizeof(*head) + count * sizeof(*faults))
			return EPROTO;
		return -soft_inject_load(c, faults, count, op == UDRV_CONTROL_REPLACE, &head->id);
	case UDRV_CONTROL_CLEAR:
		return -soft_inject_unload(c, head->id);
	case UDRV_CONTROL_SYNC:
		truth_flush(&c->inject->truth);
		return 0;
	default:
		return EOPNOTSUPP;
	}
}

void soft_control(struct udrv_soft *c)
{
	static union message m;

	for (uint32_t i = 0; i < TURN; i++) {
		struct sockaddr_un from;
		socklen_t from_len = sizeof(from);
		/* MSG_TRUNC: the length of what came, not of what fitted */
		ssize_t got = recvfrom(c->cfg.control_fd, &m, sizeof(m), MSG_DONTWAIT | MSG_TRUNC,
				       (struct sockaddr *)&from, &from_len);
		size_t len;

		if (got < 0)
			return;
		if ((size_t)got < sizeof(m.head))
			continue;
		if ((size_t)got > sizeof(m))
			m.head.magic = 0;
		m.head.error = answer(c, &m, (size_t)got);
		m.head.magic = UDRV_FAULT_MAGIC;
		m.head.version = UDRV_FAULT_VERSION;
		len = sizeof(m.head) + m.head.count * sizeof(struct udrv_fault_status);
		/* A client that does not read its answers goes without. */
		sendto(c->cfg.control_fd, &m, len, MSG_DONTWAIT | MSG_NOSIGNAL,
		       from_len ? (struct sockaddr *)&from : NULL, from_len);
	}
}

void udrv_soft_control(struct udrv_soft *c)
{
	soft_control(c);
}

// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "conn.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define SEND_PATIENCE_MS 5000

/* CMSG_SPACE() of the largest set that we take, aligned as a cmsghdr wants it. */
union control {
	struct cmsghdr align;
	char space[CMSG_SPACE(sizeof(int) * CONN_MAX_FDS)];
};

void conn_init(struct conn *conn, int sock)
{
	memset(conn, 0, offsetof(struct conn, in)); /* not the two large buffers */
	conn->sock = sock;
	conn->out_fd = -1;
	conn->client_fds = 1; /* "If not specified then the receiver must assume 1" */
}

void conn_forget(struct conn *conn)
{
	for (uint32_t i = 0; i < conn->nr_fds; i++) {
		if (conn->fds[i] >= 0)
			close(conn->fds[i]);
	}
	conn->nr_fds = 0;
	conn->got = 0;
	conn->out_fd = -1;
	conn->out_len = 0;
}

/* Return: 0, or -EPROTO if there were more than fit (the rest is closed all the same). */
static int collect_fds(struct conn *conn, struct msghdr *msg)
{
	int err = msg->msg_flags & MSG_CTRUNC ? -EPROTO : 0;

	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR(msg, m)) {
		size_t n;

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(fd), sizeof(fd));
			if (conn->nr_fds < CONN_MAX_FDS) {
				conn->fds[conn->nr_fds++] = fd;
			} else {
				close(fd);
				err = -EPROTO;
			}
		}
	}
	return err;
}

/* Return: bytes received, 0 if there is nothing now, or a negative errno. */
static int receive_some(struct conn *conn, void *to, uint32_t len)
{
	union control control;
	struct iovec iov = { .iov_base = to, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(conn->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int err;

	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -errno;
	err = collect_fds(conn, &msg);
	if (err)
		return err;
	return n ? (int)n : -ECONNRESET;
}

int conn_receive(struct conn *conn)
{
	for (;;) {
		uint32_t left;
		uint8_t *to;
		int n;

		if (conn->got < sizeof(conn->head)) {
			left = (uint32_t)sizeof(conn->head) - conn->got;
			to = (uint8_t *)&conn->head + conn->got;
		} else {
			/* The size is checked below, as soon as the header is complete. */
			left = conn->head.size - conn->got;
			to = conn->in + (conn->got - sizeof(conn->head));
			if (!left)
				return 1;
		}
		n = receive_some(conn, to, left);
		if (n <= 0)
			return n;
		conn->got += (uint32_t)n;
		if (conn->got != sizeof(conn->head))
			continue;
		/* We send no commands, so nothing but a command can come. */
		if ((conn->head.flags & VU_TYPE_MASK) != VU_COMMAND)
			return -EPROTO;
		if (conn->head.size < sizeof(conn->head) ||
		    conn->head.size > sizeof(conn->head) + CONN_MAX_PAYLOAD)
			return -EPROTO;
	}
}

static int send_all(struct conn *conn, struct iovec *iov, int fd)
{
	/* For the whole reply: a client that takes a byte now and then would keep us for ever. */
	uint64_t deadline = soft_now_ns() + SEND_PATIENCE_MS * 1000000ull;
	struct pollfd pfd = { .fd = conn->sock, .events = POLLOUT };
	union control control = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

	if (fd >= 0) {
		struct cmsghdr *m = &control.align;

		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(fd));
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(m), &fd, sizeof(fd));
	}
	while (iov[0].iov_len + iov[1].iov_len) {
		ssize_t n = sendmsg(conn->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			uint64_t now = soft_now_ns();

			if (now >= deadline)
				return -ETIMEDOUT;
			poll(&pfd, 1, (int)((deadline - now) / 1000000u) + 1);
			continue;
		}
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n <= 0)
			continue;
		msg.msg_control = NULL; /* descriptors went with the first byte */
		msg.msg_controllen = 0;
		for (int i = 0; i < 2; i++) {
			size_t part = (size_t)n < iov[i].iov_len ? (size_t)n : iov[i].iov_len;

			iov[i].iov_base = (uint8_t *)iov[i].iov_base + part;
			iov[i].iov_len -= part;
			n -= (ssize_t)part;
		}
	}
	return 0;
}

int conn_reply(struct conn *conn, int error)
{
	struct vu_header head = { .msg_id = conn->head.msg_id, .command = conn->head.command,
				  .size = sizeof(head), .flags = VU_REPLY };
	struct iovec iov[2] = { { .iov_base = &head, .iov_len = sizeof(head) },
				{ .iov_base = conn->out, .iov_len = 0 } };

	if (conn->head.flags & VU_NO_REPLY)
		return 0;
	if (error) {
		head.flags |= VU_ERROR;
		head.error = (uint32_t)error;
		return send_all(conn, iov, -1);
	}
	head.size += conn->out_len;
	iov[1].iov_len = conn->out_len;
	return send_all(conn, iov, conn->out_fd);
}

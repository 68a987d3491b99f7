/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conn.h - messages in and out of one client's socket
 *
 * Receiving never blocks: a client that sends half a message must not hold up the queues. Sending
 * waits, but not for long: a client that does not read its replies is disconnected.
 */
#ifndef UDRV_SOFT_CONN_H
#define UDRV_SOFT_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "ctrl.h"
#include "proto.h"

#define CONN_MAX_FDS 16u
#define CONN_MAX_XFER 65536u
#define CONN_MAX_PAYLOAD (sizeof(struct vu_access) + CONN_MAX_XFER)

/**
 * struct conn - one client
 * @got:	bytes of the current message that have come, header included
 * @fds:	descriptors that came with it; a handler that keeps one puts -1 in its place
 * @negotiated:	VERSION is done; nothing else is answered before
 * @client_fds:	how many descriptors the client takes in one message
 * @out_fd:	descriptor to send with the reply, or -1; it stays the controller's
 * @out_len:	bytes of reply payload in @out
 */
struct conn {
	int sock;
	uint32_t got;
	struct vu_header head;
	uint32_t nr_fds;
	int fds[CONN_MAX_FDS];
	bool negotiated;
	uint32_t client_fds;
	int out_fd;
	uint32_t out_len;
	/* aligned, because messages are read in place */
	_Alignas(8) uint8_t in[CONN_MAX_PAYLOAD];
	_Alignas(8) uint8_t out[CONN_MAX_PAYLOAD];
};

void conn_init(struct conn *conn, int sock);

/* conn_forget() - drop the current message and close what came with it */
void conn_forget(struct conn *conn);

/**
 * conn_receive() - go on with the current message
 *
 * Return: 1 if it is complete (head, in, fds), 0 if more has to come, -ECONNRESET if the peer is
 * gone, -EPROTO if it broke the framing, or another negative errno.
 */
int conn_receive(struct conn *conn);

/**
 * conn_reply() - answer the current message with what is in @conn->out
 * @error:	0, or a positive errno: the reply is then a header alone
 *
 * Return: 0 or a negative errno, after which the connection cannot be used.
 */
int conn_reply(struct conn *conn, int error);

/**
 * server_handle() - execute the message that conn_receive() completed, and answer it
 *
 * Return: 0, or a negative errno if the connection is to be closed.
 */
int server_handle(struct udrv_soft *c, struct conn *conn);

#endif /* UDRV_SOFT_CONN_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doorbell.h - telling a device that a queue's tail or head moved, where that takes more than a
 * store to a mapped register:
 *
 * - shadow doorbells (Doorbell Buffer Config, NVMe Base 2.0, 5.8 and appendix B.5): the value goes
 *   to a page of ours that the device reads, and to the register only if the device asks for that
 *   by EventIdx;
 * - posted writes: a register that cannot be mapped is written by a message that the transport made
 *   beforehand, all but its value (a vfio-user server that traps doorbells).
 *
 * A queue with neither has no struct udrv_doorbell: its path is one branch and one store.
 *
 * EventIdx is the device's, so it is not believed: at worst it costs a wake-up, which
 * udrv_doorbell_force() makes up for (see udrv_qp_ring()).
 */
#ifndef UDRV_DOORBELL_H
#define UDRV_DOORBELL_H

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <udrv/barrier.h>
#include <udrv/compiler.h>

/* Bytes of the largest message that a posted write may be. */
#define UDRV_POST_MAX 64u
/* How long a posted write waits for room in the socket before it is given up. */
#define UDRV_POST_PATIENCE_MS 1000

/**
 * struct udrv_doorbell - how one doorbell is written
 * @mmio:	the register, or NULL: by message
 * @shadow:	its entry in the shadow doorbell buffer, or NULL: none
 * @event:	its entry in the EventIdx buffer; NULL if and only if @shadow is
 * @post_fd:	the socket for messages
 * @post_len:	bytes in @post, 0 if there is a register
 * @post_at:	where in it the value's four bytes lie, in host byte order
 */
struct udrv_doorbell {
	volatile uint32_t *mmio;
	volatile uint32_t *shadow;
	const volatile uint32_t *event;
	int32_t post_fd;
	uint32_t post_len;
	uint32_t post_at;
	uint8_t post[UDRV_POST_MAX];
};

/**
 * udrv_doorbell_need_event() - does a doorbell that moves from @old to @value pass @event?
 *
 * All three are taken modulo 2^16; a doorbell that wraps passes all that lies above it.
 */
static inline int udrv_doorbell_need_event(uint16_t event, uint16_t value, uint16_t old)
{
	return (uint16_t)(value - event - 1) < (uint16_t)(value - old);
}

/* Send the message. A peer that is gone, or that does not read for too long, is found elsewhere. */
static __attribute__((noinline, cold, unused)) void
__udrv_doorbell_post(const struct udrv_doorbell *db, uint32_t value)
{
	struct pollfd pfd = { .fd = db->post_fd, .events = POLLOUT };
	uint8_t message[UDRV_POST_MAX];
	int tries = 2;

	memcpy(message, db->post, db->post_len);
	memcpy(message + db->post_at, &value, sizeof(value));
	/* So small a message goes into a UNIX stream socket as a whole or not at all. */
	while (send(db->post_fd, message, db->post_len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN || !--tries)
			return;
		poll(&pfd, 1, UDRV_POST_PATIENCE_MS);
	}
}

/* udrv_doorbell_force() - write the register, whatever EventIdx says */
static inline void udrv_doorbell_force(const struct udrv_doorbell *db, uint32_t value)
{
	if (db->mmio)
		udrv_mmio_write32(db->mmio, value);
	else
		__udrv_doorbell_post(db, value);
}

/**
 * udrv_doorbell_write() - a queue's tail or head moved
 * @value:	the new one
 * @old:	the one that this was called with last, 0 before the first time
 *
 * The caller's own barrier stands before it, as before a register's write: what the new value
 * hands to the device was written (or read) before.
 *
 * Return: whether the register was written (else the shadow alone).
 */
static inline int udrv_doorbell_write(const struct udrv_doorbell *db, uint32_t value, uint32_t old)
{
	if (db->shadow) {
		/*
		 * release: pairs with the device's acquire load of the shadow, before it reads the
		 * entries that the value covers (or writes those that it frees)
		 */
		__atomic_store_n(db->shadow, value, __ATOMIC_RELEASE);
		/*
		 * The value before the look at EventIdx: pairs with the device's full barrier between
		 * its store of EventIdx and its last look at the shadow before it sleeps. One of both
		 * sees the other's store: either it stays awake, or we ring.
		 */
		udrv_dma_mb();
		if (!udrv_doorbell_need_event((uint16_t)*db->event, (uint16_t)value,
					      (uint16_t)old))
			return 0;
	}
	udrv_doorbell_force(db, value);
	return 1;
}

#endif /* UDRV_DOORBELL_H */

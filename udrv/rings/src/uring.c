// SPDX-License-Identifier: Apache-2.0
/*
 * uring.c - the memory of a ring.
 */
#include <stdlib.h>

#include <udrv/uring.h>

struct io_uring *udrv_uring_new(void)
{
	return calloc(1, sizeof(struct io_uring));
}

void udrv_uring_free(struct io_uring *ring)
{
	free(ring);
}

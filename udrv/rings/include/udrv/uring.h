/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - liburing, and what udrv.rings adds to it.
 */
#ifndef UDRV_URING_H
#define UDRV_URING_H

#include <liburing.h>
#include <udrv/compiler.h>

/* liburing.h has no version before 2.4; older than 2.3 is refused when udrv is built. */
#ifdef IO_URING_VERSION_MAJOR
#define UDRV_LIBURING_VERSION (IO_URING_VERSION_MAJOR * 100 + IO_URING_VERSION_MINOR)
#else
#define UDRV_LIBURING_VERSION 203
#endif

#ifndef UDRV_LIBURING_SHARED
#define UDRV_LIBURING_SHARED 0
#endif

/* Memory for a ring, zeroed, or NULL; the other frees it, and does not close the ring. */
struct io_uring *udrv_uring_new(void);
void udrv_uring_free(struct io_uring *ring);

#endif /* UDRV_URING_H */

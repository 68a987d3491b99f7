/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wait.h - waiting for completions: polling, sleeping on the interrupt's eventfd, or both.
 *
 * Apart from qp.h because sleeping is a system call.
 */
#ifndef UDRV_WAIT_H
#define UDRV_WAIT_H

#include <udrv/qp.h>
#include <udrv/spin.h>

/*
 * Reap at least min and at most max completions into out[0 ...], for at most timeout_ns. Spins for
 * spin_ns after the last completion, then sleeps on the pair's eventfd if it has one; spins on if
 * it has none. spin_ns = 0 sleeps at once, UDRV_SPIN_ONLY never, UDRV_SPIN_MEASURED after what the
 * waits before say; a poller that has seen nothing for
 * 100 us yields its CPU between looks.
 * Return: how many were delivered (less than min when the time ran out), or -UDRV_E* (-UDRV_EINVAL
 * for min > max: there would never be enough), or -errno of ppoll().
 */
int udrv_qp_wait(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t min,
		 uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);
int __udrv_qp_wait(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t min,
		   uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);

#endif /* UDRV_WAIT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_qp_priv.h - what the files of a queue over io_uring share, and nobody else needs.
 *
 *   uring_qp.c		posting, handing over
 *   uring_qp_reap.c	completion
 *   uring_qp_state.c	set-up, tables, quarantine, the end
 *   uring_qp_wait.c	io_uring_enter(2), polling and sleeping
 */
#ifndef UDRV_URING_QP_PRIV_H
#define UDRV_URING_QP_PRIV_H

#include <sys/ioctl.h>

#include <udrv/uring_qp.h>

/*
 * struct nvme_uring_cmd of <linux/nvme_ioctl.h>, which older distributions' headers do not have
 * (Linux 5.19).
 */
struct udrv_nvme_uring_cmd {
	uint8_t opcode;
	uint8_t flags;
	uint16_t rsvd1;
	uint32_t nsid;
	uint32_t cdw2;
	uint32_t cdw3;
	uint64_t metadata;
	uint64_t addr;
	uint32_t metadata_len;
	uint32_t data_len;
	uint32_t cdw10;
	uint32_t cdw11;
	uint32_t cdw12;
	uint32_t cdw13;
	uint32_t cdw14;
	uint32_t cdw15;
	uint32_t timeout_ms;
	uint32_t rsvd2;
};
static_assert(sizeof(struct udrv_nvme_uring_cmd) == 72, "it fits into the 80 bytes of an SQE128");

#define UDRV_NVME_URING_CMD_IO _IOWR('N', 0x80, struct udrv_nvme_uring_cmd)

/* An SQE128's command: from the 48th byte on. */
#define UDRV_URING_CMD_OFFSET 48
static_assert(offsetof(struct io_uring_sqe, addr3) == UDRV_URING_CMD_OFFSET, "so says the kernel");

static inline struct io_uring_sqe *udrv_uring_sqe(const struct udrv_uring_qp *qp, uint32_t index)
{
	return (struct io_uring_sqe *)(qp->sqes +
				       ((size_t)(index & qp->sq_mask) << qp->sqe_shift));
}

static inline struct udrv_nvme_uring_cmd *udrv_uring_command(struct io_uring_sqe *sqe)
{
	return (struct udrv_nvme_uring_cmd *)((char *)sqe + UDRV_URING_CMD_OFFSET);
}

extern uint32_t udrv_uring_fork_generation;

/* A number of this thread's that no other thread ever has. */
uint64_t udrv_uring_thread(void);

int udrv_uring_qp_enter(struct udrv_uring_qp *qp);
void udrv_uring_qp_leave(struct udrv_uring_qp *qp);
int __udrv_uring_qp_reap(struct udrv_uring_qp *qp, const struct udrv_completions *out,
			 uint32_t first, uint32_t max);
int __udrv_uring_qp_wait(struct udrv_uring_qp *qp, const struct udrv_completions *out,
			 uint32_t min, uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);
int __udrv_uring_qp_quarantine(struct udrv_uring_qp *qp, uint32_t slot);

/*
 * One io_uring_enter(): hand over what is pending, and wait for `min` completions for at most
 * timeout_ns. A call that took nothing for a passing reason (EAGAIN, EINTR, ...) is no failure:
 * `pending` tells. Return: 0 or -errno.
 */
int udrv_uring_qp_call(struct udrv_uring_qp *qp, uint32_t min, uint64_t timeout_ns);

/* Whether a call may bring completions that are not in the ring yet, or has something to hand over. */
static inline int udrv_uring_qp_has_more(const struct udrv_uring_qp *qp)
{
	if (qp->pending || (qp->flags & UDRV_URING_IOPOLL && qp->inflight))
		return 1;
	/* relaxed: a flag that is seen one look later is as good */
	return __atomic_load_n(qp->kflags, __ATOMIC_RELAXED) &
	       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Enable a ring that was made disabled, by the thread that it is to belong to. 0 or -errno. */
int udrv_uring_qp_enable(struct udrv_uring_qp *qp);

static inline int udrv_uring_qp_adopt(struct udrv_uring_qp *qp)
{
	return unlikely(qp->disabled) ? udrv_uring_qp_enable(qp) : 0;
}

#endif /* UDRV_URING_QP_PRIV_H */

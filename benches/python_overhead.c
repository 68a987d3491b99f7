// SPDX-License-Identifier: Apache-2.0
/* The C loops that benches/python_overhead.py compares Python with: the same calls, nothing else. */
#include <udrv/lane.h>

/* `rounds` times: submit all rows of the batch, reap as many. Return: 0, or what went wrong. */
int batches(struct udrv_qp *qp, const struct udrv_batch *batch, const struct udrv_completions *out,
	    uint32_t n, uint32_t rounds)
{
	uint32_t bad;

	while (rounds--) {
		int ret = udrv_qp_submit(qp, batch, 0, n, &bad);

		if (ret != (int)n)
			return ret ? ret : -1;
		ret = udrv_qp_reap(qp, out, 0, n);
		if (ret != (int)n)
			return ret ? ret : -2;
	}
	return 0;
}

int reads(struct udrv_lane *lane, const struct udrv_batch *target, uint64_t slba, uint32_t nlb,
	  uint32_t rounds)
{
	while (rounds--) {
		int ret = udrv_lane_run(lane, target, NVME_CMD_READ, slba, nlb);

		if (ret)
			return ret;
	}
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * The log of what was injected, written in one piece whenever the buffer is full, when asked for
 * (UDRV_CONTROL_SYNC) and at the end.
 */
#include "fault.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static_assert(sizeof(struct udrv_truth) == 72, "nothing is padded");

void truth_flush(struct truth_log *log)
{
	const uint8_t *at = (const uint8_t *)log->buffer;
	size_t left = log->nr * sizeof(log->buffer[0]);

	log->nr = 0;
	if (log->fd < 0)
		return;
	while (left) {
		ssize_t done = write(log->fd, at, left);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0) {
			/* A log with a hole in it would be worse than one that ends. */
			fprintf(stderr, "the ground truth ends here: %s\n", strerror(errno));
			log->fd = -1;
			return;
		}
		at += done;
		left -= (size_t)done;
	}
}

void truth_add(struct truth_log *log, const struct udrv_truth *entry)
{
	if (log->fd < 0)
		return;
	log->buffer[log->nr++] = *entry;
	if (log->nr == TRUTH_BUFFER)
		truth_flush(log);
}

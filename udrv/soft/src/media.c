// SPDX-License-Identifier: Apache-2.0
/* What is behind a namespace: memory, or a file. */
#define _GNU_SOURCE
#include "ctrl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int soft_media_open(struct soft_media *m, const struct udrv_soft_ns *ns)
{
	struct stat st;
	void *at;

	m->fd = -1;
	if (!ns->blocks || (ns->lba_shift != 9 && ns->lba_shift != 12) ||
	    ns->blocks > (uint64_t)INT64_MAX >> ns->lba_shift)
		return -EINVAL;
	m->blocks = ns->blocks;
	m->lba_shift = ns->lba_shift;
	m->bytes = ns->blocks << ns->lba_shift;
	if (ns->fd >= 0) {
		if (fstat(ns->fd, &st) < 0)
			return -errno;
		if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < m->bytes)
			return -EINVAL;
		m->fd = ns->fd;
		return 0;
	}
	/* Pages come into being when they are written, so a large namespace costs nothing. */
	at = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	m->memory = at;
	return 0;
}

void soft_media_close(struct soft_media *m)
{
	if (m->memory)
		munmap(m->memory, m->bytes);
	m->memory = NULL;
	m->fd = -1;
}

bool soft_media_sync(struct soft_media *m)
{
	return m->fd < 0 || fdatasync(m->fd) == 0;
}

/* The kernel reports the client's lost memory as EFAULT; all else is the media's fault. */
static uint16_t file_status(bool write)
{
	switch (errno) {
	case EFAULT:
		return NV_DATA_TRANSFER;
	case ENOSPC:
	case EDQUOT:
		return NV_CAPACITY;
	default:
		return write ? NV_WRITE_FAULT : NV_READ_ERROR;
	}
}

static uint16_t file_io(struct udrv_soft *c, struct soft_media *m, uint64_t at, bool write,
			bool durable)
{
	struct iovec *v = c->segment;
	uint32_t n = c->nr_segments;

	while (n) {
		ssize_t done;

		if (write)
			done = pwritev2(m->fd, v, (int)n, (off_t)at, durable ? RWF_DSYNC : 0);
		else
			done = preadv2(m->fd, v, (int)n, (off_t)at, 0);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return file_status(write);
		if (done == 0)
			return NV_READ_ERROR; /* somebody cut the file */
		at += (uint64_t)done;
		while (n && (size_t)done >= v->iov_len) {
			done -= (ssize_t)v->iov_len;
			v++;
			n--;
		}
		if (done) {
			v->iov_base = (uint8_t *)v->iov_base + done;
			v->iov_len -= (size_t)done;
		}
	}
	return NV_OK;
}

static void memory_io(struct udrv_soft *c, struct soft_media *m, uint64_t at, bool write)
{
	uint8_t *media = m->memory + at;

	for (uint32_t i = 0; i < c->nr_segments; i++) {
		const struct iovec *v = &c->segment[i];

		if (write)
			memcpy(media, v->iov_base, v->iov_len);
		else
			memcpy(v->iov_base, media, v->iov_len);
		media += v->iov_len;
	}
}

static uint16_t file_zero(struct soft_media *m, uint64_t at, uint64_t len)
{
	static const uint8_t zeroes[65536];

	/* Cheap where the file system can do it; written out where it cannot. */
	if (fallocate(m->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)at,
		      (off_t)len) == 0)
		return NV_OK;
	while (len) {
		size_t part = len < sizeof(zeroes) ? (size_t)len : sizeof(zeroes);
		ssize_t done = pwrite(m->fd, zeroes, part, (off_t)at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return file_status(true);
		at += (uint64_t)done;
		len -= (uint64_t)done;
	}
	return NV_OK;
}

uint16_t soft_media_zero(struct soft_media *m, uint64_t at, uint64_t len)
{
	if (m->fd >= 0)
		return file_zero(m, at, len);
	memset(m->memory + at, 0, len);
	return NV_OK;
}

uint16_t soft_media_io(struct udrv_soft *c, struct soft_media *m, uint64_t at, bool write,
		       bool durable)
{
	if (m->fd >= 0)
		return file_io(c, m, at, write, durable);
	memory_io(c, m, at, write);
	return NV_OK;
}

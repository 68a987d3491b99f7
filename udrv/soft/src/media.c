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

/* Pages come into being when they are written, so a large namespace costs nothing. */
static void *fresh(uint64_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

int soft_media_open(struct soft_media *m, const struct udrv_soft_ns *ns)
{
	struct stat st;

	*m = (struct soft_media){ .fd = -1 };
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
	m->memory = fresh(m->bytes);
	return m->memory ? 0 : -errno;
}

static void unmap(void *at, uint64_t bytes)
{
	if (at)
		munmap(at, bytes);
}

void soft_media_close(struct soft_media *m)
{
	unmap(m->memory, m->bytes);
	unmap(m->meta, m->meta_bytes);
	unmap(m->bad, m->bad_bytes);
	*m = (struct soft_media){ .fd = -1 };
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

static uint16_t file_zero(struct soft_media *m, uint64_t at, uint64_t len, bool give_back)
{
	static const uint8_t zeroes[65536];

	if (give_back && fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
				   (off_t)len) == 0)
		return NV_OK;
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

void soft_media_flip(struct soft_media *m, uint64_t at, uint32_t bit)
{
	uint8_t byte;

	if (m->fd < 0) {
		m->memory[at] ^= (uint8_t)(1u << bit);
		return;
	}
	if (pread(m->fd, &byte, 1, (off_t)at) != 1)
		return;
	byte ^= (uint8_t)(1u << bit);
	if (pwrite(m->fd, &byte, 1, (off_t)at) != 1)
		return; /* the write that it was to spoil is spoilt all the more */
}

/* Whole pages go back to the kernel, which gives zeroes for them when they are touched again. */
static void memory_zero(uint8_t *at, uint64_t len, bool give_back)
{
	uint64_t head = -(uintptr_t)at % NV_PAGE_SIZE, body;

	if (give_back && len >= head + NV_PAGE_SIZE) {
		body = (len - head) & ~(uint64_t)(NV_PAGE_SIZE - 1);
		if (madvise(at + head, body, MADV_DONTNEED) == 0) {
			memset(at, 0, head);
			memset(at + head + body, 0, len - head - body);
			return;
		}
	}
	memset(at, 0, len);
}

uint16_t soft_media_zero(struct soft_media *m, uint64_t at, uint64_t len, bool give_back)
{
	if (!len)
		return NV_OK;
	if (m->fd >= 0)
		return file_zero(m, at, len, give_back);
	memory_zero(m->memory + at, len, give_back);
	return NV_OK;
}

bool soft_media_erase(struct soft_media *m)
{
	if (m->meta)
		memory_zero(m->meta, m->meta_bytes, true);
	unmap(m->bad, m->bad_bytes);
	m->bad = NULL;
	m->nr_bad = 0;
	m->special &= ~MEDIA_BAD;
	return soft_media_zero(m, 0, m->bytes, true) == NV_OK;
}

bool soft_media_metadata(struct soft_media *m)
{
	unmap(m->meta, m->meta_bytes);
	m->meta = NULL;
	m->meta_bytes = m->blocks * m->ms;
	m->special &= ~MEDIA_METADATA;
	if (!m->ms)
		return true;
	m->meta = fresh(m->meta_bytes);
	m->special |= MEDIA_METADATA;
	return m->meta != NULL;
}

/* --- blocks that cannot be read ------------------------------------------------------------ */

/* The bits of one word that stand for blocks of a range; moves on to the next word. */
static uint64_t next_mask(uint64_t *slba, uint64_t *blocks)
{
	uint64_t first = *slba % 64, n = 64 - first < *blocks ? 64 - first : *blocks;

	*slba += n;
	*blocks -= n;
	return ~0ull >> (64 - n) << first;
}

bool soft_media_bad(struct soft_media *m, uint64_t slba, uint64_t blocks, bool bad)
{
	if (!m->bad && !bad)
		return true;
	if (!m->bad) {
		m->bad_bytes = (m->blocks + 63) / 64 * 8;
		m->bad = fresh(m->bad_bytes);
		if (!m->bad)
			return false;
	}
	if (!m->nr_bad && !bad)
		return true;
	while (blocks) {
		uint64_t *word = &m->bad[slba / 64];
		uint64_t mask = next_mask(&slba, &blocks);

		m->nr_bad -= (uint64_t)__builtin_popcountll(*word & mask);
		*word &= ~mask;
		if (bad) {
			*word |= mask;
			m->nr_bad += (uint64_t)__builtin_popcountll(mask);
		}
	}
	m->special = m->nr_bad ? m->special | MEDIA_BAD : m->special & ~MEDIA_BAD;
	return true;
}

bool soft_media_any_bad(const struct soft_media *m, uint64_t slba, uint64_t blocks)
{
	if (!m->nr_bad)
		return false;
	while (blocks) {
		const uint64_t *word = &m->bad[slba / 64];

		if (*word & next_mask(&slba, &blocks))
			return true;
	}
	return false;
}

bool soft_media_first_bad(const struct soft_media *m, uint64_t *lba)
{
	uint64_t words = m->nr_bad ? (m->blocks + 63) / 64 : 0;

	for (uint64_t i = 0; i < words; i++) {
		if (!m->bad[i])
			continue;
		*lba = i * 64 + (uint64_t)__builtin_ctzll(m->bad[i]);
		return true;
	}
	return false;
}

/* --- what commands use --------------------------------------------------------------------- */

bool soft_sync_all(struct udrv_soft *c)
{
	bool good = true;

	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++)
		good &= !c->media[i].allocated || soft_media_sync(&c->media[i]);
	return good;
}

uint16_t soft_media_io(struct udrv_soft *c, struct soft_media *m, uint64_t at, bool write,
		       bool durable)
{
	if (write && c->inject->tear != UINT32_MAX)
		soft_fault_tear(c, m->lba_shift);
	if (m->fd >= 0)
		return file_io(c, m, at, write, durable);
	memory_io(c, m, at, write);
	return NV_OK;
}

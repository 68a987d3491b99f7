// SPDX-License-Identifier: Apache-2.0
/*
 * I/O commands: from PRPs to segments of the client's memory (NVMe 1.4, 4.3), and from those to
 * the media.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- physical region pages ----------------------------------------------------------------- */

static bool add_segment(struct udrv_soft *c, uint64_t iova, uint32_t len, uint32_t rights)
{
	uint8_t *at = dma_at(&c->dma, &c->data_ref, iova, len, rights);
	struct iovec *last;

	if (!at)
		return false;
	if (c->nr_segments) {
		last = &c->segment[c->nr_segments - 1];
		if ((uint8_t *)last->iov_base + last->iov_len == at) {
			last->iov_len += len;
			return true;
		}
	}
	/* There is room: a transfer touches (1 << MDTS) + 1 pages at most, and MDTS is checked. */
	c->segment[c->nr_segments++] = (struct iovec){ .iov_base = at, .iov_len = len };
	return true;
}

/*
 * A list lies in one page and starts anywhere in it; if it does not hold all pages, its last
 * entry in that page points to the next list. Every entry is read once.
 */
static uint16_t map_list(struct udrv_soft *c, uint64_t list, uint32_t len, uint32_t rights)
{
	if (list % 8)
		return NV_PRP_OFFSET;
	while (len) {
		uint32_t room = (NV_PAGE_SIZE - (uint32_t)(list % NV_PAGE_SIZE)) / 8;
		uint32_t pages = (len + NV_PAGE_SIZE - 1) / NV_PAGE_SIZE;
		uint32_t here = pages > room ? room - 1 : pages;
		uint32_t bytes = (pages > room ? room : pages) * 8;
		const uint64_t *entry = dma_at(&c->dma, &c->list_ref, list, bytes, DMA_READ);

		if (!entry)
			return NV_DATA_TRANSFER;
		for (uint32_t i = 0; i < here; i++) {
			uint64_t page = __atomic_load_n(&entry[i], __ATOMIC_RELAXED);
			uint32_t part = len < NV_PAGE_SIZE ? len : NV_PAGE_SIZE;

			if (page % NV_PAGE_SIZE)
				return NV_PRP_OFFSET;
			if (!add_segment(c, page, part, rights))
				return NV_DATA_TRANSFER;
			len -= part;
		}
		if (len) {
			/* A list of one entry at the end of a page is a mere pointer (here = 0). */
			list = __atomic_load_n(&entry[here], __ATOMIC_RELAXED);
			if (list % NV_PAGE_SIZE)
				return NV_PRP_OFFSET;
		}
	}
	return NV_OK;
}

uint16_t soft_map_data(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t len,
		       uint32_t rights)
{
	uint32_t first = NV_PAGE_SIZE - (uint32_t)(cmd->prp1 % NV_PAGE_SIZE);

	c->nr_segments = 0;
	if (cmd->prp1 % 4)
		return NV_PRP_OFFSET;
	if (first > len)
		first = len;
	if (!add_segment(c, cmd->prp1, first, rights))
		return NV_DATA_TRANSFER;
	len -= first;
	if (!len)
		return NV_OK;
	if (len > NV_PAGE_SIZE)
		return map_list(c, cmd->prp2, len, rights);
	if (cmd->prp2 % NV_PAGE_SIZE)
		return NV_PRP_OFFSET;
	return add_segment(c, cmd->prp2, len, rights) ? NV_OK : NV_DATA_TRANSFER;
}

uint16_t soft_answer(struct udrv_soft *c, const struct nv_sqe *cmd, const void *data, uint32_t len)
{
	uint16_t status = soft_map_data(c, cmd, len, DMA_WRITE);
	const uint8_t *from = data;

	if (status)
		return status;
	for (uint32_t i = 0; i < c->nr_segments; i++) {
		memcpy(c->segment[i].iov_base, from, c->segment[i].iov_len);
		from += c->segment[i].iov_len;
	}
	return NV_OK;
}

/* --- the media ----------------------------------------------------------------------------- */

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

/* --- commands ------------------------------------------------------------------------------ */

static bool in_range(const struct soft_media *m, uint64_t slba, uint32_t blocks)
{
	return slba < m->blocks && blocks <= m->blocks - slba;
}

static uint16_t note_media(struct udrv_soft *c, uint16_t status)
{
	if ((status & 0x700) == 0x200)
		c->stat.media_errors++;
	return status;
}

static uint16_t read_write(struct udrv_soft *c, const struct nv_sqe *cmd, bool write)
{
	struct soft_media *m = &c->media[cmd->nsid - 1];
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t len = (uint64_t)blocks << m->lba_shift;
	bool durable = cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache;
	uint16_t status;

	if (len > (uint64_t)NV_PAGE_SIZE << c->cfg.mdts)
		return NV_INVALID_FIELD; /* larger than MDTS: 5.15.2.2 */
	if (!in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	status = soft_map_data(c, cmd, (uint32_t)len, write ? DMA_READ : DMA_WRITE);
	if (status)
		return status;
	if (m->fd < 0)
		memory_io(c, m, slba << m->lba_shift, write);
	else
		status = file_io(c, m, slba << m->lba_shift, write, durable);
	if (status)
		return note_media(c, status);
	if (write) {
		c->stat.writes++;
		c->stat.sectors_written += len >> 9;
	} else {
		c->stat.reads++;
		c->stat.sectors_read += len >> 9;
	}
	return NV_OK;
}

static uint16_t write_zeroes(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	struct soft_media *m = &c->media[cmd->nsid - 1];
	uint64_t slba = (uint64_t)cmd->cdw11 << 32 | cmd->cdw10;
	uint32_t blocks = (cmd->cdw12 & 0xffff) + 1;
	uint64_t at = slba << m->lba_shift, len = (uint64_t)blocks << m->lba_shift;
	uint16_t status = NV_OK;

	if (!in_range(m, slba, blocks))
		return NV_LBA_RANGE;
	if (m->fd < 0) {
		memset(m->memory + at, 0, len);
		return NV_OK;
	}
	status = file_zero(m, at, len);
	if (!status && (cmd->cdw12 & NV_IO_FUA || !c->feature.write_cache) && !soft_media_sync(m))
		status = NV_WRITE_FAULT;
	return note_media(c, status);
}

static uint16_t flush(struct udrv_soft *c, uint32_t nsid)
{
	uint16_t status = NV_OK;

	for (uint32_t i = 0; i < c->cfg.nr_ns; i++) {
		if ((nsid == NV_NSID_ALL || nsid == i + 1) && !soft_media_sync(&c->media[i]))
			status = NV_WRITE_FAULT;
	}
	return note_media(c, status);
}

uint16_t soft_io(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	bool known = cmd->opcode == NV_IO_READ || cmd->opcode == NV_IO_WRITE ||
		     cmd->opcode == NV_IO_FLUSH || cmd->opcode == NV_IO_WRITE_ZEROES;

	if (!known)
		return NV_INVALID_OPCODE;
	/* Neither fused operations nor SGLs are offered. */
	if (cmd->flags & (NV_FLAGS_FUSE | NV_FLAGS_PSDT))
		return NV_INVALID_FIELD;
	if (cmd->opcode == NV_IO_FLUSH && cmd->nsid == NV_NSID_ALL)
		return flush(c, NV_NSID_ALL);
	if (cmd->nsid < 1 || cmd->nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (!soft_ns_active(c, cmd->nsid))
		return NV_INVALID_FIELD; /* a valid NSID that is inactive: 6.1.5 */
	switch (cmd->opcode) {
	case NV_IO_FLUSH:
		return flush(c, cmd->nsid);
	case NV_IO_WRITE_ZEROES:
		return write_zeroes(c, cmd);
	default:
		return read_write(c, cmd, cmd->opcode == NV_IO_WRITE);
	}
}

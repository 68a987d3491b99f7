// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "dma.h"

#include <errno.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define MAP_GRAIN 4096u

/* Index of the first mapping that ends above @iova; t->nr if there is none. */
static uint32_t first_ending_above(const struct dma_table *t, uint64_t iova)
{
	uint32_t low = 0, high = t->nr;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;
		const struct dma_map *m = &t->maps[mid];

		/* An end of 2^64 cannot occur: dma_add() refuses it. */
		if (m->iova + m->size > iova)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static int map_file(int fd, uint64_t offset, uint64_t size, uint32_t rights, uint8_t **host)
{
	int prot = 0;
	struct statfs fs;
	struct stat st;
	void *at;

	if (fstat(fd, &st) < 0)
		return -errno;
	/* Only files have a size that can be checked, and pages that stay. */
	if (!S_ISREG(st.st_mode) || st.st_size < 0)
		return -EINVAL;
	if (offset > (uint64_t)st.st_size || size > (uint64_t)st.st_size - offset)
		return -EINVAL;
	/* Of huge pages whole ones are mapped, and a part of one could never be unmapped again. */
	if (fstatfs(fd, &fs) < 0)
		return -errno;
	if (fs.f_type == HUGETLBFS_MAGIC && (offset | size) % (uint64_t)fs.f_bsize)
		return -EINVAL;
	if (rights & DMA_READ)
		prot |= PROT_READ;
	if (rights & DMA_WRITE)
		prot |= PROT_WRITE;
	at = mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset);
	if (at == MAP_FAILED)
		return -errno;
	*host = at;
	return 0;
}

int dma_add(struct dma_table *t, uint64_t iova, uint64_t size, uint32_t rights, int fd,
	    uint64_t offset)
{
	uint8_t *host = NULL;
	uint32_t i;
	int err;

	if (!size || (iova | size | offset) % MAP_GRAIN || size > UINT64_MAX - iova ||
	    size > SIZE_MAX || offset > INT64_MAX - size)
		return -EINVAL;
	if (!rights || rights & ~(DMA_READ | DMA_WRITE))
		return -EINVAL;
	i = first_ending_above(t, iova);
	if (i < t->nr && t->maps[i].iova < iova + size)
		return -EEXIST;
	if (t->nr == DMA_MAX_MAPS)
		return -ENOSPC;
	if (fd >= 0) {
		err = map_file(fd, offset, size, rights, &host);
		if (err)
			return err;
	}
	memmove(&t->maps[i + 1], &t->maps[i], (t->nr - i) * sizeof(t->maps[0]));
	t->maps[i] = (struct dma_map){ .iova = iova, .size = size, .host = host,
				       .rights = rights };
	t->nr++;
	return 0;
}

int dma_remove(struct dma_table *t, uint64_t iova, uint64_t size)
{
	uint32_t i = first_ending_above(t, iova);

	if (i == t->nr || t->maps[i].iova != iova || t->maps[i].size != size)
		return -ENOENT;
	if (t->maps[i].host)
		munmap(t->maps[i].host, size);
	t->nr--;
	memmove(&t->maps[i], &t->maps[i + 1], (t->nr - i) * sizeof(t->maps[0]));
	t->gen++;
	return 0;
}

void dma_clear(struct dma_table *t)
{
	for (uint32_t i = 0; i < t->nr; i++) {
		if (t->maps[i].host)
			munmap(t->maps[i].host, t->maps[i].size);
	}
	t->nr = 0;
	t->gen++;
}

void *dma_at_slow(struct dma_table *t, struct dma_ref *ref, uint64_t iova, uint32_t len,
		  uint32_t rights)
{
	uint32_t i = first_ending_above(t, iova);
	const struct dma_map *m;
	uint64_t at;

	if (i == t->nr || iova < t->maps[i].iova)
		return NULL;
	m = &t->maps[i];
	at = iova - m->iova;
	if (!m->host || len > m->size - at || (m->rights & rights) != rights)
		return NULL;
	*ref = (struct dma_ref){ .iova = m->iova, .size = m->size, .host = m->host,
				 .rights = m->rights, .gen = t->gen };
	return m->host + at;
}

/*
 * The guard. SIGBUS on a mapped file is synchronous: it comes to the thread that touches the
 * lost page, in the middle of a copy, never while that thread changes the table. So the handler
 * may read the table. mmap() is a plain system call.
 */
static struct dma_table *_Atomic guarded;
volatile sig_atomic_t dma_guard_hits;
static struct sigaction guard_previous;

/* Return: whether the memory was the client's, and is replaced. */
static bool replace(const uint8_t *at)
{
	struct dma_table *t = atomic_load_explicit(&guarded, memory_order_relaxed);

	for (uint32_t i = 0; t && i < t->nr; i++) {
		struct dma_map *m = &t->maps[i];

		if (!m->host || at < m->host || at >= m->host + m->size)
			continue;
		/* All of it: a part of a huge-page mapping could not be replaced. */
		if (mmap(m->host, m->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
			 0) == MAP_FAILED)
			return false;
		m->lost = true;
		dma_guard_hits = 1;
		return true;
	}
	return false;
}

static void pass_on(int sig, siginfo_t *info, void *context)
{
	bool sent = info->si_code <= 0;

	if (guard_previous.sa_handler != SIG_DFL && guard_previous.sa_handler != SIG_IGN) {
		if (guard_previous.sa_flags & SA_SIGINFO)
			guard_previous.sa_sigaction(sig, info, context);
		else
			guard_previous.sa_handler(sig);
		return;
	}
	if (sent && guard_previous.sa_handler == SIG_IGN)
		return;
	/* Not ours and nobody else's: a fault comes again, this time for real; what was sent, too. */
	signal(SIGBUS, SIG_DFL);
	if (sent)
		raise(SIGBUS);
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	int saved = errno;

	/* Only a fault has an address; a broken memory cell (BUS_MCEERR_AR) is nothing to hide. */
	if (info->si_code != BUS_ADRERR || !replace(info->si_addr))
		pass_on(sig, info, context);
	errno = saved;
}

int dma_guard_enter(struct dma_table *t)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	struct dma_table *none = NULL;
	int err;

	sigemptyset(&action.sa_mask);
	if (!atomic_compare_exchange_strong(&guarded, &none, t))
		return -EBUSY;
	dma_guard_hits = 0;
	if (sigaction(SIGBUS, &action, &guard_previous) < 0) {
		err = -errno;
		atomic_store(&guarded, NULL);
		return err;
	}
	return 0;
}

void dma_guard_leave(void)
{
	sigaction(SIGBUS, &guard_previous, NULL);
	atomic_store(&guarded, NULL);
}

void dma_drop_lost(struct dma_table *t)
{
	if (!dma_lost())
		return;
	dma_guard_hits = 0;
	for (uint32_t i = 0; i < t->nr; i++) {
		struct dma_map *m = &t->maps[i];

		if (!m->lost)
			continue;
		munmap(m->host, m->size);
		m->host = NULL;
		m->lost = false;
	}
	t->gen++;
}

// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "soft_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* --- what the linker puts in place of system calls (--wrap) ---------------------------------- */

void *__real_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t len);
void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t len);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
		 const sigset_t *mask);
int __wrap_sched_yield(void);
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *at);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void __wrap_free(void *at);

#define PAGE 4096ul

static size_t guarded(size_t len)
{
	return (len + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
}

void *__wrap_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
	uint8_t *room;
	int error;

	if (flags & MAP_FIXED) /* the SIGBUS guard: in place of a mapping that has its guards */
		return __real_mmap(at, len, prot, flags, fd, offset);
	if (!len || len > SIZE_MAX / 4)
		return __real_mmap(at, len, prot, flags, fd, offset);
	room = __real_mmap(NULL, guarded(len), PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		return MAP_FAILED;
	at = __real_mmap(room + PAGE, len, prot, flags | MAP_FIXED, fd, offset);
	if (at != MAP_FAILED)
		return at;
	error = errno;
	__real_munmap(room, guarded(len));
	errno = error;
	return MAP_FAILED;
}

int __wrap_munmap(void *at, size_t len)
{
	return __real_munmap((uint8_t *)at - PAGE, guarded(len));
}

/*
 * The two large blocks of every run, kept from one to the next: fresh pages for them would cost more
 * than all the rest. Between two runs nobody may touch them.
 */
static struct {
	void *at;
	size_t size;
	bool used;
} blocks[20];

static void *block(size_t size)
{
	for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
		if (blocks[i].used || (blocks[i].at && blocks[i].size != size))
			continue;
		if (!blocks[i].at)
			blocks[i].at = __real_malloc(size);
		MUST(blocks[i].at);
		blocks[i].size = size;
		blocks[i].used = true;
		ASAN_UNPOISON_MEMORY_REGION(blocks[i].at, size);
		return blocks[i].at;
	}
	abort();
}

void *__wrap_malloc(size_t size)
{
	return size == sizeof(struct conn) ? block(size) : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	if (n != 1 || size != sizeof(struct udrv_soft))
		return __real_calloc(n, size);
	return memset(block(size), 0, size);
}

void __wrap_free(void *at)
{
	for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++) {
		if (at && at == blocks[i].at) {
			blocks[i].used = false;
			ASAN_POISON_MEMORY_REGION(at, blocks[i].size);
			return;
		}
	}
	__real_free(at);
}

static uint64_t now_ns;

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	(void)clock;
	now_ns += 1000;
	ts->tv_sec = (time_t)(now_ns / 1000000000u);
	ts->tv_nsec = (long)(now_ns % 1000000000u);
	return 0;
}

int __wrap_sched_yield(void)
{
	now_ns += 10000;
	return 0;
}

void rig_advance(uint64_t ns)
{
	/* a week at a time at most: sums of it stay far from the end of time */
	now_ns += ns % (7ull * 86400 * 1000000000);
}

static struct rig *running;
static rig_step running_step;

static void drain(int fd)
{
	static uint8_t sink[1 << 17];
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * 4)];
	} control;
	struct iovec iov = { .iov_base = sink, .iov_len = sizeof(sink) };

	for (;;) {
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				      .msg_controllen = sizeof(control) };
		struct cmsghdr *m;
		int got;

		if (recvmsg(fd, &msg, MSG_DONTWAIT) <= 0)
			return;
		m = CMSG_FIRSTHDR(&msg);
		if (!m)
			continue;
		MUST(m->cmsg_len == CMSG_LEN(sizeof(got)));
		memcpy(&got, CMSG_DATA(m), sizeof(got));
		close(got);
	}
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
		 const sigset_t *mask)
{
	struct rig *r = running;

	(void)mask;
	MUST(n == 3);
	rig_check(r->c);
	/* a sleep is as long as it was asked for; one without an end ends by a step */
	if (timeout)
		now_ns += (uint64_t)timeout->tv_sec * 1000000000u + (uint64_t)timeout->tv_nsec;
	if (r->sock >= 0) {
		if (r->talked) {
			drain(r->sock);
			drain(r->control);
		}
		if (!in_left(&r->in) || !running_step(r)) {
			close(r->sock);
			r->sock = -1;
			r->talked = true;
		}
	}
	if (!r->talked)
		return 0; /* the server has nothing to hear: most steps are no messages */
	return poll(fds, n, 0);
}

/* --- the client ------------------------------------------------------------------------------ */

static int files[RIG_FILES], disk;
static uint8_t *first_file;

/* Made once: a file costs more than all that an input does with it. */
static void make_files(void)
{
	if (first_file)
		return;
	for (uint32_t i = 0; i < RIG_FILES; i++) {
		files[i] = memfd_create("client", MFD_CLOEXEC | (i == 2 ? MFD_ALLOW_SEALING : 0));
		MUST(files[i] >= 0);
	}
	MUST(ftruncate(files[0], RIG_PAGES * PAGE) == 0);
	MUST(ftruncate(files[1], 8 * PAGE) == 0);
	MUST(ftruncate(files[2], 8 * PAGE) == 0);
	MUST(fcntl(files[2], F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	disk = memfd_create("disk", MFD_CLOEXEC);
	MUST(disk >= 0);
	first_file = __real_mmap(NULL, RIG_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
				 files[0], 0);
	MUST(first_file != MAP_FAILED);
}

static bool was_cut;

static void restore_files(void)
{
	if (was_cut) {
		MUST(ftruncate(files[0], RIG_PAGES * PAGE) == 0);
		MUST(ftruncate(files[1], 0) == 0 && ftruncate(files[1], 8 * PAGE) == 0);
	}
	was_cut = false;
	memset(first_file, 0, RIG_PAGES * PAGE);
}

uint64_t rig_iova(uint32_t page)
{
	return RIG_IOVA + page * PAGE;
}

uint64_t rig_address(struct input *in)
{
	uint8_t kind = in_u8(in);
	uint64_t page = rig_iova(kind % RIG_PAGES);

	if (kind < 0x90)
		return page;
	if (kind < 0xb0)
		return page + (in_u8(in) & 0xfc) * 16;
	if (kind < 0xc0)
		return rig_iova(RIG_PAGES) - 4 * (kind & 0xf);
	if (kind < 0xd0)
		return page + (kind & 0xf);
	if (kind < 0xe0)
		return (1ull << 32) + (kind & 0xf) * PAGE; /* where other files are mapped */
	return in_word(in);
}

void rig_cut(struct rig *r)
{
	uint8_t which = in_u8(&r->in);
	uint32_t pages = in_below(&r->in, 10);

	was_cut = true;
	/* A file that the client has mapped itself: it must not die of its own cut. */
	if (which < 0x40)
		MUST(ftruncate(r->file[0], (RIG_PAGES + pages) * PAGE) == 0);
	else if (which < 0x60)
		(void)!ftruncate(r->file[2], (off_t)(pages * PAGE)); /* sealed */
	else
		MUST(ftruncate(r->file[1], (off_t)(pages * PAGE)) == 0);
}

int rig_kind_of_fd(struct rig *r)
{
	uint8_t kind = in_u8(&r->in);
	int pair[2];

	switch (kind % 12) {
	case 0:
	case 1:
	case 2:
		return dup(r->file[0]);
	case 3:
	case 4:
		return dup(r->file[1]);
	case 5:
		return dup(r->file[2]);
	case 6:
	case 7:
		return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	case 8:
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	case 9:
		return open("/", O_RDONLY | O_CLOEXEC | O_DIRECTORY);
	case 10:
		return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	default:
		MUST(pipe2(pair, O_CLOEXEC | O_NONBLOCK) == 0);
		close(pair[kind & 1]);
		return pair[!(kind & 1)];
	}
}

void rig_map(struct rig *r)
{
	MUST(dma_add(&r->c->dma, RIG_IOVA, RIG_PAGES * PAGE, DMA_READ | DMA_WRITE, r->file[0],
		     0) == 0);
}

static void put32(struct udrv_soft *c, uint32_t offset, uint32_t value)
{
	MUST(soft_bar_write(c, offset, &value, sizeof(value)) == 0);
}

void rig_put(struct rig *r, uint32_t queue, const struct nv_sqe *cmd)
{
	uint32_t *tail = &r->tail[queue];

	memcpy(r->memory + 2 * queue * PAGE + *tail * NV_SQE_SIZE, cmd, sizeof(*cmd));
	*tail = (*tail + 1) % r->entries;
	if (r->c->shadow.on && queue)
		__atomic_store_n((uint32_t *)(r->memory + PAGE_SHADOW * PAGE + 8 * queue), *tail,
				 __ATOMIC_RELEASE);
	if (r->c->cfg.flags & UDRV_SOFT_TRAP_DOORBELLS)
		put32(r->c, BAR0_DOORBELLS + 8 * queue, *tail);
	else
		atomic_store_explicit(&r->c->doorbells[2 * queue], *tail, memory_order_release);
}

/* Completions are taken as a driver that looks at nothing would take them. */
static void take_all(struct rig *r)
{
	for (uint32_t q = 0; q < RIG_QUEUES; q++) {
		if (r->c->cq[q].live)
			atomic_store_explicit(&r->c->doorbells[2 * q + 1], r->c->cq[q].tail,
					      memory_order_release);
	}
}

void rig_enable(struct rig *r)
{
	struct udrv_soft *c = r->c;
	uint64_t asq = rig_iova(PAGE_ASQ), acq = rig_iova(PAGE_ACQ);

	put32(c, NV_REG_AQA, (r->entries - 1) * 0x10001u);
	MUST(soft_bar_write(c, NV_REG_ASQ, &asq, sizeof(asq)) == 0);
	MUST(soft_bar_write(c, NV_REG_ACQ, &acq, sizeof(acq)) == 0);
	put32(c, NV_REG_CC, NV_CC_EN | 6 << 16 | 4 << 20);
	memset(r->tail, 0, sizeof(r->tail));
	for (uint16_t q = 1; q < RIG_QUEUES; q++) {
		struct nv_sqe cmd = { .opcode = NV_ADM_CREATE_CQ, .cid = q, .nsid = 0,
				      .prp1 = rig_iova(2u * q + 1),
				      .cdw10 = q | (r->entries - 1) << 16,
				      .cdw11 = 3u | (uint32_t)q << 16 };

		rig_put(r, 0, &cmd);
		cmd.opcode = NV_ADM_CREATE_SQ;
		cmd.prp1 = rig_iova(2u * q);
		cmd.cdw11 = 1u | (uint32_t)q << 16;
		rig_put(r, 0, &cmd);
	}
	soft_queues_pass(c);
	take_all(r);
}

void rig_check(const struct udrv_soft *c)
{
	uint32_t sqs = 0, cqs = 0;

	for (uint32_t q = 0; q <= c->cfg.queues; q++) {
		const struct soft_sq *sq = &c->sq[q];
		const struct soft_cq *cq = &c->cq[q];

		sqs += sq->live;
		cqs += cq->live;
		if (sq->live)
			MUST(sq->qid == q && sq->head < sq->size && sq->tail < sq->size &&
			     c->cq[sq->cqid].live && c->cq[sq->cqid].nr_sqs);
		if (cq->live)
			MUST(cq->qid == q && cq->head < cq->size && cq->tail < cq->size &&
			     cq->free < cq->size && cq->reserved <= cq->free &&
			     cq->vector < c->nr_vectors);
	}
	MUST(sqs == c->nr_sqs && cqs == c->nr_cqs);
	MUST(c->dma.nr <= DMA_MAX_MAPS);
	for (uint32_t i = 1; i < c->dma.nr; i++)
		MUST(c->dma.maps[i - 1].iova + c->dma.maps[i - 1].size <= c->dma.maps[i].iova);
	MUST(c->event.nr_parked <= AER_MAX);
	MUST(c->inject->nr <= UDRV_FAULT_MAX);
}

/* Before and after a run: no descriptor is left behind, as the next one has the same number. */
static void check_descriptors(void)
{
	static int before = -1;
	int next = dup(0);

	MUST(next >= 0);
	close(next);
	MUST(before < 0 || next == before);
	before = before < 0 ? next : -1;
}

/* --- a second thread of the client ------------------------------------------------------------ */

/*
 * With FUZZ_RACE=1 the shared memory changes while the controller reads it. What it finds cannot be
 * repeated by the input alone; that it finds nothing shows that what was checked is what is used.
 */
static void *scribble(void *arg)
{
	uint64_t state = 88172645463325252ull;

	(void)arg;
	for (;;) {
		uint64_t *word;

		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		word = (uint64_t *)first_file + state % (RIG_PAGES * PAGE / 8);
		/* mostly a bit of what is there, so that it stays nearly right */
		if (state >> 61)
			__atomic_fetch_xor(word, 1ull << (state >> 32) % 64, __ATOMIC_RELAXED);
		else
			__atomic_store_n(word, state, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void race(void)
{
	static bool asked;
	pthread_t thread;

	if (!asked && getenv("FUZZ_RACE"))
		MUST(pthread_create(&thread, NULL, scribble, NULL) == 0);
	asked = true;
}

/* --- one controller for many inputs ----------------------------------------------------------- */

/*
 * To make a controller takes ten times as long as a short input does. So one of each configuration
 * is kept and put back, byte for byte, to what it was when it was new, unless an input changed what
 * lies outside of it.
 */
struct kept {
	struct udrv_soft *c;
	struct udrv_soft new;
	struct udrv_soft_config cfg;
};

static struct kept kept[16];

#define AFTER_MAPS (offsetof(struct udrv_soft, dma.maps) + sizeof(kept[0].new.dma.maps))

static bool put_back(const struct kept *k)
{
	struct udrv_soft *c = k->c;

	if (memcmp(c->media, k->new.media, sizeof(c->media)) || c->inject->next_id != 1)
		return false;
	/* The table of mappings is empty; its entries are what is large. */
	memcpy(c, &k->new, offsetof(struct udrv_soft, dma.maps));
	memcpy((uint8_t *)c + AFTER_MAPS, (const uint8_t *)&k->new + AFTER_MAPS,
	       sizeof(*c) - AFTER_MAPS);
	memset(c->counters, 0, sizeof(*c->counters));
	memset((void *)c->doorbells, 0, BAR0_DOORBELLS_SIZE);
	if (c->cmb.bytes)
		memset(c->cmb.memory, 0, c->cmb.bytes);
	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++) {
		if (c->media[i].memory)
			memset(c->media[i].memory, 0, c->media[i].bytes);
	}
	return true;
}

static void let_go(struct kept *k)
{
	udrv_soft_free(k->c);
	k->c = NULL;
}

/* Return: a controller as new; its c is NULL if the configuration is refused. */
static struct kept *controller(const struct udrv_soft_config *cfg)
{
	static uint32_t turn;
	struct kept *k;
	int err;

	for (k = kept; k < kept + sizeof(kept) / sizeof(kept[0]); k++) {
		if (k->c && !memcmp(&k->cfg, cfg, sizeof(*cfg)))
			return k;
	}
	k = &kept[turn++ % (sizeof(kept) / sizeof(kept[0]))];
	let_go(k);
	err = udrv_soft_new(cfg, &k->c);
	MUST(!err || (err == -EINVAL && !k->c));
	if (!err) {
		memcpy(&k->new, k->c, sizeof(k->new));
		k->cfg = *cfg;
	}
	return k;
}

/* --- an input ---------------------------------------------------------------------------------- */

void rig_run(const uint8_t *data, size_t size, rig_config config, rig_step step)
{
	static int control[2] = { -1, -1 };
	struct rig r = { .in = { .at = data, .end = data + size }, .entries = 16 };
	struct udrv_soft_config cfg;
	struct kept *k;
	int pair[2], err;

	make_files();
	race();
	if (control[0] < 0)
		MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, control) == 0);
	memset(&cfg, 0, sizeof(cfg)); /* it is compared as a whole */
	cfg = (struct udrv_soft_config){ .size = sizeof(cfg), .sock_fd = -1, .ready_fd = -1,
					 .counters_fd = -1, .faults_fd = -1, .truth_fd = -1,
					 .control_fd = control[1], .nr_ns = 2, .nn = 4,
					 .queues = 4, .entries = 64, .mdts = 3,
					 .ns = { { .blocks = 128, .lba_shift = 9, .fd = -1 },
						 { .blocks = 16, .lba_shift = 12, .fd = -1 } } };
	now_ns = 1000000000;
	restore_files();
	memcpy(r.file, files, sizeof(files));
	r.memory = first_file;
	r.control = control[0];
	config(&r, &cfg);
	if (cfg.ns[1].fd == 0) {
		MUST(ftruncate(disk, 0) == 0 && ftruncate(disk, 16 * PAGE) == 0);
		cfg.ns[1].fd = disk;
	}
	k = controller(&cfg);
	if (!k->c)
		return;
	r.c = k->c;
	check_descriptors();
	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	r.sock = pair[0];
	running = &r;
	running_step = step;
	err = udrv_soft_run(r.c, pair[1], -1);
	MUST(err <= 0);
	MUST(!r.c->dma.nr && !r.c->nr_sqs && !r.c->nr_cqs);
	if (r.sock >= 0)
		close(r.sock);
	close(pair[1]);
	if (r.talked)
		drain(control[0]);
	check_descriptors();
	if (cfg.faults_fd >= 0 || cfg.truth_fd >= 0 || !put_back(k))
		let_go(k);
}

// SPDX-License-Identifier: Apache-2.0
/*
 * What io_uring passthrough costs when nothing is kept: 4 KiB reads of random blocks on /dev/ngXnY,
 * at a constant depth, and no latencies, no checks, no tables. The floor under every program that
 * reads through the kernel's NVMe driver.
 *
 * usage: bare_uring /dev/ngXnY DEPTH IOS SECONDS BLOCKS LBA_SHIFT	(IOS or SECONDS may be 0)
 *
 * Prints {"ios", "elapsed_ns", "user_ns", "system_ns", "enters"} of the loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/nvme_ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define BYTES 4096u
#define MAX_DEPTH 1024u

static uint64_t random_state = 88172645463325252u;

static uint64_t next_random(void)	/* Marsaglia, "Xorshift RNGs", 2003 */
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	return random_state ^= random_state << 17;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t ns_of(const struct timeval *tv)
{
	return (uint64_t)tv->tv_sec * 1000000000u + (uint64_t)tv->tv_usec * 1000u;
}

static void fail(const char *what, int error)
{
	fprintf(stderr, "bare_uring: %s: %s\n", what, strerror(error));
	exit(1);
}

static void prepare(struct io_uring *ring, char *buffer, uint64_t piece, uint64_t slba,
		    unsigned int lba_shift)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct nvme_uring_cmd *c;

	if (!sqe)	/* as many as may be in flight: it cannot be */
		fail("io_uring_get_sqe", EBUSY);
	c = (void *)((char *)sqe + 48);	/* where an SQE128's command is */
	memset(sqe, 0, 128);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->cmd_op = NVME_URING_CMD_IO;
	sqe->rw_flags = 1;	/* IORING_URING_CMD_FIXED, of buffer 0; in newer headers by name */
	sqe->user_data = piece;
	c->opcode = 2;		/* read */
	c->nsid = 1;
	c->addr = (uint64_t)(uintptr_t)(buffer + piece * BYTES);
	c->data_len = BYTES;
	c->cdw10 = (uint32_t)slba;
	c->cdw11 = (uint32_t)(slba >> 32);
	c->cdw12 = (BYTES >> lba_shift) - 1;
}

int main(int argc, char **argv)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | IORING_SETUP_SINGLE_ISSUER |
			 IORING_SETUP_DEFER_TASKRUN,
	};
	uint64_t ios, units, start, end, issued = 0, done = 0, enters = 0;
	unsigned int depth, shift, i;
	struct rusage before, after;
	struct io_uring ring;
	struct iovec iov;
	char *buffer;
	double seconds;
	int fd, ret;

	if (argc != 7) {
		fprintf(stderr, "usage: bare_uring NODE DEPTH IOS SECONDS BLOCKS LBA_SHIFT\n");
		return 2;
	}
	depth = (unsigned int)atoi(argv[2]);
	ios = strtoull(argv[3], NULL, 10);
	seconds = atof(argv[4]);
	shift = (unsigned int)atoi(argv[6]);
	units = shift <= 12 ? strtoull(argv[5], NULL, 10) >> (12 - shift) : 0;
	if (!depth || depth > MAX_DEPTH || !units || (!ios && seconds <= 0))
		return 2;
	fd = open(argv[1], O_RDONLY);
	if (fd < 0)
		fail(argv[1], errno);
	buffer = aligned_alloc(4096, (size_t)depth * BYTES);
	if (!buffer)
		fail("memory", ENOMEM);
	memset(buffer, 0, (size_t)depth * BYTES);
	ret = io_uring_queue_init_params(depth, &ring, &p);
	if (ret)
		fail("io_uring_setup", -ret);
	iov = (struct iovec){ .iov_base = buffer, .iov_len = (size_t)depth * BYTES };
	ret = io_uring_register_buffers(&ring, &iov, 1);
	if (ret)
		fail("registering buffers", -ret);
	ret = io_uring_register_files(&ring, &fd, 1);
	if (ret)
		fail("registering the file", -ret);
	ret = io_uring_register_ring_fd(&ring);
	if (ret != 1)
		fail("registering the ring", -ret);

	getrusage(RUSAGE_THREAD, &before);
	start = now_ns();
	end = ios ? UINT64_MAX : start + (uint64_t)(seconds * 1e9);
	if (!ios)
		ios = UINT64_MAX;
	for (i = 0; i < depth && issued < ios; i++, issued++)
		prepare(&ring, buffer, i,
			next_random() % units << (12 - shift), shift);
	while (done < issued) {
		struct io_uring_cqe *cqe;
		unsigned int head, seen = 0;

		ret = io_uring_submit_and_wait(&ring, 1);
		if (ret < 0 && ret != -EINTR)
			fail("io_uring_enter", -ret);
		enters++;
		io_uring_for_each_cqe(&ring, head, cqe) {
			if (cqe->res)
				fail("a read", cqe->res < 0 ? -cqe->res : EIO);
			seen++;
			if (issued == ios)
				continue;
			prepare(&ring, buffer, cqe->user_data,
				next_random() % units << (12 - shift), shift);
			issued++;
		}
		io_uring_cq_advance(&ring, seen);
		done += seen;
		if (end != UINT64_MAX && now_ns() >= end)	/* issue no more, drain */
			ios = issued;
	}
	end = now_ns();
	getrusage(RUSAGE_THREAD, &after);
	printf("{\"ios\": %llu, \"elapsed_ns\": %llu, \"user_ns\": %llu, \"system_ns\": %llu, "
	       "\"enters\": %llu}\n", (unsigned long long)done, (unsigned long long)(end - start),
	       (unsigned long long)(ns_of(&after.ru_utime) - ns_of(&before.ru_utime)),
	       (unsigned long long)(ns_of(&after.ru_stime) - ns_of(&before.ru_stime)),
	       (unsigned long long)enters);
	io_uring_queue_exit(&ring);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * What is left of a CPU, counted: a loop of two instructions in the scheduler's idle class, which adds
 * one to a number in a shared file each time round. Under a clock that counts instructions, twice the
 * number is exactly what nobody else executed; the kernel's own idle time holds some of the way into
 * idle and out of it as well, and lets the clock jump.
 *
 * usage: idle_loop FILE	(at least 8 bytes long; runs until it is killed or its parent ends)
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
	const struct sched_param none = { 0 };
	uint64_t *count;
	int fd;

	if (argc != 2) {
		fprintf(stderr, "usage: idle_loop FILE\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR);
	count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || count == MAP_FAILED || prctl(PR_SET_PDEATHSIG, SIGKILL) ||
	    sched_setscheduler(0, SCHED_IDLE, &none)) {
		perror("idle_loop");
		return 1;
	}
	for (;;)
		__asm__ volatile("1: incq %0\n\tjmp 1b" : "+m"(*count));
}

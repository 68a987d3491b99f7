// SPDX-License-Identifier: Apache-2.0
/*
 * driver.c - runs a harness where there is no libFuzzer: with any compiler, the same inputs on
 * every machine.
 *
 *	PROGRAM RUNS [SEED]	inputs made from pseudo-random numbers
 *	PROGRAM FILE...		these inputs (what libFuzzer left, to look at it again)
 *
 * Half of the inputs are new, the others are an earlier one with some bytes changed, so that long
 * sequences of good decisions are met that pure noise would not find.
 */
#include "input.h"

#include <unistd.h>

#define MAX_INPUT 1024u
#define KEPT 64u

static uint64_t state;

/* xorshift64* */
static uint64_t next(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dull;
}

static struct {
	uint8_t bytes[MAX_INPUT];
	size_t size;
} kept[KEPT], now;

static void renew(void)
{
	now.size = 16 + next() % (MAX_INPUT - 16);
	for (size_t i = 0; i < now.size; i++)
		now.bytes[i] = (uint8_t)(next() >> 32);
}

static void change(void)
{
	now = kept[next() % KEPT];
	for (uint64_t n = 1 + next() % 16; n && now.size; n--)
		now.bytes[next() % now.size] = (uint8_t)(next() >> 32);
}

/* After a crash the input is there to be looked at: it is written before it is run. */
static int keep_fd = -1;

static void run(void)
{
	/* exactly as long as the input, so that a read past its end is seen */
	uint8_t *copy = malloc(now.size);

	MUST(copy || !now.size);
	memcpy(copy, now.bytes, now.size);
	if (keep_fd >= 0)
		MUST(pwrite(keep_fd, copy, now.size, 0) == (ssize_t)now.size &&
		     ftruncate(keep_fd, (off_t)now.size) == 0);
	LLVMFuzzerTestOneInput(copy, now.size);
	free(copy);
}

static int run_file(const char *name)
{
	FILE *file = fopen(name, "rb");
	uint8_t *data = malloc(1 << 20);
	size_t size;

	if (!file || !data) {
		perror(name);
		return 1;
	}
	size = fread(data, 1, 1 << 20, file);
	fclose(file);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
	return 0;
}

int main(int argc, char **argv)
{
	char *end = "";
	uint64_t runs = argc > 1 ? strtoull(argv[1], &end, 10) : 0;

	if (argc < 2 || *end) {
		for (int i = 1; i < argc; i++) {
			if (run_file(argv[i]))
				return 2;
		}
		return argc < 2 ? 2 : 0;
	}
	state = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15ull | 1;
	if (getenv("FUZZ_KEEP")) {
		FILE *file = fopen(getenv("FUZZ_KEEP"), "wb");

		MUST(file);
		keep_fd = fileno(file);
	}
	for (uint64_t i = 0; i < runs; i++) {
		if (i < KEPT || next() % 2)
			renew();
		else
			change();
		kept[next() % KEPT] = now;
		run();
	}
	printf("%llu runs\n", (unsigned long long)runs);
	return 0;
}

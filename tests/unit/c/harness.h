/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness.h - the least that a C test needs. A test file defines TEST(name) functions, lists them
 * in an array, and calls run_tests(); tests/unit/test_c_units.py runs each one in its own process
 * under the address and undefined-behaviour sanitizers.
 */
#ifndef UDRV_TEST_HARNESS_H
#define UDRV_TEST_HARNESS_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test {
	const char *name;
	void (*run)(void);
};

#define TEST(name) static void name(void)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define CHECK(cond)                                                                      \
	do {                                                                             \
		if (!(cond)) {                                                           \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
			exit(1);                                                         \
		}                                                                        \
	} while (0)

#define CHECK_EQ(a, b)                                                                   \
	do {                                                                             \
		int64_t a_ = (int64_t)(a), b_ = (int64_t)(b);                            \
		if (a_ != b_) {                                                          \
			fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %s (%" PRId64 ")\n", \
				__FILE__, __LINE__, #a, a_, #b, b_);                     \
			exit(1);                                                         \
		}                                                                        \
	} while (0)

/* xorshift64*: the same numbers on every machine */
static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

static inline int run_tests(const struct test *tests, size_t n, int argc, char **argv)
{
	size_t i;

	if (argc != 2) {
		for (i = 0; i < n; i++)
			puts(tests[i].name);
		return 0;
	}
	for (i = 0; i < n; i++) {
		if (!strcmp(tests[i].name, argv[1])) {
			tests[i].run();
			return 0;
		}
	}
	fprintf(stderr, "no test %s\n", argv[1]);
	return 2;
}

#endif /* UDRV_TEST_HARNESS_H */

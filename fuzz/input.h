/* SPDX-License-Identifier: Apache-2.0 */
/*
 * input.h - a fuzzer's bytes as values, and what every harness is to its driver
 *
 * A harness takes its decisions from the input, one after the other. Where the input ends, all
 * values are zero. libFuzzer calls the function below; so does driver.c, where there is no libFuzzer.
 */
#ifndef UDRV_FUZZ_INPUT_H
#define UDRV_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *at;
	const uint8_t *end;
};

/* What must always hold, whatever the input; a failure is a finding like a crash. */
#define MUST(cond)                                                                         \
	do {                                                                               \
		if (!(cond)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); \
			abort();                                                           \
		}                                                                          \
	} while (0)

static inline size_t in_left(const struct input *in)
{
	return (size_t)(in->end - in->at);
}

/* Up to @len bytes; the rest is zeroes. */
static inline void in_bytes(struct input *in, void *to, size_t len)
{
	size_t got = in_left(in) < len ? in_left(in) : len;

	memset(to, 0, len);
	if (got)
		memcpy(to, in->at, got);
	in->at += got;
}

static inline uint8_t in_u8(struct input *in)
{
	return in->at < in->end ? *in->at++ : 0;
}

static inline uint16_t in_u16(struct input *in)
{
	uint16_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint32_t in_u32(struct input *in)
{
	uint32_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

static inline uint64_t in_u64(struct input *in)
{
	uint64_t v;

	in_bytes(in, &v, sizeof(v));
	return v;
}

/* 0 to @limit - 1 */
static inline uint32_t in_below(struct input *in, uint32_t limit)
{
	return (limit > 256 ? in_u16(in) : in_u8(in)) % limit;
}

/* A number of the kinds at which code goes wrong: small, around powers of two, the largest, any. */
static inline uint64_t in_word(struct input *in)
{
	uint8_t kind = in_u8(in);

	if (kind < 0x60)
		return kind & 0x1f;
	if (kind < 0x80)
		return 1ull << (kind & 0x1f);
	if (kind < 0xa0)
		return (1ull << (kind & 0x1f)) - 1;
	if (kind < 0xb0)
		return UINT64_MAX - (kind & 0xf);
	if (kind < 0xc0)
		return UINT32_MAX - (kind & 0xf);
	if (kind < 0xd0)
		return 1ull << (32 + 2 * (kind & 0xf));
	return kind < 0xf0 ? in_u16(in) : in_u64(in);
}

#endif /* UDRV_FUZZ_INPUT_H */

// SPDX-License-Identifier: Apache-2.0
#include <udrv/bench.h>
#include <udrv/bench_rng.h>

#define PATTERN_MAGIC 0x31544150564452f5u
#define PATTERN_HEADER 4	/* words */
#define GOLDEN 0x9e3779b97f4a7c15u

static uint64_t pattern_key(uint64_t lba, uint64_t seed, uint64_t generation)
{
	return udrv_mix64(udrv_mix64(udrv_mix64(lba + GOLDEN) ^ seed) + generation);
}

void udrv_pattern_fill(void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
		       uint32_t generation)
{
	uint64_t key = pattern_key(lba, seed, generation);
	uint64_t *word = block;
	uint32_t i;

	word[0] = PATTERN_MAGIC;
	word[1] = lba;
	word[2] = seed;
	word[3] = generation;
	for (i = PATTERN_HEADER; i < bytes / 8; i++)
		word[i] = udrv_mix64(key + i * GOLDEN);
}

uint32_t udrv_pattern_check(const void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
			    uint32_t generation)
{
	/*
	 * volatile: the memory is the device's to write, and a compiler that read the generation
	 * twice could check one value and use another
	 */
	const volatile uint64_t *word = block;
	uint64_t key, found, differ = 0;
	uint32_t i;

	if (word[0] != PATTERN_MAGIC)
		return UDRV_BENCH_BAD_MAGIC;
	if (word[1] != lba)
		return UDRV_BENCH_BAD_LBA;
	if (word[2] != seed)
		return UDRV_BENCH_BAD_SEED;
	found = word[3];
	if (generation && found != generation)
		return UDRV_BENCH_BAD_GENERATION;
	key = pattern_key(lba, seed, found);
	for (i = PATTERN_HEADER; i < bytes / 8; i++)
		differ |= word[i] ^ udrv_mix64(key + i * GOLDEN);
	return differ ? UDRV_BENCH_BAD_PAYLOAD : UDRV_BENCH_GOOD;
}

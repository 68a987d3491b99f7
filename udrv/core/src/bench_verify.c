// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "bench_loop.h"

/*
 * An element of the verify table: bit 0 a write is in flight, bits 7:1 reads in flight, bits 31:8
 * generation on the device, 0 where that is not known. Commands in flight are unordered: a read
 * beside a write of the same block may return either, so a verifying job has no such pairs.
 */
#define UNIT_WRITER 1u
#define UNIT_READER 2u
#define UNIT_READERS 0xfeu
#define UNIT_BUSY 0xffu
#define UNIT_GENERATION(e) ((e) >> 8)

int udrv_bench_take_unit(struct udrv_bench_loop *l, uint64_t unit, int write)
{
	uint32_t *e = l->table ? &l->table[unit] : NULL;

	if (!e)
		return 1;
	if (write ? *e & UNIT_BUSY : (*e & UNIT_WRITER) || (*e & UNIT_READERS) == UNIT_READERS)
		return 0;
	*e += write ? UNIT_WRITER : UNIT_READER;
	return 1;
}

int udrv_bench_take_written(struct udrv_bench_loop *l, uint64_t *unit)
{
	const struct udrv_bench_job *j = l->job;

	while (l->cursor < j->units && !UNIT_GENERATION(l->table[l->cursor]))
		l->cursor++;
	if (l->cursor == j->units) {
		l->ended = 1;
		return 0;
	}
	*unit = l->cursor++;
	return udrv_bench_take_unit(l, *unit, 0);
}

void udrv_bench_prepare_data(const struct udrv_bench_loop *l, struct udrv_bench_slot *s,
			     uint32_t piece)
{
	const struct udrv_bench_job *j = l->job;
	char *data = (char *)j->buffer + (size_t)piece * j->buffer_stride;
	uint32_t block_bytes = 1u << l->batch.lba_shift;
	uint64_t lba = j->start_block + s->unit * j->unit_blocks;
	uint32_t i;

	if (!s->write) {
		/* or data of an earlier read would pass for what this one failed to transfer */
		memset(data, 0, l->unit_bytes);
		return;
	}
	s->generation = (UNIT_GENERATION(l->table[s->unit]) + 1) & 0xffffff;
	if (!s->generation)
		s->generation = 1;
	for (i = 0; i < j->unit_blocks; i++)
		udrv_pattern_fill(data + (size_t)i * block_bytes, block_bytes, lba + i,
				  j->pattern_seed, s->generation);
}

static void check_data(struct udrv_bench_loop *l, const struct udrv_bench_slot *s, uint32_t piece,
		       uint32_t generation)
{
	const struct udrv_bench_job *j = l->job;
	const char *data = (const char *)j->buffer + (size_t)piece * j->buffer_stride;
	uint32_t block_bytes = 1u << l->batch.lba_shift;
	uint64_t lba = j->start_block + s->unit * j->unit_blocks;
	uint32_t i;

	if (l->table && !generation) {
		l->res->blocks_unchecked += j->unit_blocks;
		return;
	}
	for (i = 0; i < j->unit_blocks; i++, lba++) {
		uint32_t kind = udrv_pattern_check(data + (size_t)i * block_bytes, block_bytes,
						   lba, j->pattern_seed, generation);

		l->res->blocks_checked++;
		if (likely(kind == UDRV_BENCH_GOOD))
			continue;
		if (!l->res->verify_failures++) {
			l->res->first_bad_lba = lba;
			l->res->first_bad_kind = kind;
		}
	}
}

void udrv_bench_finish_unit(struct udrv_bench_loop *l, const struct udrv_bench_slot *s,
			    uint32_t piece, int failed)
{
	uint32_t *e = l->table ? &l->table[s->unit] : NULL;

	if (s->write) {
		/* a write that failed may have written some of its blocks: nothing is known */
		*e = failed ? 0 : s->generation << 8;
		return;
	}
	if (e)
		*e -= UNIT_READER;
	if (!failed)
		check_data(l, s, piece, e ? UNIT_GENERATION(*e) : 0);
}

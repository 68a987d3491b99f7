/* SPDX-License-Identifier: Apache-2.0 */
/*
 * compiler.h - what the compiler gives, under the kernel's names.
 *
 * Everything in udrv/core compiles without Python.h, so that sanitizers, fuzzers and C programs
 * use it as it is.
 */
#ifndef UDRV_COMPILER_H
#define UDRV_COMPILER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define UDRV_CACHELINE 64
#define __cacheline_aligned __attribute__((aligned(UDRV_CACHELINE)))

/* For whole stores of what is constant: a vector register, where the others are scarce. */
typedef uint64_t udrv_u64x2 __attribute__((vector_size(16), may_alias));

/* The same value, and the compiler does not know it: kept in a register, not made again. */
static inline uint64_t opaque(uint64_t v)
{
	__asm__("" : "+r"(v));
	return v;
}

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "NVMe structures are little-endian and are used in place: big-endian hosts need byte swaps"
#endif

#endif /* UDRV_COMPILER_H */

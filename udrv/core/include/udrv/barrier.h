/* SPDX-License-Identifier: Apache-2.0 */
/*
 * barrier.h - ordering between this CPU and a device (or a process that plays one).
 *
 * These are the kernel's dma_wmb(), dma_rmb() and dma_mb(), and one of our own. On x86 stores to write-back memory and to
 * uncached MMIO are seen in program order, and so are loads: only the compiler has to be held
 * back. On aarch64 the device is in the outer shareable domain.
 */
#ifndef UDRV_BARRIER_H
#define UDRV_BARRIER_H

#include <stdint.h>

#if defined(__x86_64__)
#define udrv_dma_wmb() __asm__ __volatile__("" ::: "memory")
#define udrv_dma_rmb() __asm__ __volatile__("" ::: "memory")
/* loads before a later store; a store before a later load needs more: udrv_dma_mb() */
#define udrv_dma_load_store() __asm__ __volatile__("" ::: "memory")
/* a locked instruction is a full barrier for write-back memory, and cheaper than mfence */
#define udrv_dma_mb() __asm__ __volatile__("lock; addl $0,-4(%%rsp)" ::: "memory", "cc")
#define udrv_cpu_relax() __asm__ __volatile__("pause" ::: "memory")
#elif defined(__aarch64__)
#define udrv_dma_wmb() __asm__ __volatile__("dmb oshst" ::: "memory")
#define udrv_dma_rmb() __asm__ __volatile__("dmb oshld" ::: "memory")
#define udrv_dma_load_store() __asm__ __volatile__("dmb oshld" ::: "memory")
#define udrv_dma_mb() __asm__ __volatile__("dmb osh" ::: "memory")
#define udrv_cpu_relax() __asm__ __volatile__("yield" ::: "memory")
#else
#define udrv_dma_wmb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define udrv_dma_rmb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define udrv_dma_load_store() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define udrv_dma_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define udrv_cpu_relax() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#endif

/* One access of exactly this width, neither split nor merged nor repeated by the compiler. */
static inline uint32_t udrv_mmio_read32(const volatile void *addr)
{
	return *(const volatile uint32_t *)addr;
}

static inline uint64_t udrv_mmio_read64(const volatile void *addr)
{
	return *(const volatile uint64_t *)addr;
}

static inline void udrv_mmio_write32(volatile void *addr, uint32_t value)
{
	*(volatile uint32_t *)addr = value;
}

static inline void udrv_mmio_write64(volatile void *addr, uint64_t value)
{
	*(volatile uint64_t *)addr = value;
}

#endif /* UDRV_BARRIER_H */

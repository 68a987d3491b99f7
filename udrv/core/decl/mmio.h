uint32_t udrv_mmio_read32(const volatile void *addr);
uint64_t udrv_mmio_read64(const volatile void *addr);
void udrv_mmio_write32(volatile void *addr, uint32_t value);
void udrv_mmio_write64(volatile void *addr, uint64_t value);

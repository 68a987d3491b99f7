// SPDX-License-Identifier: Apache-2.0
/*
 * The controller as a whole: how it is made, its registers, and its life between CC.EN and
 * CSTS.RDY (NVMe 1.4, 3.1 and 7.6).
 */
#define _GNU_SOURCE
#include "block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define READY_TIMEOUT_500MS 10u

uint64_t soft_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* --- made and freed ------------------------------------------------------------------------ */

static bool config_valid(const struct udrv_soft_config *cfg)
{
	if (cfg->size != sizeof(*cfg) || cfg->flags & ~UDRV_SOFT_TRAP_DOORBELLS)
		return false;
	if (cfg->nr_ns < 1 || cfg->nr_ns > UDRV_SOFT_MAX_NS || cfg->nn < cfg->nr_ns ||
	    cfg->nn > 0xfffffffdu)
		return false;
	if (cfg->queues < 1 || cfg->queues > UDRV_SOFT_MAX_QUEUES)
		return false;
	if (cfg->entries < 2 || cfg->entries > 65536 || cfg->mdts < 1 || cfg->mdts > MAX_MDTS)
		return false;
	/* A BAR is a power of two, of pages here. */
	if (cfg->cmb_bytes & (cfg->cmb_bytes - 1) || cfg->cmb_bytes > 1u << 30 ||
	    (cfg->cmb_bytes && cfg->cmb_bytes < NV_PAGE_SIZE))
		return false;
	return cfg->spin_us <= 1000000;
}

/*
 * The doorbells live in a file that the client maps. It is sealed: the client cannot shrink it
 * under our feet. Its first page stays unused, so that an offset in it is one in BAR0.
 */
static int open_doorbells(struct udrv_soft *c)
{
	void *at;

	c->doorbell_fd = memfd_create("udrv-soft-doorbells", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (c->doorbell_fd < 0)
		return -errno;
	if (ftruncate(c->doorbell_fd, BAR0_DOORBELLS + BAR0_DOORBELLS_SIZE) < 0 ||
	    fcntl(c->doorbell_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	at = mmap(NULL, BAR0_DOORBELLS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, c->doorbell_fd,
		  BAR0_DOORBELLS);
	if (at == MAP_FAILED)
		return -errno;
	c->doorbells = at;
	return 0;
}

static int open_scratch(struct udrv_soft *c)
{
	void *at = mmap(NULL, sizeof(struct scratch), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -errno;
	c->scratch = at;
	return 0;
}

static int open_counters(struct udrv_soft *c)
{
	struct stat st;
	void *at;

	if (c->cfg.counters_fd < 0) {
		c->counters = calloc(1, sizeof(*c->counters));
		return c->counters ? 0 : -ENOMEM;
	}
	if (fstat(c->cfg.counters_fd, &st) < 0)
		return -errno;
	if (st.st_size < (off_t)sizeof(*c->counters))
		return -EINVAL;
	at = mmap(NULL, sizeof(*c->counters), PROT_READ | PROT_WRITE, MAP_SHARED,
		  c->cfg.counters_fd, 0);
	if (at == MAP_FAILED)
		return -errno;
	c->counters = at;
	c->counters_mapped = true;
	return 0;
}

int udrv_soft_new(const struct udrv_soft_config *cfg, struct udrv_soft **ctrl)
{
	struct udrv_soft *c;
	int err;

	if (!config_valid(cfg))
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->cfg = *cfg;
	c->doorbell_fd = -1;
	c->born_ns = soft_now_ns();
	c->nr_vectors = cfg->queues + 1;
	for (uint32_t i = 0; i < MAX_VECTORS; i++)
		c->irq[i].fd = -1;
	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++)
		c->media[i].fd = -1;
	c->cap = (uint64_t)(cfg->entries - 1) | NV_CAP_CQR | NV_CAP_TO(READY_TIMEOUT_500MS) |
		 NV_CAP_CSS_NVM | NV_CAP_CRWMS;
	if (cfg->cmb_bytes)
		c->cap |= NV_CAP_CMBS;

	err = open_scratch(c);
	if (!err)
		err = soft_cmb_open(c);
	if (!err)
		err = open_doorbells(c);
	if (!err)
		err = open_counters(c);
	if (!err)
		err = soft_inject_open(c);
	for (uint32_t i = 0; !err && i < cfg->nr_ns; i++) {
		err = soft_media_open(&c->media[i], &cfg->ns[i]);
		soft_ns_configured(&c->media[i]);
		c->capacity += c->media[i].bytes;
	}
	if (err) {
		udrv_soft_free(c);
		return err;
	}
	soft_features_init(c);
	soft_firmware_init(c);
	soft_function_reset(c);
	*ctrl = c;
	return 0;
}

void udrv_soft_free(struct udrv_soft *c)
{
	if (!c)
		return;
	for (uint32_t i = 0; i < MAX_VECTORS; i++)
		soft_irq_arm(c, i, -1);
	dma_clear(&c->dma);
	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++)
		soft_media_close(&c->media[i]);
	soft_inject_close(c);
	if (c->counters_mapped)
		munmap(c->counters, sizeof(*c->counters));
	else
		free(c->counters);
	soft_cmb_close(c);
	if (c->scratch)
		munmap(c->scratch, sizeof(struct scratch));
	if (c->doorbells)
		munmap((void *)c->doorbells, BAR0_DOORBELLS_SIZE);
	if (c->doorbell_fd >= 0)
		close(c->doorbell_fd);
	free(c);
}

/* --- enable, disable, shut down ------------------------------------------------------------ */

static void update_running(struct udrv_soft *c)
{
	c->running = (c->csts & NV_CSTS_RDY) &&
		     !(c->csts & (NV_CSTS_CFS | NV_CSTS_SHST_MASK));
}

void soft_fatal(struct udrv_soft *c)
{
	c->csts |= NV_CSTS_CFS;
	update_running(c);
}

/*
 * A controller that cannot work with what it was given does not become ready and says so by
 * CFS, instead of guessing. Zero entry sizes are allowed: they only matter for I/O queues.
 */
static bool enable_allowed(const struct udrv_soft *c, uint32_t cc)
{
	uint32_t sqes = NV_CC_IOSQES(cc), cqes = NV_CC_IOCQES(cc);

	if (NV_CC_CSS(cc) || NV_CC_MPS(cc) || NV_CC_AMS(cc))
		return false;
	if ((sqes && sqes != 6) || (cqes && cqes != 4))
		return false;
	return (c->aqa & 0xfff) && (c->aqa >> 16 & 0xfff);
}

void soft_enable(struct udrv_soft *c)
{
	c->counters->enables++;
	c->csts = 0;
	if (!enable_allowed(c, c->cc)) {
		soft_fatal(c);
		return;
	}
	soft_queues_start_admin(c);
	c->csts = NV_CSTS_RDY;
	c->alive_ns = soft_now_ns();
	update_running(c);
}

void soft_controller_reset(struct udrv_soft *c)
{
	soft_queues_clear(c);
	/* 5.7: its settings end with any controller level reset; the pages are the host's again. */
	memset(&c->shadow, 0, sizeof(c->shadow));
	memset(&c->event, 0, sizeof(c->event));
	soft_features_reset(c);
	soft_firmware_reset(c);
	soft_self_test_abort(c, SOFT_TEST_RESET);
	soft_schedule(c);
	c->allocated_queues = c->cfg.queues;
	c->cc &= ~NV_CC_EN;
	c->csts = 0;
	c->intms = 0;
	update_running(c);
}

void soft_function_reset(struct udrv_soft *c)
{
	/* To the media this is a loss of power, and the host may not have announced it. */
	if ((c->csts & NV_CSTS_RDY) && !(c->csts & NV_CSTS_SHST_MASK))
		c->stat.unsafe_shutdowns++;
	soft_controller_reset(c);
	soft_cmb_reset(c);
	c->cc = 0;
	c->aqa = 0;
	c->asq = 0;
	c->acq = 0;
	for (uint32_t i = 0; i < c->nr_vectors; i++) {
		c->irq[i].masked = false;
		c->irq[i].pending = false;
	}
	soft_pci_reset(c);
}

static void write_cc(struct udrv_soft *c, uint32_t value)
{
	uint32_t old = c->cc;

	value &= NV_CC_WRITABLE;
	if (old & value & NV_CC_EN) {
		/* Page size, command set and arbitration stand while the controller is enabled. */
		value = (value & 0x00ffc001u) | (old & 0x00003ff0u);
	}
	c->cc = value;
	if (!(old & NV_CC_EN) && (value & NV_CC_EN)) {
		if (!c->injecting || !soft_fault_enable(c))
			soft_enable(c);
	} else if ((old & NV_CC_EN) && !(value & NV_CC_EN)) {
		soft_controller_reset(c);
		if (c->injecting)
			soft_fault_reset(c);
	}
	if (NV_CC_SHN(value) && NV_CC_SHN(value) != NV_CC_SHN(old)) {
		if (!soft_sync_all(c))
			c->stat.media_errors++;
		c->csts = (c->csts & ~NV_CSTS_SHST_MASK) |
			  (c->injecting && soft_fault_shutdown(c) ? NV_CSTS_SHST_OCCURRING :
								    NV_CSTS_SHST_DONE);
		update_running(c);
	}
}

/* --- BAR0 ---------------------------------------------------------------------------------- */

static void put32(uint8_t *image, uint32_t at, uint32_t value)
{
	memcpy(image + at, &value, sizeof(value));
}

static void put64(uint8_t *image, uint32_t at, uint64_t value)
{
	memcpy(image + at, &value, sizeof(value));
}

static uint32_t bar_byte_area(struct udrv_soft *c, uint32_t offset, uint8_t *byte)
{
	uint8_t image[0x6c] = { 0 };
	uint32_t value, at;

	if (offset < sizeof(image)) {
		put64(image, NV_REG_CAP, c->cap);
		put32(image, NV_REG_VS, NV_VERSION);
		put32(image, NV_REG_INTMS, c->intms);
		put32(image, NV_REG_INTMC, c->intms);
		put32(image, NV_REG_CC, c->cc);
		put32(image, NV_REG_CSTS, c->csts | c->inject->csts);
		put32(image, NV_REG_AQA, c->aqa);
		put64(image, NV_REG_ASQ, c->asq);
		put64(image, NV_REG_ACQ, c->acq);
		soft_cmb_registers(c, image);
		put32(image, NV_REG_CRTO, READY_TIMEOUT_500MS); /* CRWMT */
		memcpy(byte, image + offset, sizeof(image) - offset);
		return sizeof(image) - offset;
	}
	if (offset >= BAR0_DOORBELLS && offset < BAR0_DOORBELLS + BAR0_DOORBELLS_SIZE) {
		at = offset - BAR0_DOORBELLS;
		value = atomic_load_explicit(&c->doorbells[at / 4], memory_order_relaxed);
		value >>= at % 4 * 8;
		memcpy(byte, &value, 4 - at % 4);
		return 4 - at % 4;
	}
	if (offset >= BAR0_MSIX_TABLE && offset < BAR0_MSIX_TABLE + c->nr_vectors * 16) {
		*byte = c->msix_table[offset - BAR0_MSIX_TABLE];
		return 1;
	}
	if (offset >= BAR0_MSIX_PBA && offset < BAR0_MSIX_PBA + (c->nr_vectors + 7) / 8) {
		*byte = 0;
		for (uint32_t i = 0; i < 8; i++) {
			at = (offset - BAR0_MSIX_PBA) * 8 + i;
			if (at < c->nr_vectors && c->irq[at].pending)
				*byte |= (uint8_t)(1u << i);
		}
		return 1;
	}
	*byte = 0;
	return 1;
}

void soft_bar_read(struct udrv_soft *c, uint32_t offset, void *data, uint32_t count)
{
	uint8_t piece[0x6c];
	uint8_t *out = data;

	while (count) {
		uint32_t got = bar_byte_area(c, offset, piece);

		if (got > count)
			got = count;
		memcpy(out, piece, got);
		out += got;
		offset += got;
		count -= got;
	}
}

static void write_register(struct udrv_soft *c, uint32_t offset, uint32_t value)
{
	bool disabled = !(c->cc & NV_CC_EN);

	switch (offset) {
	case NV_REG_INTMS:
		/* Of use with pin interrupts only, which there are none of; the bits are kept. */
		c->intms |= value;
		break;
	case NV_REG_INTMC:
		c->intms &= ~value;
		break;
	case NV_REG_CC:
		write_cc(c, value);
		break;
	case NV_REG_AQA:
		if (disabled)
			c->aqa = value & 0x0fff0fffu;
		break;
	case NV_REG_ASQ:
		if (disabled)
			c->asq = (c->asq & ~0xffffffffull) | (value & ~0xfffu);
		break;
	case NV_REG_ASQ + 4:
		if (disabled)
			c->asq = (c->asq & 0xffffffffull) | (uint64_t)value << 32;
		break;
	case NV_REG_ACQ:
		if (disabled)
			c->acq = (c->acq & ~0xffffffffull) | (value & ~0xfffu);
		break;
	case NV_REG_ACQ + 4:
		if (disabled)
			c->acq = (c->acq & 0xffffffffull) | (uint64_t)value << 32;
		break;
	case NV_REG_CMBMSC:
	case NV_REG_CMBMSC + 4:
		soft_cmb_control(c, offset != NV_REG_CMBMSC, value);
		break;
	default:
		break; /* read-only, reserved, or not offered (NSSR) */
	}
}

static void write_doorbell(struct udrv_soft *c, uint32_t index, uint32_t value)
{
	uint32_t qid = index / 2;
	bool known = qid <= MAX_QID && (index % 2 ? c->cq[qid].live : c->sq[qid].live);

	if (!c->running)
		return;
	if (!known) {
		/* Only a trapped write can be seen to miss; in the mapped page it goes unnoticed. */
		soft_event_raise(c, NV_EVENT_ERROR, NV_EVENT_BAD_DOORBELL_REGISTER,
				 NV_LOG_ERROR);
		return;
	}
	atomic_store_explicit(&c->doorbells[index], value, memory_order_relaxed);
	if (c->cfg.flags & UDRV_SOFT_TRAP_DOORBELLS) {
		if (index % 2)
			c->counters->queue[qid].cq_doorbells++;
		else
			c->counters->queue[qid].sq_doorbells++;
	}
}

int soft_bar_write(struct udrv_soft *c, uint32_t offset, const void *data, uint32_t count)
{
	const uint8_t *bytes = data;
	uint32_t value;

	if ((count != 4 && count != 8) || offset % count)
		return -EINVAL;
	if (offset >= BAR0_DOORBELLS && offset < BAR0_DOORBELLS + BAR0_DOORBELLS_SIZE &&
	    count != 4)
		return -EINVAL;
	/* The low half of 64 bits first, as two writes of 32 bits would come. */
	for (; count; count -= 4, offset += 4, bytes += 4) {
		memcpy(&value, bytes, sizeof(value));
		if (offset < BAR0_DOORBELLS)
			write_register(c, offset, value);
		else if (offset < BAR0_DOORBELLS + BAR0_DOORBELLS_SIZE)
			write_doorbell(c, (offset - BAR0_DOORBELLS) / 4, value);
		else if (offset >= BAR0_MSIX_TABLE &&
			 offset < BAR0_MSIX_TABLE + c->nr_vectors * 16)
			memcpy(&c->msix_table[offset - BAR0_MSIX_TABLE], &value, sizeof(value));
	}
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/* Identify (NVMe 1.4, 5.15). */
#define _GNU_SOURCE
#include "ctrl.h"

#include <stdio.h>
#include <string.h>

#define CNS_NAMESPACE 0x00u
#define CNS_CONTROLLER 0x01u
#define CNS_ACTIVE_LIST 0x02u
#define CNS_DESCRIPTORS 0x03u

#define NIDT_UUID 3u
#define NIDL_UUID 16u

static void pad(char *field, size_t size, const char *text)
{
	size_t len = strlen(text);

	memset(field, ' ', size);
	memcpy(field, text, len < size ? len : size);
}

/*
 * Names that stay the same for the same serial number and NSID, and differ for others: two
 * FNV-1a hashes in the form of a version 8 UUID (RFC 9562, 5.8).
 */
static uint64_t fnv(const char *serial, uint32_t nsid, uint64_t hash)
{
	for (uint32_t i = 0; i < 20; i++)
		hash = (hash ^ (uint8_t)serial[i]) * 0x100000001b3ull;
	for (uint32_t i = 0; i < 4; i++)
		hash = (hash ^ (nsid >> i * 8 & 0xff)) * 0x100000001b3ull;
	return hash;
}

static void make_uuid(const struct udrv_soft *c, uint32_t nsid, uint8_t uuid[16])
{
	uint64_t high = fnv(c->cfg.serial, nsid, 0xcbf29ce484222325ull);
	uint64_t low = fnv(c->cfg.serial, nsid, ~0xcbf29ce484222325ull);

	for (uint32_t i = 0; i < 8; i++) {
		uuid[i] = (uint8_t)(high >> (56 - 8 * i));
		uuid[8 + i] = (uint8_t)(low >> (56 - 8 * i));
	}
	uuid[6] = (uint8_t)(0x80 | (uuid[6] & 0x0f));
	uuid[8] = (uint8_t)(0x80 | (uuid[8] & 0x3f));
}

static void make_nqn(const struct udrv_soft *c, char *nqn, size_t size)
{
	uint8_t u[16];

	make_uuid(c, 0, u);
	snprintf(nqn, size,
		 "nqn.2014-08.org.nvmexpress:uuid:%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
		 "%02x%02x%02x%02x%02x%02x",
		 u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
		 u[13], u[14], u[15]);
}

static void fill_controller(const struct udrv_soft *c, struct nv_id_ctrl *id)
{
	memcpy(&id->vid, &c->pci[0x00], sizeof(id->vid));
	memcpy(&id->ssvid, &c->pci[0x2c], sizeof(id->ssvid));
	memcpy(id->sn, c->cfg.serial, sizeof(id->sn));
	pad(id->mn, sizeof(id->mn), "udrv soft NVMe controller");
	pad(id->fr, sizeof(id->fr), "1.0");
	id->rab = 4; /* 2^4 commands, the burst of queue.c */
	id->mdts = (uint8_t)c->cfg.mdts;
	id->cntlid = 1;
	id->ver = NV_VERSION;
	id->rtd3r = 1000000; /* microseconds; never more, in practice none */
	id->rtd3e = 1000000;
	id->cntrltype = 1; /* I/O controller */
	id->oacs = NV_OACS_DOORBELL_BUFFER;
	id->acl = 3;
	id->aerl = AER_MAX - 1;
	id->frmw = 1 << 1 | 1; /* one slot, read-only */
	id->lpa = 1 << 2; /* offsets and lengths beyond 12 bits in Get Log Page */
	id->elpe = ERROR_LOG_ENTRIES - 1;
	id->wctemp = WARNING_TEMPERATURE_K;
	id->cctemp = CRITICAL_TEMPERATURE_K;
	id->sqes = 6 << 4 | 6;
	id->cqes = 4 << 4 | 4;
	id->nn = c->cfg.nn;
	id->oncs = 1 << 3; /* Write Zeroes */
	id->vwc = 3 << 1 | 1; /* a write cache; Flush takes NSID FFFFFFFFh */
	make_nqn(c, id->subnqn, sizeof(id->subnqn));
	id->psd[0].mp = 1; /* 0.01 W */
}

static void fill_namespace(const struct soft_media *m, struct nv_id_ns *id)
{
	id->nsze = m->blocks;
	id->ncap = m->blocks;
	id->nuse = m->blocks;
	id->lbaf[0].lbads = (uint8_t)m->lba_shift;
}

static uint16_t identify_namespace(struct udrv_soft *c, uint32_t nsid)
{
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS; /* FFFFFFFFh too: there is no namespace management */
	if (soft_ns_active(c, nsid))
		fill_namespace(&c->media[nsid - 1], &c->id_ns);
	return NV_OK; /* an inactive one is all zeroes */
}

static uint16_t identify_active(struct udrv_soft *c, uint32_t above)
{
	uint32_t n = 0;

	if (above >= 0xfffffffe)
		return NV_INVALID_NS;
	for (uint32_t nsid = above + 1; soft_ns_active(c, nsid); nsid++)
		memcpy(&c->page[4 * n++], &nsid, sizeof(nsid));
	return NV_OK;
}

static uint16_t identify_descriptors(struct udrv_soft *c, uint32_t nsid)
{
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (!soft_ns_active(c, nsid))
		return NV_INVALID_FIELD;
	c->page[0] = NIDT_UUID;
	c->page[1] = NIDL_UUID;
	make_uuid(c, nsid, &c->page[4]);
	return NV_OK;
}

uint16_t soft_identify(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint16_t status = NV_OK;

	memset(c->page, 0, sizeof(c->page));
	switch (cmd->cdw10 & 0xff) {
	case CNS_NAMESPACE:
		status = identify_namespace(c, cmd->nsid);
		break;
	case CNS_CONTROLLER:
		fill_controller(c, &c->id_ctrl);
		break;
	case CNS_ACTIVE_LIST:
		status = identify_active(c, cmd->nsid);
		break;
	case CNS_DESCRIPTORS:
		status = identify_descriptors(c, cmd->nsid);
		break;
	default:
		status = NV_INVALID_FIELD;
	}
	if (status)
		return status;
	return soft_answer(c, cmd, c->page, sizeof(c->page));
}

// SPDX-License-Identifier: Apache-2.0
/* Identify (NVMe 1.4, 5.15; base 2.0, 5.17; NVM command set 1.0, 4.1.5). */
#define _GNU_SOURCE
#include "ctrl.h"

#include <stdio.h>
#include <string.h>

enum cns {
	CNS_NAMESPACE = 0x00,
	CNS_CONTROLLER = 0x01,
	CNS_ACTIVE_LIST = 0x02,
	CNS_DESCRIPTORS = 0x03,
	CNS_CSI_NAMESPACE = 0x05,
	CNS_CSI_CONTROLLER = 0x06,
	CNS_INDEPENDENT_NAMESPACE = 0x08,
	CNS_ALLOCATED_LIST = 0x10,
	CNS_ALLOCATED_NAMESPACE = 0x11,
	CNS_ATTACHED_CONTROLLERS = 0x12,
	CNS_CONTROLLERS = 0x13,
};

#define ONCS_COMPARE (1u << 0)
#define ONCS_WRITE_UNCORRECTABLE (1u << 1)
#define ONCS_DATASET (1u << 2)
#define ONCS_WRITE_ZEROES (1u << 3)
#define ONCS_SELECT (1u << 4)
#define ONCS_TIMESTAMP (1u << 6)
#define ONCS_VERIFY (1u << 7)
#define ONCS_COPY (1u << 8)

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
	memcpy(id->fr, c->slots.revision[c->slots.active - 1], sizeof(id->fr));
	id->rab = 4; /* 2^4 commands, the burst of queue.c */
	id->mdts = (uint8_t)c->cfg.mdts;
	id->cntlid = CONTROLLER_ID;
	id->ver = NV_VERSION;
	id->rtd3r = 1000000; /* microseconds; never more, in practice none */
	id->rtd3e = 1000000;
	id->cntrltype = 1; /* I/O controller */
	id->oaes = NV_OAES_NS_ATTRIBUTE | NV_OAES_FIRMWARE;
	id->oacs = NV_OACS_FORMAT | NV_OACS_FIRMWARE | NV_OACS_NS_MANAGEMENT | NV_OACS_SELF_TEST |
		   NV_OACS_DOORBELL_BUFFER;
	id->acl = 3;
	id->aerl = AER_MAX - 1;
	id->frmw = 1 << 4 | FIRMWARE_SLOTS << 1 | 1; /* slot 1 is read-only; no reset needed */
	/* Logs of commands' effects, offsets beyond 12 bits, logs of supported pages and features */
	id->lpa = 1 << 5 | 1 << 2 | 1 << 1;
	id->elpe = ERROR_LOG_ENTRIES - 1;
	id->wctemp = WARNING_TEMPERATURE_K;
	id->cctemp = CRITICAL_TEMPERATURE_K;
	id->tnvmcap.low = c->capacity;
	id->unvmcap.low = soft_unallocated(c);
	id->edstt = 1; /* minutes, rounded up */
	id->dsto = 1; /* one self-test at a time */
	id->fwug = 1; /* 4 KiB */
	id->kas = 1; /* 100 ms */
	/* Crypto and block erase; the media are not modified after a sanitize operation. */
	id->sanicap = 1u << 30 | 1 << 1 | 1;
	id->sqes = 6 << 4 | 6;
	id->cqes = 4 << 4 | 4;
	id->nn = c->cfg.nn;
	id->oncs = ONCS_COPY | ONCS_VERIFY | ONCS_TIMESTAMP | ONCS_SELECT | ONCS_WRITE_ZEROES |
		   ONCS_DATASET | ONCS_WRITE_UNCORRECTABLE | ONCS_COMPARE;
	id->fuses = 1; /* Compare and Write */
	id->awun = (uint16_t)SOFT_ATOMIC(c);
	id->acwu = (uint16_t)SOFT_ATOMIC(c);
	id->fna = 1 << 2; /* cryptographic erase; each namespace by itself */
	id->ocfs = 1; /* descriptor format 0 */
	id->mnan = 0; /* NN is the limit */
	id->vwc = 3 << 1 | 1; /* a write cache; Flush takes NSID FFFFFFFFh */
	make_nqn(c, id->subnqn, sizeof(id->subnqn));
	id->psd[0].mp = 1; /* 0.01 W */
}

static void fill_namespace(const struct soft_media *m, struct nv_id_ns *id)
{
	soft_ns_formats(id);
	id->nsze = m->blocks;
	id->ncap = m->blocks;
	id->nuse = m->blocks;
	id->nvmcap.low = m->bytes;
	id->flbas = (uint8_t)(m->extended << 4 | m->format);
	id->dps = (uint8_t)(m->pi_first << 3 | m->pi);
}

static uint16_t identify_namespace(struct udrv_soft *c, uint32_t nsid, bool allocated)
{
	if (nsid == NV_NSID_ALL && !allocated) {
		soft_ns_formats(&c->id_ns); /* for a host that is about to create one */
		return NV_OK;
	}
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (allocated ? soft_ns_allocated(c, nsid) : soft_ns_active(c, nsid))
		fill_namespace(&c->media[nsid - 1], &c->id_ns);
	return NV_OK; /* an inactive one is all zeroes */
}

static uint16_t identify_list(struct udrv_soft *c, uint32_t above, bool allocated)
{
	uint32_t n = 0;

	if (above >= 0xfffffffe)
		return NV_INVALID_NS;
	for (uint32_t nsid = above + 1; nsid <= UDRV_SOFT_MAX_NS; nsid++) {
		if (allocated ? soft_ns_allocated(c, nsid) : soft_ns_active(c, nsid))
			c->dwords[n++] = nsid;
	}
	return NV_OK;
}

static uint16_t check_active(const struct udrv_soft *c, uint32_t nsid)
{
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	return soft_ns_active(c, nsid) ? NV_OK : NV_INVALID_FIELD;
}

/*
 * NVM command set 1.0, 4.1.5.3 and .4. Of a namespace: zeroes, 16-bit guards and no storage tag.
 * Of the controller: zeroes, no limits of Verify, Write Zeroes, Write Uncorrectable and Dataset
 * Management of their own.
 */
static uint16_t identify_command_set(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	if (cmd->cdw11 >> 24)
		return NV_INVALID_FIELD; /* CSI: the NVM command set is the only one */
	if ((cmd->cdw10 & 0xff) == CNS_CSI_CONTROLLER)
		return NV_OK;
	if (cmd->nsid < 1 || (cmd->nsid > c->cfg.nn && cmd->nsid != NV_NSID_ALL))
		return NV_INVALID_NS;
	return NV_OK;
}

/* Base 2.0, 5.17.2.8: NSTAT says that it is ready. */
static uint16_t identify_independent(struct udrv_soft *c, uint32_t nsid)
{
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	if (soft_ns_active(c, nsid))
		c->page[14] = 1;
	return NV_OK;
}

/* Controllers with an id from CDW10's on: us, or none. 5.15.2.10 and .11 */
static uint16_t identify_controllers(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	bool ours = cmd->cdw10 >> 16 <= CONTROLLER_ID;

	if ((cmd->cdw10 & 0xff) == CNS_ATTACHED_CONTROLLERS) {
		if (cmd->nsid < 1 || cmd->nsid > c->cfg.nn)
			return NV_INVALID_NS;
		ours = ours && soft_ns_active(c, cmd->nsid);
	}
	c->words[0] = ours;
	c->words[1] = ours ? CONTROLLER_ID : 0;
	return NV_OK;
}

static uint16_t identify_descriptors(struct udrv_soft *c, uint32_t nsid)
{
	uint16_t status = check_active(c, nsid);

	if (status)
		return status;
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
	case CNS_ALLOCATED_NAMESPACE:
		status = identify_namespace(c, cmd->nsid,
					    (cmd->cdw10 & 0xff) == CNS_ALLOCATED_NAMESPACE);
		break;
	case CNS_CONTROLLER:
		fill_controller(c, &c->id_ctrl);
		break;
	case CNS_ACTIVE_LIST:
	case CNS_ALLOCATED_LIST:
		status = identify_list(c, cmd->nsid, (cmd->cdw10 & 0xff) == CNS_ALLOCATED_LIST);
		break;
	case CNS_DESCRIPTORS:
		status = identify_descriptors(c, cmd->nsid);
		break;
	case CNS_CSI_NAMESPACE:
	case CNS_CSI_CONTROLLER:
		status = identify_command_set(c, cmd);
		break;
	case CNS_INDEPENDENT_NAMESPACE:
		status = identify_independent(c, cmd->nsid);
		break;
	case CNS_ATTACHED_CONTROLLERS:
	case CNS_CONTROLLERS:
		status = identify_controllers(c, cmd);
		break;
	default:
		status = NV_INVALID_FIELD;
	}
	if (status)
		return status;
	return soft_answer(c, cmd, c->page, sizeof(c->page));
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Namespaces: their formats, Format NVM (NVMe 1.4, 5.23), Namespace Management and Attachment
 * (5.20, 5.19). There is one controller, whose id is CONTROLLER_ID.
 */
#define _GNU_SOURCE
#include "ctrl.h"

#include <string.h>

static const struct nv_lbaf formats[SOFT_FORMATS] = {
	{ .lbads = 9 },
	{ .lbads = 9, .ms = 8 },
	{ .lbads = 12 },
	{ .lbads = 12, .ms = 8 },
	{ .lbads = 12, .ms = 64 },
};

void soft_ns_formats(struct nv_id_ns *id)
{
	memcpy(id->lbaf, formats, sizeof(formats));
	id->nlbaf = SOFT_FORMATS - 1;
	id->mc = 3; /* metadata in the data buffer, or in its own */
	id->dpc = 0x1f; /* types 1 to 3, in the first or the last 8 bytes of metadata */
	id->dlfeat = 1 << 3 | 1; /* deallocated: zeroes; Write Zeroes may deallocate */
	id->mssrl = SOFT_COPY_RANGE;
	id->mcl = SOFT_COPY_BLOCKS;
	id->msrc = SOFT_COPY_RANGES - 1;
}

uint64_t soft_unallocated(const struct udrv_soft *c)
{
	uint64_t left = c->capacity;

	for (uint32_t i = 0; i < UDRV_SOFT_MAX_NS; i++) {
		if (c->media[i].allocated)
			left -= c->media[i].bytes;
	}
	return left;
}

/* --- formats ------------------------------------------------------------------------------- */

struct layout {
	uint32_t format;
	bool extended;
	uint8_t pi;
	bool pi_first;
};

static uint16_t check_layout(const struct layout *l)
{
	if (l->format >= SOFT_FORMATS || l->pi > 3 || (l->pi && formats[l->format].ms < 8))
		return NV_FORMAT_INVALID;
	return NV_OK;
}

static uint16_t apply_layout(struct soft_media *m, const struct layout *l)
{
	const struct nv_lbaf *f = &formats[l->format];

	if (!(m->bytes >> f->lbads))
		return NV_FORMAT_INVALID; /* not one block */
	m->format = (uint8_t)l->format;
	m->lba_shift = f->lbads;
	m->blocks = m->bytes >> f->lbads;
	m->ms = f->ms;
	m->extended = l->extended && f->ms;
	m->pi = l->pi;
	m->pi_first = l->pi && l->pi_first;
	return soft_media_metadata(m) ? NV_OK : NV_INTERNAL;
}

void soft_ns_configured(struct soft_media *m)
{
	m->allocated = true;
	m->attached = true;
	for (uint8_t i = 0; i < SOFT_FORMATS; i++) {
		if (formats[i].lbads == m->lba_shift && !formats[i].ms)
			m->format = i;
	}
}

static uint16_t format_one(struct udrv_soft *c, uint32_t nsid, const struct layout *l)
{
	struct soft_media *m = &c->media[nsid - 1];
	uint16_t status;

	if (!soft_media_erase(m))
		return NV_INTERNAL;
	status = apply_layout(m, l);
	if (!status)
		soft_ns_changed(c, nsid);
	return status;
}

uint16_t soft_format(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint32_t dword = cmd->cdw10;
	struct layout l = {
		.format = (dword & 15) | (dword >> 12 & 3) << 4,
		.extended = dword >> 4 & 1,
		.pi = dword >> 5 & 7,
		.pi_first = dword >> 8 & 1,
	};
	uint16_t status = check_layout(&l);

	if ((dword >> 9 & 7) > 2)
		return NV_INVALID_FIELD; /* neither user data erase nor cryptographic erase */
	if (cmd->nsid != NV_NSID_ALL) {
		if (cmd->nsid < 1 || cmd->nsid > c->cfg.nn)
			return NV_INVALID_NS;
		if (!soft_ns_active(c, cmd->nsid))
			return NV_INVALID_FIELD;
	}
	if (status)
		return status;
	soft_self_test_abort(c, SOFT_TEST_FORMAT);
	for (uint32_t nsid = 1; nsid <= UDRV_SOFT_MAX_NS; nsid++) {
		if (!soft_ns_active(c, nsid) || (cmd->nsid != nsid && cmd->nsid != NV_NSID_ALL))
			continue;
		status = format_one(c, nsid, &l);
		if (status)
			return status;
	}
	return NV_OK;
}

/* --- management ---------------------------------------------------------------------------- */

static uint32_t free_nsid(const struct udrv_soft *c)
{
	for (uint32_t nsid = 1; nsid <= c->cfg.nn && nsid <= UDRV_SOFT_MAX_NS; nsid++) {
		if (!c->media[nsid - 1].allocated)
			return nsid;
	}
	return 0;
}

static uint16_t create(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	struct udrv_soft_ns ns = { .fd = -1 };
	const struct nv_id_ns *id = &c->id_ns;
	struct layout l;
	uint32_t nsid = free_nsid(c);
	uint16_t status;

	if (cmd->cdw11 >> 24)
		return NV_INVALID_FIELD; /* CSI: the NVM command set */
	status = soft_fetch(c, cmd, c->page, sizeof(c->page));
	if (status)
		return status;
	l = (struct layout){ .format = (id->flbas & 15) | (id->flbas & 0x60) >> 1,
			     .extended = id->flbas & 0x10, .pi = id->dps & 7,
			     .pi_first = id->dps & 8 };
	status = check_layout(&l);
	if (status)
		return status;
	if (!id->nsze || id->ncap > id->nsze || id->nmic)
		return NV_INVALID_FIELD; /* CMIC: there is nobody to share with */
	if (id->ncap < id->nsze)
		return NV_NO_THIN;
	if (!nsid)
		return NV_NO_NSID;
	if (id->nsze > soft_unallocated(c) >> formats[l.format].lbads)
		return NV_NO_CAPACITY;
	ns.blocks = id->nsze;
	ns.lba_shift = formats[l.format].lbads;
	if (soft_media_open(&c->media[nsid - 1], &ns))
		return NV_INTERNAL;
	status = apply_layout(&c->media[nsid - 1], &l);
	if (status) {
		soft_media_close(&c->media[nsid - 1]);
		return status;
	}
	c->media[nsid - 1].allocated = true;
	c->media[nsid - 1].special |= soft_sanitize_special(c);
	c->feature.error_recovery[nsid - 1] = 0;
	*result = nsid;
	return NV_OK;
}

static void delete_one(struct udrv_soft *c, uint32_t nsid)
{
	bool was_active = soft_ns_active(c, nsid);

	if (c->test.nsid == nsid)
		soft_self_test_abort(c, SOFT_TEST_REMOVED);
	soft_media_close(&c->media[nsid - 1]);
	if (was_active)
		soft_ns_changed(c, nsid);
}

static uint16_t check_allocated(const struct udrv_soft *c, uint32_t nsid)
{
	if (nsid < 1 || nsid > c->cfg.nn)
		return NV_INVALID_NS;
	return soft_ns_allocated(c, nsid) ? NV_OK : NV_INVALID_FIELD;
}

uint16_t soft_ns_management(struct udrv_soft *c, const struct nv_sqe *cmd, uint32_t *result)
{
	uint16_t status;

	switch (cmd->cdw10 & 15) {
	case 0:
		return create(c, cmd, result);
	case 1:
		if (cmd->nsid != NV_NSID_ALL) {
			status = check_allocated(c, cmd->nsid);
			if (status)
				return status;
		}
		for (uint32_t nsid = 1; nsid <= UDRV_SOFT_MAX_NS; nsid++) {
			if (soft_ns_allocated(c, nsid) &&
			    (cmd->nsid == nsid || cmd->nsid == NV_NSID_ALL))
				delete_one(c, nsid);
		}
		return NV_OK;
	default:
		return NV_INVALID_FIELD;
	}
}

uint16_t soft_ns_attachment(struct udrv_soft *c, const struct nv_sqe *cmd)
{
	uint32_t select = cmd->cdw10 & 15;
	struct soft_media *m;
	uint16_t status = check_allocated(c, cmd->nsid);

	if (select > 1)
		return NV_INVALID_FIELD;
	if (status)
		return status;
	status = soft_fetch(c, cmd, c->page, sizeof(c->page));
	if (status)
		return status;
	/* How many, then their ids. */
	if (c->words[0] != 1 || c->words[1] != CONTROLLER_ID)
		return NV_CTRL_LIST;
	m = &c->media[cmd->nsid - 1];
	if (select == 0 && m->attached)
		return NV_ALREADY_ATTACHED;
	if (select == 1 && !m->attached)
		return NV_NOT_ATTACHED;
	m->attached = select == 0;
	soft_ns_changed(c, cmd->nsid);
	return NV_OK;
}

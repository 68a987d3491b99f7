/* SPDX-License-Identifier: Apache-2.0 */
/* media.h - media.c: the bytes of a namespace. Included by ctrl.h, which has its structures. */
#ifndef UDRV_SOFT_MEDIA_H
#define UDRV_SOFT_MEDIA_H

int soft_media_open(struct soft_media *m, const struct udrv_soft_ns *ns);
void soft_media_close(struct soft_media *m);
bool soft_media_sync(struct soft_media *m);
bool soft_sync_all(struct udrv_soft *c);

/**
 * soft_media_io() - move what c->segment points to, to or from byte @at of the media
 * @durable:	a write that is on stable media when this returns
 * The range was checked. Return: NV_OK, or a status.
 */
uint16_t soft_media_io(struct udrv_soft *c, struct soft_media *m, uint64_t at, bool write,
		       bool durable);

/* soft_media_zero() - @len bytes from byte @at read as zeroes from now on; @give_back: free them */
uint16_t soft_media_zero(struct soft_media *m, uint64_t at, uint64_t len, bool give_back);

/* soft_media_erase() - all data and metadata, and what is known of bad blocks, is gone */
bool soft_media_erase(struct soft_media *m);

/* soft_media_metadata() - make room for metadata of m->ms bytes a block, as if never written */
bool soft_media_metadata(struct soft_media *m);

/* soft_media_bad() - mark blocks as unreadable, or not; false: no memory for the map */
bool soft_media_bad(struct soft_media *m, uint64_t slba, uint64_t blocks, bool bad);
bool soft_media_any_bad(const struct soft_media *m, uint64_t slba, uint64_t blocks);
bool soft_media_first_bad(const struct soft_media *m, uint64_t *lba);

/* soft_media_flip() - change one bit behind everybody's back */
void soft_media_flip(struct soft_media *m, uint64_t at, uint32_t bit);

#endif /* UDRV_SOFT_MEDIA_H */

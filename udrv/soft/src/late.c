// SPDX-License-Identifier: Apache-2.0
/* A binary heap of completions, the earliest at the top. The caller sees to it that there is room. */
#include "fault.h"

static bool before(const struct soft_late *a, const struct soft_late *b)
{
	return a->due_ns < b->due_ns || (a->due_ns == b->due_ns && a->order < b->order);
}

static void swap(struct soft_late *a, struct soft_late *b)
{
	struct soft_late was = *a;

	*a = *b;
	*b = was;
}

static void sift_down(struct late_heap *h, uint32_t i)
{
	for (;;) {
		uint32_t least = i, left = 2 * i + 1, right = left + 1;

		if (left < h->nr && before(&h->at[left], &h->at[least]))
			least = left;
		if (right < h->nr && before(&h->at[right], &h->at[least]))
			least = right;
		if (least == i)
			return;
		swap(&h->at[i], &h->at[least]);
		i = least;
	}
}

void late_push(struct late_heap *h, struct soft_late *late)
{
	uint32_t i = h->nr++;

	late->order = h->order++;
	h->at[i] = *late;
	for (; i && before(&h->at[i], &h->at[(i - 1) / 2]); i = (i - 1) / 2)
		swap(&h->at[i], &h->at[(i - 1) / 2]);
}

void late_pop(struct late_heap *h, struct soft_late *late)
{
	*late = h->at[0];
	h->at[0] = h->at[--h->nr];
	sift_down(h, 0);
}

void late_renew(struct late_heap *h)
{
	for (uint32_t i = h->nr / 2; i-- > 0;)
		sift_down(h, i);
}

#define UDRV_HIST_BITS ...
#define UDRV_HIST_BUCKETS ...

struct udrv_hist {
	uint64_t count;
	uint64_t sum;
	uint64_t min;
	uint64_t max;
	double sum_sq;
	uint64_t saturated;
	uint64_t bucket[...];
	...;
};

void udrv_hist_reset(struct udrv_hist *h);
void udrv_hist_merge(struct udrv_hist *to, const struct udrv_hist *from);
uint32_t udrv_hist_index(uint64_t v);
void udrv_hist_record(struct udrv_hist *h, uint64_t v);
uint64_t udrv_hist_bucket_high(uint32_t index);
uint64_t udrv_hist_bucket_low(uint32_t index);
uint64_t udrv_hist_quantile(const struct udrv_hist *h, double quantile);

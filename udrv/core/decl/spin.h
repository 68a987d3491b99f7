#define UDRV_SPIN_MOST_NS ...
#define UDRV_SPIN_LEAST_NS ...

struct udrv_spin {
	uint64_t mean_ns;
	...;
};

uint64_t udrv_spin_budget(const struct udrv_spin *s, uint64_t spin_ns);
void udrv_spin_observe(struct udrv_spin *s, uint64_t waited_ns);

#define UDRV_CLOCK_GETTIME ...
#define UDRV_CLOCK_TSC ...
#define UDRV_CLOCK_CNTVCT ...

struct udrv_clock {
	uint32_t source;
	uint64_t mult;
	...;
};
extern struct udrv_clock udrv_clock;

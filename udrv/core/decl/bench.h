#define UDRV_BENCH_RANDOM ...
#define UDRV_BENCH_VERIFY ...
#define UDRV_BENCH_READBACK ...
#define UDRV_BENCH_CLOSED ...
#define UDRV_BENCH_LINEAR ...
#define UDRV_BENCH_POISSON ...
#define UDRV_BENCH_GOOD ...
#define UDRV_BENCH_BAD_MAGIC ...
#define UDRV_BENCH_BAD_LBA ...
#define UDRV_BENCH_BAD_SEED ...
#define UDRV_BENCH_BAD_GENERATION ...
#define UDRV_BENCH_BAD_PAYLOAD ...
#define UDRV_BENCH_MAX_DEPTH ...

struct udrv_bench_live {
	uint64_t ios[2];
	uint64_t bytes[2];
	uint64_t errors;
	uint64_t inflight;
	...;
};

struct udrv_bench_direction {
	uint64_t ios;
	uint64_t bytes;
	uint64_t errors;
	struct udrv_hist slat;
	struct udrv_hist clat;
	struct udrv_hist lat;
	...;
};

struct udrv_bench_result {
	struct udrv_bench_direction dir[2];
	uint64_t elapsed_ns;
	uint64_t issued;
	uint32_t unfinished;
	uint32_t timed_out;
	uint16_t first_status;
	uint8_t first_opcode;
	uint8_t saturated;
	uint32_t first_bad_kind;
	uint32_t first_result;
	uint64_t first_error_slba;
	uint64_t blocks_checked;
	uint64_t blocks_unchecked;
	uint64_t verify_failures;
	uint64_t first_bad_lba;
	uint64_t lag_max_ns;
	uint64_t lag_end_ns;
	uint64_t backlog;
	uint64_t sq_doorbells;
	uint64_t cq_doorbells;
	uint64_t system_calls;
	uint64_t polls;
	uint64_t empty_polls;
	uint64_t cpu_ns;
	uint64_t user_ns;
	uint64_t system_ns;
	uint64_t voluntary_switches;
	uint64_t involuntary_switches;
	...;
};

struct udrv_bench_job {
	struct udrv_queue queue;
	const struct udrv_batch *base;
	void *buffer;
	void *scratch;
	uint32_t *verify_table;
	struct udrv_bench_live *live;
	struct udrv_bench_result *result;
	uint32_t flags;
	uint32_t process;
	uint32_t read_percent;
	uint32_t iodepth;
	uint32_t unit_blocks;
	uint32_t buffer_stride;
	uint64_t start_block;
	uint64_t units;
	uint64_t seed;
	uint64_t pattern_seed;
	uint64_t runtime_ns;
	uint64_t max_ios;
	uint64_t max_errors;
	uint64_t timeout_ns;
	uint64_t spin_ns;
	double rate_iops;
	uint32_t stop;
	...;
};

size_t udrv_bench_scratch_size(uint32_t iodepth);
void udrv_bench_result_reset(struct udrv_bench_result *result);
int udrv_bench_run(struct udrv_bench_job *job);
void udrv_pattern_fill(void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
		       uint32_t generation);
uint32_t udrv_pattern_check(const void *block, uint32_t bytes, uint64_t lba, uint64_t seed,
			    uint32_t generation);
void udrv_bench_schedule(uint32_t process, double rate_iops, uint64_t seed, uint64_t *out,
			 uint32_t n);

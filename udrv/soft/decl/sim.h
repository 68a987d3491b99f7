/* What Python sees of udrv/soft_sim.h, which documents it. */

#define UDRV_SIM_MAX_LOADS 16
#define UDRV_SIM_MAX_DEPTH 1024
#define UDRV_SIM_LATENCY_UNIT 16
#define UDRV_SIM_SATURATED 1

struct udrv_sim_load {
	uint64_t duration_us;
	uint64_t think_us;
	uint32_t depth;
	uint32_t blocks;
	uint32_t sequential;
	uint32_t reserved;
	double reads;
};

struct udrv_sim_config {
	uint64_t end_ns;
	uint64_t timeout_us;
	uint64_t blocks;
	uint64_t seed;
	uint32_t lba_shift;
	uint32_t queues;
	uint32_t nr_loads;
	uint32_t nr_faults;
	struct udrv_model model;
	struct udrv_sim_load load[16];
	struct udrv_fault fault[64];
};

struct udrv_sim_columns {
	uint64_t capacity;
	uint64_t truth_capacity;
	uint64_t *submit_ns;
	uint64_t *slba;
	uint32_t *latency;
	uint16_t *nlb;
	uint16_t *depth;
	uint16_t *qid;
	uint16_t *status;
	uint8_t *opcode;
	uint8_t *flags;
	uint16_t *ns_index;
	struct udrv_truth *truth;
	uint64_t nr;
	uint64_t nr_truth;
};

struct udrv_sim;

int udrv_sim_new(const struct udrv_sim_config *cfg, struct udrv_sim **sim);
int udrv_sim_run(struct udrv_sim *sim, struct udrv_sim_columns *out);
void udrv_sim_free(struct udrv_sim *sim);

/* What Python sees of udrv/soft.h, which documents it. */

#define UDRV_SOFT_MAX_NS 32
#define UDRV_SOFT_MAX_QUEUES 128
#define UDRV_SOFT_TRAP_DOORBELLS 1
#define UDRV_SOFT_PEER_CLOSED 0
#define UDRV_SOFT_STOPPED 1

struct udrv_soft_ns {
	uint64_t blocks;
	uint32_t lba_shift;
	int32_t fd;
};

struct udrv_soft_config {
	uint32_t size;
	uint32_t flags;
	int32_t sock_fd;
	int32_t ready_fd;
	int32_t counters_fd;
	int32_t control_fd;
	int32_t faults_fd;
	int32_t truth_fd;
	uint32_t nr_ns;
	uint32_t nn;
	uint32_t queues;
	uint32_t entries;
	uint32_t mdts;
	uint32_t spin_us;
	uint64_t cmb_bytes;
	char serial[20];
	struct udrv_soft_ns ns[32];
};

struct udrv_soft_queue_counters {
	uint64_t sq_doorbells;
	uint64_t cq_doorbells;
	uint64_t commands;
	uint64_t errors;
	uint64_t interrupts;
	uint64_t cq_full;
	uint64_t sq_shadow;
	uint64_t cq_shadow;
};

struct udrv_soft_counters {
	uint64_t messages;
	uint64_t refused;
	uint64_t naps;
	uint64_t enables;
	struct udrv_soft_queue_counters queue[129];
};

struct udrv_soft;

int udrv_soft_new(const struct udrv_soft_config *cfg, struct udrv_soft **ctrl);
int udrv_soft_run(struct udrv_soft *ctrl, int sock, int stop_fd);
void udrv_soft_control(struct udrv_soft *ctrl);
void udrv_soft_free(struct udrv_soft *ctrl);
int udrv_soft_child(const void *config, size_t len);

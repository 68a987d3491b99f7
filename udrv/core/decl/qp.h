#define UDRV_EBUSY ...
#define UDRV_EFORKED ...
#define UDRV_ECLOSED ...
#define UDRV_EFULL ...
#define UDRV_EOPCODE ...
#define UDRV_ERANGE ...
#define UDRV_ESIZE ...
#define UDRV_EBUFFER ...
#define UDRV_EALIGN ...
#define UDRV_EINVAL ...
#define UDRV_ETRANSPORT ...
#define UDRV_EREADONLY ...
#define UDRV_EHALTED ...
#define UDRV_QP_HALTED ...
#define UDRV_STATUS_ABORTED_BY_HOST ...
#define UDRV_QP_SLOTS ...
#define UDRV_QP_UNTIMED ...
#define UDRV_QP_PRP_MAX_TRANSFER ...
#define UDRV_SPIN_ONLY ...
#define UDRV_SPIN_MEASURED ...

struct nvme_sqe { ...; };

struct udrv_qp_anomalies {
	uint64_t bad_cid;
	uint64_t duplicate;
	uint64_t bad_sqid;
	uint64_t late;
	...;
};

struct udrv_qp_shared {
	uint32_t magic;
	uint32_t abi;
	uint64_t epoch;
	uint16_t qid;
	uint16_t entries;
	uint16_t nr_trackers;
	uint32_t trackers_offset;
	uint32_t free_offset;
	uint32_t slots_offset;
	uint32_t size;
	uint32_t sq_posted;
	uint32_t sq_rung;
	uint32_t nr_free;
	uint64_t submitted;
	uint64_t sq_doorbells;
	uint64_t sq_shadow;
	uint64_t forced;
	uint32_t cq_head;
	uint32_t cq_rung;
	uint32_t cq_phase;
	uint64_t consumed;
	uint64_t completed;
	uint64_t cq_doorbells;
	uint64_t cq_shadow;
	struct udrv_qp_anomalies anomalies;
	...;
};

struct udrv_qp {
	struct udrv_qp_shared *shared;
	uint32_t closed;
	int32_t eventfd;
	uint64_t ring_after_ns;
	...;
};

struct udrv_qp_config {
	uint16_t qid;
	uint16_t entries;
	int32_t eventfd;
	uint32_t max_transfer;
	uint32_t flags;
	void *shared;
	void *sq;
	void *cq;
	void *prp;
	uint64_t prp_iova;
	void *sq_doorbell;
	void *cq_doorbell;
	void *sq_shadow;
	void *cq_shadow;
	void *sq_event;
	void *cq_event;
	const void *sq_post;
	const void *cq_post;
	int32_t post_fd;
	uint32_t post_len;
	uint32_t post_at;
	...;
};

struct udrv_command {
	uint64_t slba;
	uint64_t offset;
	uint64_t user_data;
	uint32_t nlb;
	uint16_t control;
	uint8_t opcode;
	...;
};

struct udrv_batch {
	uint32_t capacity;
	uint32_t nsid;
	uint32_t lba_shift;
	uint32_t pool_id;
	uint64_t nsze;
	uint64_t iova;
	uint64_t len;
	uint64_t pool_offset;
	uint64_t prp_table;
	const struct udrv_command *commands;
	uint16_t slot;
	uint16_t file;
	uint16_t buf_index;
	uint16_t writable;
	...;
};

struct udrv_completion {
	uint64_t user_data;
	uint64_t result;
	uint64_t latency_ns;
	uint16_t status;
	...;
};

struct udrv_completions {
	uint32_t capacity;
	struct udrv_completion *rows;
	...;
};

extern uint32_t udrv_fork_generation;
int udrv_core_init(void);

size_t udrv_qp_shared_size(uint32_t entries);
struct udrv_qp *udrv_qp_new(void);
void udrv_qp_free(struct udrv_qp *qp);
int udrv_qp_init(struct udrv_qp *qp, const struct udrv_qp_config *config);
int udrv_qp_submit(struct udrv_qp *qp, const struct udrv_batch *batch, uint32_t first,
		   uint32_t count, uint32_t *bad);
int udrv_qp_submit_raw(struct udrv_qp *qp, const void *sqe, uint64_t iova, uint32_t len,
		       uint32_t pool_id, uint64_t pool_offset, uint64_t offset, uint16_t slot,
		       uint64_t user_data);
int udrv_qp_reap(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t first,
		 uint32_t max);
int udrv_qp_wait(struct udrv_qp *qp, const struct udrv_completions *out, uint32_t min,
		 uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);
uint32_t udrv_qp_slot_inflight(const struct udrv_qp *qp, uint16_t slot);
uint32_t udrv_qp_inflight(const struct udrv_qp *qp);
int udrv_qp_quarantine(struct udrv_qp *qp, uint32_t slot);
int udrv_qp_release_all(struct udrv_qp *qp);
int udrv_qp_ring(struct udrv_qp *qp);
void udrv_qp_close(struct udrv_qp *qp);
int udrv_qp_halt(struct udrv_qp *qp);
int udrv_qp_restart(struct udrv_qp *qp);
void udrv_qp_resume(struct udrv_qp *qp);

struct udrv_overdue {
	uint64_t submit_ticks;
	uint64_t age_ns;
	uint64_t user_data;
	uint64_t slba;
	uint32_t len;
	uint16_t cid;
	uint8_t opcode;
	...;
};

uint32_t udrv_qp_overdue(const struct udrv_qp *qp, const uint64_t *limits_ns,
			 struct udrv_overdue *out, uint32_t max);
uint32_t udrv_qp_unreaped(const struct udrv_qp *qp);

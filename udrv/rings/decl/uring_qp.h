/* void *: pointers to structures of the core come from the core's own ffi. */
#define UDRV_URING_BLOCK ...
#define UDRV_URING_IOPOLL ...
#define UDRV_URING_ONE_THREAD ...
#define UDRV_URING_FIXED_CMD ...
#define UDRV_STATUS_HOST ...
#define UDRV_URING_FILES ...
#define UDRV_URING_BUFFERS ...
#define UDRV_URING_NO_BUFFER ...
#define UDRV_URING_MAX_DEPTH ...


struct udrv_qp_anomalies {
	uint64_t bad_cid;
	uint64_t duplicate;
	uint64_t late;
	...;
};

struct udrv_uring_counters {
	uint64_t submitted;
	uint64_t completed;
	uint64_t consumed;
	uint64_t enters;
	uint64_t fixed;
	struct udrv_qp_anomalies anomalies;
	...;
};

struct udrv_uring_config {
	uint16_t qid;
	uint16_t depth;
	uint32_t flags;
	int32_t eventfd;
	uint32_t max_transfer;
	uint32_t timeout_ms;
	uint32_t align_mask;
	...;
};

struct udrv_uring_tracker;
struct udrv_uring_qp {
	struct udrv_uring_tracker *trackers;
	uint16_t *free;
	uint32_t depth;
	struct udrv_uring_counters counters;
	uint32_t setup_flags;
	...;
};

int udrv_uring_core_init(const void *clock);
void udrv_uring_qp_exit(struct udrv_uring_qp *qp);
int udrv_uring_qp_init(struct udrv_uring_qp *qp, const struct udrv_uring_config *config);
int udrv_uring_qp_file(struct udrv_uring_qp *qp, uint32_t index, int fd);
int udrv_uring_qp_buffer(struct udrv_uring_qp *qp, uint32_t index, void *address, size_t len);
int udrv_uring_qp_submit(struct udrv_uring_qp *qp, const void *batch, uint32_t first,
			 uint32_t count, void *bad);
int udrv_uring_qp_submit_raw(struct udrv_uring_qp *qp, const void *batch,
			     const void *sqe, uint64_t offset, uint32_t len,
			     uint64_t user_data);
int udrv_uring_qp_reap(struct udrv_uring_qp *qp, const void *out,
		       uint32_t first, uint32_t max);
int udrv_uring_qp_wait(struct udrv_uring_qp *qp, const void *out, uint32_t min,
		       uint32_t max, uint64_t timeout_ns, uint64_t spin_ns);
uint32_t udrv_uring_qp_slot_inflight(const struct udrv_uring_qp *qp, uint16_t slot);
uint32_t udrv_uring_qp_inflight(const struct udrv_uring_qp *qp);
int udrv_uring_qp_quarantine(struct udrv_uring_qp *qp, uint32_t slot);
void udrv_uring_qp_close(struct udrv_uring_qp *qp);
int udrv_uring_qp_drain(struct udrv_uring_qp *qp, uint64_t timeout_ns);
void udrv_uring_qp_as_queue(struct udrv_uring_qp *qp, void *queue);
int udrv_uring_qp_set_stream(struct udrv_uring_qp *qp, void *stream);

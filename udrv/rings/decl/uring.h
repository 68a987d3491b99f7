#define UDRV_URING_EBUSY ...
#define UDRV_URING_ESQFULL ...
#define UDRV_URING_ESLOTS ...
#define UDRV_URING_EOPCODE ...
#define UDRV_URING_EFLAGS ...
#define UDRV_URING_EBUFFER ...
#define UDRV_URING_EREADONLY ...
#define UDRV_URING_ECHAIN ...
#define UDRV_URING_EINVAL ...
#define UDRV_URING_ECLOSED ...
#define UDRV_URING_NO_GROUP ...
#define UDRV_URING_CMD_MAX ...

struct udrv_uring {
	struct io_uring ring;
	uint32_t nr_slots;
	uint64_t prepared;
	uint64_t completed;
	uint64_t strays;
	uint64_t overflows;
	...;
};

struct udrv_uring_counts {
	uint32_t inflight;
	uint32_t unsubmitted;
	uint32_t ready;
	uint32_t dropped;
	uint32_t backlog;
	...;
};

struct udrv_uring_op {
	uint64_t off;
	uint64_t addr;
	uint64_t user_data;
	uint64_t addr3;
	int32_t fd;
	uint32_t len;
	uint32_t op_flags;
	uint32_t file_index;
	uint32_t group;
	uint16_t ioprio;
	uint16_t buf_index;
	uint8_t opcode;
	uint8_t flags;
	...;
};

struct udrv_uring_batch {
	uint32_t capacity;
	uint32_t writable;
	uint64_t base;
	uint64_t size;
	const uint8_t *opcode;
	const uint8_t *flags;
	const int32_t *fd;
	const uint64_t *file_offset;
	const uint64_t *buffer_offset;
	const uint32_t *length;
	const uint32_t *rw_flags;
	const uint16_t *buf_index;
	const uint64_t *user_data;
	uint64_t *token;
};

struct udrv_uring_completions {
	uint32_t capacity;
	uint64_t *user_data;
	uint64_t *token;
	int32_t *res;
	uint32_t *flags;
	uint64_t *big;
	...;
};

struct udrv_uring *udrv_uring_new(uint32_t slots);
void udrv_uring_free(struct udrv_uring *u);
int udrv_uring_open(struct udrv_uring *u, uint32_t entries, struct io_uring_params *params);
int udrv_uring_exit(struct udrv_uring *u);
int udrv_uring_probe(struct udrv_uring *u, uint8_t *supported, uint32_t count);
int64_t udrv_uring_prep(struct udrv_uring *u, const struct udrv_uring_op *op);
int64_t udrv_uring_prep_timeout(struct udrv_uring *u, const struct udrv_uring_op *op, int64_t sec,
				int64_t nsec);
int64_t udrv_uring_prep_cmd(struct udrv_uring *u, const struct udrv_uring_op *op,
			    const void *command, uint32_t size);
int udrv_uring_push(struct udrv_uring *u, const struct udrv_uring_batch *batch, uint32_t first,
		    uint32_t count, uint32_t group, uint32_t *bad);
int udrv_uring_submit(struct udrv_uring *u);
int udrv_uring_wait(struct udrv_uring *u, uint32_t count, uint64_t timeout_ns, int submit);
int udrv_uring_reap(struct udrv_uring *u, const struct udrv_uring_completions *out, uint32_t max);
uint32_t udrv_uring_released(struct udrv_uring *u);
int udrv_uring_counts(struct udrv_uring *u, struct udrv_uring_counts *counts);
int udrv_uring_discard(struct udrv_uring *u);
int udrv_uring_cancel_all(struct udrv_uring *u, int sync);

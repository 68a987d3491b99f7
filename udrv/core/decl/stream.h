#define UDRV_RECORD_ROWS ...
#define UDRV_RECORD_VERSION ...
#define UDRV_RECORD_SATURATED ...
#define UDRV_RECORD_HOST_LATE ...
#define UDRV_RECORD_SLEPT ...
#define UDRV_RECORD_LATE ...
#define UDRV_RECORD_REJECTED ...
#define UDRV_RECORD_HOST_ENDED ...
#define UDRV_NS_UNKNOWN ...
#define UDRV_RING_MAX_CHUNKS ...
#define UDRV_WINDOWS ...
#define UDRV_BANDS ...
#define UDRV_WINDOW_NAMESPACES ...
#define UDRV_WINDOW_MAX_CELLS ...
#define UDRV_KEYS ...
#define UDRV_KEY_REST ...
#define UDRV_STREAM_RECORDS ...
#define UDRV_STREAM_DEPTH_EXACT ...
#define UDRV_STREAM_MIN_PERIOD_NS ...
#define UDRV_STREAM_MAX_PERIOD_NS ...

struct udrv_chunk {
	uint64_t generation;
	uint64_t base;
	uint32_t rows;
	uint32_t stride;
	uint64_t submit_ns[...];
	uint64_t slba[...];
	uint32_t latency[...];
	uint16_t nlb[...];
	uint16_t depth[...];
	uint16_t qid[...];
	uint16_t status[...];
	uint16_t ns_index[...];
	uint8_t opcode[...];
	uint8_t flags[...];
	...;
};

struct udrv_ring_reader {
	uint64_t hold[...];
	uint64_t next;
	...;
};

struct udrv_window {
	uint64_t rotation;
	uint64_t start_ns;
	uint64_t end_ns;
	uint64_t seen;
	uint64_t host_late;
	uint64_t rejected;
	uint64_t ended;
	uint64_t max_gap_ns;
};

struct udrv_window_row {
	uint32_t key;
	uint32_t low;
	uint32_t high;
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	double sum_sq;
	uint64_t errors;
	uint64_t threshold_ns;
	...;
};

struct udrv_bands {
	uint64_t count_above[...];
	uint64_t sum_ns[...];
	uint64_t max_ns[...];
	uint64_t rotation;
	...;
};

struct udrv_stream_counters {
	uint64_t seen;
	uint64_t delivered;
	uint64_t sampled_out;
	uint64_t ring_full;
	uint64_t overrun;
	uint64_t host_late;
	uint64_t rejected;
	uint64_t late;
};

struct udrv_stream_namespace {
	uint64_t nsze;
	uint32_t nsid;
	uint32_t lba_shift;
};

struct udrv_stream_shared {
	uint32_t magic;
	uint32_t abi;
	uint32_t record_version;
	uint32_t flags;
	uint32_t qid;
	uint32_t size;
	uint32_t chunks;
	uint32_t chunks_offset;
	uint32_t cells;
	uint32_t stride;
	uint32_t clock_source;
	uint64_t period_ns;
	uint64_t pass_mark;
	uint64_t generation;
	uint64_t rotation;
	uint32_t nr_keys;
	uint32_t nr_namespaces;
	uint64_t serial;
	struct udrv_stream_namespace ns[...];
	...;
};

struct udrv_stream_config {
	uint32_t qid;
	uint32_t flags;
	uint32_t chunks;
	uint32_t cells;
	uint32_t stride;
	uint64_t period_ns;
	uint64_t serial;
	...;
};

struct udrv_stream { ...; };

size_t udrv_stream_size(const struct udrv_stream_config *config);
size_t udrv_stream_handle_size(void);
int udrv_stream_init(struct udrv_stream *s, const struct udrv_stream_config *config, void *shared,
		     void *reader, uint64_t seq);
int udrv_stream_add_namespace(struct udrv_stream *s, uint32_t nsid, uint64_t nsze,
			      uint32_t lba_shift);
int udrv_qp_set_stream(struct udrv_qp *qp, struct udrv_stream *s);
int udrv_stream_check(const void *shared, size_t size);
int udrv_ring_take(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		   uint64_t *generation, uint32_t *first, uint32_t *end, uint64_t *base);
struct udrv_taken {
	uint64_t base;
	uint32_t index;
	uint32_t first;
	uint32_t end;
	...;
};
int udrv_ring_take_all(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		       struct udrv_taken *out, uint32_t max);
void udrv_ring_release(struct udrv_ring_reader *reader, uint32_t index);
int udrv_stream_count(const struct udrv_stream_shared *sh, const struct udrv_ring_reader *reader,
		      struct udrv_stream_counters *out, uint64_t *waiting);
int udrv_window_read(const struct udrv_stream_shared *sh, uint64_t rotation,
		     struct udrv_window *window, struct udrv_window_row *rows, uint32_t *hist,
		     struct udrv_bands *bands, uint32_t max);

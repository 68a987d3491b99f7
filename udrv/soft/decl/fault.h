/* What Python sees of udrv/soft_fault.h, which documents it. */

#define UDRV_FAULT_MAGIC 0x746c6675
#define UDRV_FAULT_VERSION 1
#define UDRV_FAULT_MAX 64
#define UDRV_FAULT_HEALTHY 1
#define UDRV_FAULT_DROP 1
#define UDRV_FAULT_LATE 2
#define UDRV_FAULT_DUPLICATE 3
#define UDRV_FAULT_WRONG_PHASE 4
#define UDRV_FAULT_UNKNOWN_CID 5
#define UDRV_FAULT_WRONG_SQID 6
#define UDRV_FAULT_WRONG_SQHD 7
#define UDRV_FAULT_SPURIOUS_INTERRUPT 8
#define UDRV_FAULT_MISSING_INTERRUPT 9
#define UDRV_FAULT_DELETED_QUEUE 10
#define UDRV_FAULT_CFS 16
#define UDRV_FAULT_ALL_ONES 17
#define UDRV_FAULT_NEVER_READY 18
#define UDRV_FAULT_SLOW_READY 19
#define UDRV_FAULT_SLOW_RESET 20
#define UDRV_FAULT_SHUTDOWN_HANG 21
#define UDRV_FAULT_EVENT_STORM 22
#define UDRV_FAULT_STATUS 32
#define UDRV_FAULT_MEDIA_ERROR 33
#define UDRV_FAULT_CORRUPT 34
#define UDRV_FAULT_TORN 35
#define UDRV_FAULT_FACTOR 48
#define UDRV_FAULT_ADD 49
#define UDRV_FAULT_THROTTLE 50
#define UDRV_FAULT_STALL 51
#define UDRV_FAULT_RETRY 52
#define UDRV_FAULT_BANDWIDTH 53
#define UDRV_FAULT_THERMAL 54
#define UDRV_FAULT_GC 55
#define UDRV_FAULT_SLC 56
#define UDRV_CONTROL_LIST 1
#define UDRV_CONTROL_ADD 2
#define UDRV_CONTROL_REPLACE 3
#define UDRV_CONTROL_CLEAR 4
#define UDRV_CONTROL_SYNC 5
#define UDRV_TRUTH_COMPLETION 1
#define UDRV_TRUTH_LOST 2
#define UDRV_TRUTH_CONTROLLER 3

struct udrv_fault {
	uint64_t opcodes[4];
	uint64_t lba_first;
	uint64_t lba_last;
	uint64_t start_us;
	uint64_t end_us;
	uint64_t period_us;
	uint64_t on_us;
	uint64_t after;
	uint64_t every;
	uint64_t count;
	uint64_t seed;
	double probability;
	uint32_t queue_first;
	uint32_t queue_last;
	uint32_t nsid;
	uint32_t dies;
	uint32_t die;
	uint32_t stripe;
	uint32_t effect;
	uint32_t flags;
	uint64_t u[4];
	double f[4];
	char name[32];
};

struct udrv_model {
	uint32_t dies;
	uint32_t channels;
	uint32_t stripe;
	uint32_t read_ns;
	uint32_t program_ns;
	uint32_t transfer_ns;
	uint32_t overhead_ns;
	uint32_t buffer_ns;
	double jitter;
	uint64_t seed;
};

struct udrv_fault_table {
	uint32_t magic;
	uint32_t version;
	uint32_t count;
	uint32_t reserved;
	struct udrv_model model;
};

struct udrv_control {
	uint32_t magic;
	uint32_t version;
	uint32_t op;
	uint32_t count;
	uint32_t id;
	int32_t error;
};

struct udrv_fault_status {
	uint32_t id;
	uint32_t reserved;
	uint64_t matched;
	uint64_t applied;
	struct udrv_fault fault;
};

struct udrv_truth {
	uint64_t nth;
	uint64_t time_ns;
	uint64_t submit_ns;
	uint64_t onset_ns;
	uint64_t added_ns;
	uint64_t slba;
	uint32_t fault;
	uint32_t epoch;
	uint16_t cqid;
	uint16_t sqid;
	uint16_t cid;
	uint8_t effect;
	uint8_t kind;
	uint8_t opcode;
	uint8_t flags;
	uint16_t reserved[3];
};

int udrv_fault_check(const struct udrv_fault *fault);

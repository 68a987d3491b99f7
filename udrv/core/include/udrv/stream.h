/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream.h - what a queue tells of its completions: records (record.h) and windows (window.h).
 *
 * A `struct udrv_stream` hangs on one queue of any transport. Its queue calls udrv_stream_look()
 * before it looks for completions, the pass for those that it consumed between two looks at the
 * clock, and udrv_stream_dry() when there were no more. A queue without a stream does none of that.
 *
 * Honest time. Latency is from the doorbell to the look that found the completion, so it holds the
 * time that the completion lay there unseen. `polled` is the last moment at which the queue was known
 * to be empty: a completion came after it, and the true latency lies in [latency - gap, latency], gap =
 * now - polled. If gap is more than a tenth of latency, the host is to blame for an unknown part, and
 * the record is HOST_LATE and has cells of its own. A wait that ends with the interrupt that it slept
 * for counts from there on, and the record says SLEPT: how long the wake-up took, nobody can tell.
 *
 * Shared memory (`struct udrv_stream_shared` and what follows) is written by the producer alone, and
 * mapped read-only by everyone else; what a consumer writes is in `struct udrv_ring_reader`.
 */
#ifndef UDRV_STREAM_H
#define UDRV_STREAM_H

#include <udrv/qp.h>
#include <udrv/record.h>
#include <udrv/window.h>

#define UDRV_STREAM_MAGIC 0x314d5453u	/* "STM1" */
#define UDRV_STREAM_ABI 1u

enum udrv_stream_flag {
	UDRV_STREAM_RECORDS = 1,	/* records, too: windows there are always */
	UDRV_STREAM_DEPTH_EXACT = 2,	/* nobody else has commands in this device */
};

/* seen = delivered + sampled_out + ring_full + overrun + what is in the ring and not taken yet. */
struct udrv_stream_counters {
	uint64_t seen;		/* completions consumed since the stream was switched on */
	uint64_t delivered;	/* rows that the consumer took, of chunks that were reused since */
	uint64_t sampled_out;
	uint64_t ring_full;	/* no chunk was free: all are held */
	uint64_t overrun;	/* rows that nobody had taken when their chunk was reused */
	uint64_t host_late;
	uint64_t rejected;
	uint64_t late;
};

struct udrv_stream_namespace {
	uint64_t nsze;		/* blocks */
	uint32_t nsid;
	uint32_t lba_shift;
};

struct udrv_stream_shared {
	uint32_t magic;
	uint32_t abi;
	uint32_t record_version;
	uint32_t flags;		/* enum udrv_stream_flag */
	uint32_t qid;
	uint32_t size;		/* bytes, all that follows included */
	uint32_t chunks;	/* of the ring, 0 without records */
	uint32_t chunks_offset;
	uint32_t cells;		/* of each window; the last one is UDRV_KEY_REST's */
	uint32_t cells_offset;
	uint32_t bands_offset;
	uint32_t keys_offset;	/* uint32_t each */
	uint32_t stride;
	uint32_t clock_source;	/* enum udrv_clock_source */
	uint64_t period_ns;

	uint64_t pass_mark __cacheline_aligned;	/* odd while the producer writes */
	uint64_t generation;	/* of the chunk that was opened last */
	uint64_t rotation;	/* of the window that is open; 0: none was yet */
	uint32_t nr_keys;	/* cells in use */
	uint32_t nr_namespaces;
	uint64_t serial;	/* of the configuration */
	uint64_t seen_before;	/* counters.seen when the open window began */
	uint64_t __reserved[2];

	struct udrv_stream_counters counters __cacheline_aligned;
	struct udrv_window window[UDRV_WINDOWS];
	struct udrv_stream_namespace ns[UDRV_WINDOW_NAMESPACES];
};
static_assert(sizeof(struct udrv_stream_shared) % UDRV_CACHELINE == 0, "chunks follow on a line");

struct udrv_stream_config {
	uint32_t qid;
	uint32_t flags;		/* enum udrv_stream_flag */
	uint32_t chunks;	/* 2 to UDRV_RING_MAX_CHUNKS; not used without records */
	uint32_t cells;		/* 2 to UDRV_WINDOW_MAX_CELLS, the one for the rest included */
	uint32_t stride;	/* keep every n-th record, 1 for all */
	uint32_t __reserved;
	uint64_t period_ns;	/* 100 ms to 60 s */
	uint64_t serial;	/* tells it from the stream that was in the same memory before */
};

#define UDRV_STREAM_MIN_PERIOD_NS 100000000ull
#define UDRV_STREAM_MAX_PERIOD_NS 60000000000ull

/* A completion of a pass that was not delivered. */
struct udrv_stream_odd {
	uint32_t row;		/* delivered ones of this pass before it */
	uint32_t late;		/* of a command given up: its id is the next of the given-back ones */
};

/* Most completions that one pass takes: those between two looks at the clock. */
#define UDRV_STREAM_PASS 32

struct udrv_stream_ops;
struct udrv_stream;

/*
 * A pass: n > 0 completions were consumed, of which `rows` were delivered; given[] are their trackers'
 * offsets, those of late ones (see udrv_stream_odd) among them. Fills in latency_ns, and sets `looked`
 * to the clock that it read. A stream has its own, which is called through it.
 */
typedef void udrv_stream_pass_fn(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
				 uint32_t n, const uint32_t *given);

/* A key of the open window, and what follows from it. */
struct udrv_stream_key {
	uint64_t about;		/* as of udrv_tracker */
	uint64_t select;	/* flags of its records << 5 | late << 4 | depth bucket */
	uint64_t rotation;	/* of the window that it is of; 0: none */
	struct udrv_cell *cell;
	struct udrv_bands *bands;
	uint64_t band_mult;	/* of a block's number, for the upper half to be its band times 8 */
	uint64_t threshold_ns;
	uint64_t __reserved;
	/* values of a record's columns, as often as a vector has room */
	udrv_u64x2 nlb16;
	udrv_u64x2 ns16;
	udrv_u64x2 opcode8;
	udrv_u64x2 flags8;
};
static_assert(sizeof(struct udrv_stream_key) == 2 * UDRV_CACHELINE, "the columns have the second line");

#define UDRV_STREAM_KEYS 64	/* that are at hand, by a hash */

/* This process's side, in memory that nobody shares. Opaque but for the files of core/. */
struct udrv_stream {
	/* of every pass */
	struct udrv_stream_shared *shared __cacheline_aligned;
	struct udrv_tracker *trackers;	/* that `given` of a pass are offsets into */
	uint64_t looked;	/* ticks: before the look that goes on */
	uint64_t polled;	/* ticks: the queue was empty */
	uint64_t end_ticks;	/* of the open window */
	struct udrv_window *window;	/* the open one */
	udrv_stream_pass_fn *pass;
	struct udrv_chunk *chunk;	/* the open one, or NULL */

	struct udrv_stream_key *key __cacheline_aligned;	/* of the run before */
	uint64_t depth;		/* of the run before, and its bucket */
	uint64_t bucket;
	uint64_t anchor_ticks;	/* of the window's start, by both clocks */
	uint64_t anchor_ns;
	uint32_t fill;		/* rows in the open chunk, those of this pass included */
	uint32_t nr_odd;
	uint32_t records;
	uint32_t stride;
	uint32_t slept;		/* UDRV_RECORD_SLEPT << 5 if the look follows a sleep */
	uint32_t next_chunk;	/* to try next */

	uint64_t seq;		/* of the next completion; kept off the plain path only */
	uint64_t first_seq;	/* of the first one that was seen */
	uint64_t period_ns;
	const struct udrv_stream_ops *ops;	/* for queues of another extension module */
	struct udrv_ring_reader *reader;
	struct udrv_chunk *chunks;
	struct udrv_cell *cells;
	struct udrv_cell *open_cells;	/* of the open window */
	struct udrv_bands *all_bands;
	uint32_t *keys;
	uint64_t ns_mult[UDRV_WINDOW_NAMESPACES];
	struct udrv_stream_key at_hand[UDRV_STREAM_KEYS] __cacheline_aligned;
	struct udrv_stream_key none;	/* of no window */
	struct udrv_stream_odd odd[UDRV_STREAM_PASS];
	uint16_t cell_of[UDRV_KEYS];	/* index + 1 */
	struct udrv_bands nowhere;	/* bands of what has none */
};

/* Bytes of shared memory for a configuration, or 0 for one that cannot be. */
size_t udrv_stream_size(const struct udrv_stream_config *config);

/* Bytes of a handle. Its memory is the caller's, zeroed, on a cache line. */
size_t udrv_stream_handle_size(void);

/*
 * Begin a stream whose next completion is number `seq`. `shared` has udrv_stream_size() bytes, `reader`
 * a struct udrv_ring_reader; both zeroed and at a cache line.
 * Return: 0 or -UDRV_EINVAL.
 */
int udrv_stream_init(struct udrv_stream *s, const struct udrv_stream_config *config, void *shared,
		     void *reader, uint64_t seq);

/*
 * Tell of a namespace, before the stream hangs on a queue. Return: its index, or -UDRV_EFULL: its
 * records will have UDRV_NS_UNKNOWN, and its windows are in the rest.
 */
int udrv_stream_add_namespace(struct udrv_stream *s, uint32_t nsid, uint64_t nsze,
			      uint32_t lba_shift);

/*
 * Hang a stream on a queue pair, or take it off (NULL), which works on a closed pair, too. Return: 0,
 * -UDRV_EBUSY while somebody is inside, -UDRV_EINVAL for an untimed pair, or another -UDRV_E*.
 */
int udrv_qp_set_stream(struct udrv_qp *qp, struct udrv_stream *s);

/* --- for queues ---------------------------------------------------------------------------- */

/* Before the first look of a reap call. */
static inline void udrv_stream_look(struct udrv_stream *s)
{
	s->looked = udrv_ticks();
}

/* The queue was empty at `looked`: before the look that found it so, or when its last command came. */
static inline void udrv_stream_dry(struct udrv_stream *s, uint64_t looked)
{
	s->polled = looked;
}

/* One that is not delivered, in the pass to come, after `row` delivered ones. */
void udrv_stream_note(struct udrv_stream *s, uint32_t row, int late);

/*
 * rows commands were ended by the host and are delivered with a status of its own: records with
 * HOST_ENDED, in no window. Fills in latency_ns.
 */
void udrv_stream_ended(struct udrv_stream *s, struct udrv_completion *row, uint32_t rows,
		       const uint32_t *given);

/*
 * A wait slept for slept_ns, of at most asked_ns, until the interrupt: the queue is looked at now. A
 * sleep that took longer than it may have was a host that did not run.
 */
void udrv_stream_woke(struct udrv_stream *s, uint64_t slept_ns, uint64_t asked_ns);

struct udrv_stream_ops {
	void (*note)(struct udrv_stream *s, uint32_t row, int late);
	void (*woke)(struct udrv_stream *s, uint64_t slept_ns, uint64_t asked_ns);
};

/* --- for readers, of this process or another ----------------------------------------------- */

/*
 * Whether mapped memory of `size` bytes is a stream of this version whose parts all lie in it. What a
 * reader does below is safe for it only then. Return: 0 or -UDRV_EINVAL.
 */
int udrv_stream_check(const void *shared, size_t size);

/*
 * Hold the oldest chunk that has rows not taken yet, of generation *generation or newer, and no older
 * than the one taken before. Return: its index, with *generation its own, *first and *end its rows not
 * taken yet and *base the seq of its row 0; or -UDRV_EAGAIN if there is none.
 */
int udrv_ring_take(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		   uint64_t *generation, uint32_t *first, uint32_t *end, uint64_t *base);

struct udrv_taken {
	uint64_t base;
	uint32_t index;
	uint32_t first;
	uint32_t end;
	uint32_t __reserved;
};

/* udrv_ring_take() until there is none, at most max times. Return: how many. */
int udrv_ring_take_all(const struct udrv_stream_shared *sh, struct udrv_ring_reader *reader,
		       struct udrv_taken *out, uint32_t max);

/* Nobody looks at the chunk any more. */
void udrv_ring_release(struct udrv_ring_reader *reader, uint32_t index);

/*
 * Counters as they are, and rows in the ring: delivered ones are added, *waiting are not taken yet.
 * Return: 0, or -UDRV_EAGAIN if the producer did not hold still: what was copied may not add up.
 */
int udrv_stream_count(const struct udrv_stream_shared *sh, const struct udrv_ring_reader *reader,
		      struct udrv_stream_counters *out, uint64_t *waiting);

/*
 * Copy window `rotation`: its header, up to max rows, their histograms (UDRV_HIST_BUCKETS counts each;
 * or NULL), and the bands of each namespace (UDRV_WINDOW_NAMESPACES; their rotation is 0 where they
 * have none; or NULL). One that is open still is copied as it is at that moment.
 * Return: how many rows; -UDRV_EAGAIN if it has not begun (or the producer did not hold still), or
 * -UDRV_ERANGE if it was reused.
 */
int udrv_window_read(const struct udrv_stream_shared *sh, uint64_t rotation,
		     struct udrv_window *window, struct udrv_window_row *rows, uint32_t *hist,
		     struct udrv_bands *bands, uint32_t max);

#endif /* UDRV_STREAM_H */

/**
 * @file ringattn.h
 * @brief Exact attention over a sequence that is split among many ranks: the whole C API of libringattn.
 *
 * Three steps, in the order in which a program meets them:
 *
 *     1. every rank makes a context           ra_create_unique_id, ra_create_context
 *     2. a description says which attention   ra_init_attention_desc, ra_get_shard_length, ra_split_sequence
 *     3. all ranks call it together           ra_forward, ra_backward
 *
 * Conventions, for every function below:
 *
 *     errors       The last parameter `error` is owned by the caller and may be NULL. It is cleared on entry and says which
 *                  field was wrong, its value and the limit. Functions that return a value instead of a status document
 *                  the value that means failure. Every pointer is checked: NULL gives RA_STATUS_INVALID_ARGUMENT, not a crash.
 *     structs      Begin with `struct_size`. Call ra_init_<struct>(&s, sizeof s), then set what differs from the default;
 *                  a program built against an older or newer header than the library keeps working.
 *     ownership    The library keeps no pointer of the caller beyond the call, except where a comment says "borrowed".
 *     threads      One thread at a time per context, except ra_abort_context and ra_get_async_error, callable from any.
 *                  Functions without a context, or with a const one, may run concurrently. Contexts are independent.
 *     collective   Means: every rank of the context makes the same calls in the same order. All other functions are local
 *                  and do not block, but ra_destroy_context and ra_create_unique_id as far as they say.
 *     sizes        Counts, lengths and strides are int64_t elements, memory is size_t bytes, times are milliseconds. A sequence
 *                  has at most 2^48 tokens, a batch 2^48 entries, a tensor 2^20 heads and, counted in fp32 and with a length
 *                  of 0 as 1, 2^58 bytes.
 *     backends     A CPU call returns when its results are complete. A CUDA call enqueues its work on the caller's stream and
 *                  returns: its tensors, workspace included, are memory of the context's device, and belong to the call until
 *                  what it enqueued is over. What fails after the call is said by ra_get_async_error and by the next call. Lists such as
 *                  document offsets are host memory always.
 *     reserved     Version 0.1 has two schedules, RA_SCHEDULE_RING and RA_SCHEDULE_ALL_GATHER. Others have their names here, so that
 *                  they need no new ones later; asking for one gives NOT_SUPPORTED, as do CUDA and ZeroMQ where the library was
 *                  built without them.
 */
#ifndef RINGATTN_RINGATTN_H
#define RINGATTN_RINGATTN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RA_VERSION_MAJOR 0
#define RA_VERSION_MINOR 1
#define RA_VERSION_PATCH 0

#if defined(_WIN32)
#define RA_API
#else
#define RA_API __attribute__((visibility("default")))
#endif

/* ---------------------------------------------------------------- errors */

/** Outcome of a call. Values are stable; new ones are only added at the end. */
typedef enum ra_status {
  RA_STATUS_SUCCESS = 0,
  RA_STATUS_INVALID_ARGUMENT = 1, /**< a field is outside its documented range; nothing was done, but ra_create_context
                                       uses up its id */
  RA_STATUS_NOT_SUPPORTED = 2,    /**< a legal request that this build, machine or engine cannot serve */
  RA_STATUS_OUT_OF_MEMORY = 3,    /**< host or device memory could not be allocated */
  RA_STATUS_INVALID_STATE = 4,    /**< the context failed or was aborted earlier, or is in use by another thread, or is of the
                                       process that this one was forked from, or a stream is being captured before the call
                                       was once made without that (ra_forward) */
  RA_STATUS_TIMEOUT = 5,          /**< a rank did not come within ra_context_config::timeout_ms; ra_error::rank names it */
  RA_STATUS_ABORTED = 6,          /**< ra_abort_context was called on this rank or, if ra_error::rank says so, on another */
  RA_STATUS_PEER_LOST = 7,        /**< another rank failed or left during the operation; ra_error::rank names it */
  RA_STATUS_MISMATCH = 8,         /**< ranks disagree on the problem or on the order of calls; every rank gets this, and
                                       ra_error::rank names the one that contradicts all others, if they agree. The message
                                       has the first field that differs, with its value on two ranks; of a list, a digest */
  RA_STATUS_CUDA_ERROR = 9,       /**< ra_error::cuda_error holds the cudaError_t */
  RA_STATUS_NCCL_ERROR = 10,      /**< ra_error::nccl_result holds the ncclResult_t */
  RA_STATUS_INTERNAL_ERROR = 11   /**< a defect of the library, or a self-test that found a wrong result */
} ra_status;

/** Where and why a call failed. Owned by the caller; needs no initialisation. */
typedef struct ra_error {
  int32_t status;      /**< ra_status */
  int32_t rank;        /**< the rank that broke the group, the same on every rank; -1 where no single one did, and where the
                            failure is of this call alone, as refused arguments are */
  int32_t cuda_error;  /**< cudaError_t, 0 if none */
  int32_t nccl_result; /**< ncclResult_t, 0 if none */
  char message[512];   /**< NUL-terminated UTF-8; empty on success, but of ra_check_support */
} ra_error;

/** The constant's name without its prefix, as in "TIMEOUT"; "UNKNOWN" for any other number. Never NULL; static storage. */
RA_API const char *ra_get_status_name(int32_t status);

/** Version of the linked library: major * 10000 + minor * 100 + patch. Compare with the RA_VERSION_ macros. */
RA_API int32_t ra_get_version(void);

/* ---------------------------------------------------------------- choices */

/** Where the arithmetic runs. */
typedef enum ra_backend { RA_BACKEND_CPU = 0, RA_BACKEND_CUDA = 1 } ra_backend;

/** What carries chunks of K and V between ranks. */
typedef enum ra_transport {
  RA_TRANSPORT_LOCAL = 0,  /**< ranks are threads of one process; with CUDA on one GPU or several, whose copy engines do it */
  RA_TRANSPORT_ZEROMQ = 1, /**< ranks are processes, or threads, on one machine or many; CPU backend. Needs libzmq and libsodium */
  RA_TRANSPORT_NCCL = 2    /**< ranks have a GPU each, in one process or many, CUDA backend */
} ra_transport;

/** Whether what ranks of RA_TRANSPORT_ZEROMQ send each other over TCP can be read on the way. */
typedef enum ra_encryption {
  RA_ENCRYPTION_ON = 0, /**< encrypted and authenticated */
  RA_ENCRYPTION_OFF = 1 /**< authenticated only: whoever listens reads it, but nobody can change it unnoticed */
} ra_encryption;

/** Element type of a tensor. */
typedef enum ra_dtype {
  RA_DTYPE_SAME = 0, /**< for output types only: the inputs' type */
  RA_DTYPE_FLOAT32 = 1,
  RA_DTYPE_BFLOAT16 = 2,
  RA_DTYPE_FLOAT16 = 3
} ra_dtype;

/**
 * Which tokens a rank owns. P is the world size. A rank's shard holds its tokens densely in ascending position.
 *
 * Packed documents are cut one by one, so that every rank gets a like share of each; a sequence without documents is one
 * document. Contiguous and zigzag cut it into m parts, one behind the other: of its n tokens, the first of which is token b of
 * the whole sequence, part k (0 <= k < m) has n / m, rounded down, and one more if (k - b) mod m < n mod m, where mod is never
 * negative. So with one document the longer parts come first, and with many each gives its odd tokens to the ranks after those
 * of the document before: however many there are, shards differ in length by one token at most, or by one stripe.
 *
 * ra_get_shard_length and ra_get_shard_positions work this out. Queries and keys follow the same rule, so token i of both is on
 * one rank if their sequences are cut alike: equal lengths and equal document offsets.
 */
typedef enum ra_sharding {
  RA_SHARDING_CONTIGUOUS = 0, /**< P parts, rank r owns part r */
  RA_SHARDING_ZIGZAG = 1,     /**< 2 P parts, rank r owns parts r and 2 P - 1 - r: equal work under a causal mask */
  RA_SHARDING_STRIPED = 2     /**< token p of the whole sequence belongs to rank (p / stripe) mod P, in whatever document it is:
                                   equal work under a causal mask */
} ra_sharding;

/** Shape of the mask before windows, documents and padding, which all intersect with it. */
typedef enum ra_mask { RA_MASK_FULL = 0, RA_MASK_CAUSAL = 1 } ra_mask;

/** Which query and key face each other where their lengths differ: the diagonal of causal masks and of windows. */
typedef enum ra_mask_alignment {
  RA_MASK_ALIGNMENT_TOP_LEFT = 0,    /**< query i faces key i */
  RA_MASK_ALIGNMENT_BOTTOM_RIGHT = 1 /**< query i faces key i + seqlen_kv - seqlen_q; inside each document, its lengths */
} ra_mask_alignment;

/** Which pairs of its rectangle a mask slice has: query i of q_begin .. q_end - 1, key j of kv_begin .. kv_end - 1. */
typedef enum ra_mask_slice_kind {
  RA_MASK_SLICE_KIND_FULL = 0,                /**< all */
  RA_MASK_SLICE_KIND_CAUSAL = 1,              /**< j - kv_end <= i - q_end: the last query faces the last key, and sees none behind */
  RA_MASK_SLICE_KIND_INVERSE_CAUSAL = 2,      /**< j - kv_begin >= i - q_begin: the first query faces the first key, and sees none
                                                   before */
  RA_MASK_SLICE_KIND_BIDIRECTIONAL_CAUSAL = 3 /**< what both CAUSAL and INVERSE_CAUSAL have: a band, or nothing where there are
                                                   more queries than keys */
} ra_mask_slice_kind;

/** Which positions of a segment a query head keeps in a branch of dilation r: those whose place in it, mod r, is its phase. */
typedef enum ra_dilation_phase {
  RA_DILATION_PHASE_BLOCKS_OF_HEADS = 0,  /**< of query head h: floor(h / ceil(num_heads_q / r)), as in torchscale's code */
  RA_DILATION_PHASE_INTERLEAVED_HEADS = 1 /**< of query head h: h mod r, as in the LongNet paper */
} ra_dilation_phase;

/** What a head has in a segment where it keeps fewer positions than other heads, or than in other segments of its branch. */
typedef enum ra_dilation_padding {
  RA_DILATION_PADDING_MASKED = 0,   /**< nothing */
  RA_DILATION_PADDING_ZERO_KEYS = 1 /**< what torchscale pads with: keys with score 0 and value 0, so many that each head keeps
                                         ceil(g / r) in every segment of g positions, those counted that kv_lengths hides; for full
                                         masks only. Rows of that segment get smaller outputs and a larger lse for it, also those
                                         that see no other key, and longer sequences other results for the same tokens */
} ra_dilation_padding;

/** What the backward pass differentiates. */
typedef enum ra_dilation_gradient {
  RA_DILATION_GRADIENT_EXACT = 0,           /**< the result */
  RA_DILATION_GRADIENT_CONSTANT_WEIGHTS = 1 /**< as torchscale: each branch by itself, and the weights by which branches are combined
                                                 are taken for constants. Not the gradient of the result, where a row has
                                                 several branches; dsinks is */
} ra_dilation_gradient;

/**
 * Who computes and sends what, in which order. Results follow the same rules with each, but not to the last bit.
 *
 * RA_SCHEDULE_AUTO is RA_SCHEDULE_ALL_GATHER where sequences are so short that the P - 1 hops of a ring cost more than they hide:
 * if world_size is 3 or more, no rank has more than 256 keys, num_chunks is 0, and 2^24 bytes, or gather_bytes where that is less, are
 * enough to gather all at once. Else, and with mask slices or branches, it is RA_SCHEDULE_RING. ra_memory_requirements says which. The rule comes from measurements with
 * ranks of one process on CPUs; on GPUs nothing has been measured yet.
 */
typedef enum ra_schedule {
  RA_SCHEDULE_AUTO = 0,       /**< the library chooses */
  RA_SCHEDULE_RING = 1,       /**< chunks of K and V travel from neighbour to neighbour */
  RA_SCHEDULE_ALL_GATHER = 2, /**< each rank sends its K and V to all ranks that see them, in one exchange, and computes with all that
                                   it got; in the backward pass another exchange returns the gradients. By parts of the problem,
                                   one after the other, so that memory stays within ra_attention_desc::gather_bytes */
  RA_SCHEDULE_ALL_TO_ALL = 3,
  RA_SCHEDULE_HYBRID = 4,
  RA_SCHEDULE_PASS_Q = 5      /**< of ra_decode alone: queries come to the keys, and what they see there is merged */
} ra_schedule;

/** Which of the two sequences of a cross-attention a function speaks of. */
typedef enum ra_side { RA_SIDE_QUERY = 0, RA_SIDE_KEY_VALUE = 1 } ra_side;

/** Severity of a log message. */
typedef enum ra_log_level { RA_LOG_LEVEL_DEBUG = 0, RA_LOG_LEVEL_INFO = 1, RA_LOG_LEVEL_WARNING = 2 } ra_log_level;

/* ---------------------------------------------------------------- context */

/** One rank's membership in a group of ranks, with its threads, its engine and its memory. Opaque. */
typedef struct ra_context ra_context;

/** A CUDA stream, the same type as cudaStream_t; NULL is the device's default stream. Must be NULL on the CPU backend. */
typedef struct CUstream_st *ra_stream;

/** Names a group of ranks that is about to form. Text, so that any channel can carry it; it is a credential. */
typedef struct ra_unique_id {
  char text[1024]; /**< NUL-terminated printable ASCII without spaces */
} ra_unique_id;

/** What ra_create_context needs to know. */
typedef struct ra_context_config {
  size_t struct_size;       /**< sizeof(ra_context_config) of the caller */
  int32_t rank;             /**< 0 <= rank < world_size; default 0 */
  int32_t world_size;       /**< 1 .. 4096; default 1 */
  int32_t backend;          /**< ra_backend; default RA_BACKEND_CPU */
  int32_t transport;        /**< ra_transport; default RA_TRANSPORT_LOCAL */
  int32_t device;           /**< CUDA device ordinal, whatever device the calling threads work on, which stays theirs; must be 0
                                 on the CPU backend */
  int32_t num_threads;      /**< CPU threads of this rank, the calling one included, at most 1024; no more are used than
                                 oneTBB allows the process. 0: the share of a rank in the machine */
  int64_t timeout_ms;       /**< longest wait for another rank, 1 .. 2^31 - 1; 0, the default, means 300000 (5 minutes). What
                                 the other rank does meanwhile counts, be it healthy or not: its way to the call, and in the
                                 call what it computes before its next message, which is its longest block computation (its
                                 queries against one chunk of keys), or several where chunks need not travel, as all of a part
                                 with RA_SCHEDULE_ALL_GATHER. So choose it with
                                 regard to the length of the shards and to shardings that give some ranks more work than others;
                                 more num_chunks make the blocks shorter. With RA_TRANSPORT_NCCL also the longest that a
                                 transfer may take from when this rank's GPU is ready for it */
  const char *unique_id;    /**< ra_unique_id::text, the same on every rank; may be NULL where world_size is 1. With
                                 RA_TRANSPORT_NCCL one that was made for RA_TRANSPORT_ZEROMQ will do, too */
  const char *bind_address; /**< with RA_TRANSPORT_ZEROMQ an address of this machine, a number or a name, where this rank takes
                                 what others send it, all by TCP and at a port that is free. NULL: the one from which rank 0 is
                                 reached, and no TCP between ranks of one user on one machine. Must be NULL with RA_TRANSPORT_LOCAL
                                 and RA_TRANSPORT_NCCL */
  const char *engine;       /**< forces an engine by its name in ra_capabilities::engines, or on CUDA "portable", or "cudnn" where
                                 cuDNN 9.18 or newer is found: all that it can compute exactly; NULL: the fastest, on CUDA for
                                 each block */
  void *nccl_comm;          /**< ncclComm_t of this rank and device, borrowed until the context is destroyed, meanwhile not used
                                 by anybody else; unique_id is then NULL, and nobody is waited for. The library never aborts it:
                                 after TIMEOUT, PEER_LOST or NCCL_ERROR the caller does, then destroys the context. NULL: the
                                 library makes one */
  int32_t num_sms;          /**< CUDA: no kernel that computes takes more room than so many of the device's streaming
                                 multiprocessors have, which leaves that of the others to communication; 1 .. their number. Each is
                                 then launched in turns of so many blocks, and cuDNN, which cannot be limited, is not used. 0, the
                                 default: all. What a kernel computes does not depend on it. Must be 0 on the CPU backend */
  int32_t encryption;       /**< ra_encryption, the same on every rank; must be RA_ENCRYPTION_ON but with RA_TRANSPORT_ZEROMQ */
  const char *trace_path;   /**< a file, for each rank another, that is made or emptied and then written with what this rank does
                                 and when, in the Trace Event Format (JSON) that Perfetto and chrome://tracing read: calls, and
                                 inside them plan, agree, prepare, pack, post, compute, wait,
                                 kept rows (of layers), add gradients, merge (of ra_decode), round, end; and on CPUs each message, sent or received,
                                 from when it was posted to when it was over. On CUDA times are those of enqueuing. Times of
                                 ranks of one machine can be compared. About 150 bytes for each event, written when a call
                                 ends. NULL, the default: none */
} ra_context_config;

/** Fills `config` with defaults. `struct_size` is sizeof(ra_context_config). Accepts NULL. */
RA_API void ra_init_context_config(ra_context_config *config, size_t struct_size);

/**
 * Makes an id for one new group of ranks; one rank calls it and gives the text to the others.
 *
 * `transport` is a ra_transport. With RA_TRANSPORT_ZEROMQ, and with RA_TRANSPORT_NCCL where `bind_address` is not NULL, the id is an
 * address, where rank 0 will listen and all ranks come together, by ZeroMQ and libsodium; with RA_TRANSPORT_NCCL it is NCCL that then
 * carries their data. From then on they know of each other: whoever fails, is gone or falls silent is named on all ranks, as a rule
 * within a second, and whoever is late when a time-out is over. `bind_address` is "host" or "host:port", a name or a number, of the
 * machine that this is called on, which others can connect to; with RA_TRANSPORT_ZEROMQ NULL means loopback; without a port, or with 0,
 * the id has one that is free now, and it is rank 0's to find it free still. Whoever has the text can join the group: it is to be
 * kept like a password.
 * With RA_TRANSPORT_NCCL and NULL the id is an ncclUniqueId, which NCCL listens for in this process: it has to live until the group has
 * formed. With RA_TRANSPORT_LOCAL `bind_address` is NULL, and an id is valid in the process that made it, for one group at a time.
 * Otherwise an id holds no resource, and needs no release. A name is resolved, for which this waits as long as the system does.
 *
 * Errors: INVALID_ARGUMENT, NOT_SUPPORTED (this build or machine lacks the transport), OUT_OF_MEMORY, NCCL_ERROR.
 */
RA_API ra_status ra_create_unique_id(ra_unique_id *id, int32_t transport, const char *bind_address, ra_error *error);

/**
 * Joins this rank to its group.
 *
 * Collective and blocking: returns when all `world_size` ranks have joined (ranks of the local transport each call it from
 * a thread of their own), at the latest after `timeout_ms`. With a world size of 1 it returns at once. Where
 * the id is an address rank 0 may come after the others.
 *
 * Returns the context, which the caller releases with ra_destroy_context, or NULL with `error` filled:
 * INVALID_ARGUMENT, NOT_SUPPORTED (backend, transport or engine; the message says what is missing), OUT_OF_MEMORY, CUDA_ERROR,
 * NCCL_ERROR (as where two ranks of a group have one GPU), TIMEOUT (naming the first absent rank, but not with an ncclUniqueId), MISMATCH
 * (ranks disagree on the world size, or a rank came twice), PEER_LOST.
 * A call that is refused uses up the id too: the group cannot form any more, the other ranks get PEER_LOST (or TIMEOUT, if it
 * is not clear which rank of which group was refused, as with an ncclUniqueId always, or where the id is an address at which rank
 * 0 did not listen yet), and all ranks begin again with a new id.
 * A context belongs to the process that made it: in one that is forked from it every call with the context gives INVALID_STATE,
 * and ra_destroy_context frees nothing, while the first process goes on as if nothing had happened.
 */
RA_API ra_context *ra_create_context(const ra_context_config *config, ra_error *error);

/**
 * Leaves the group and frees everything. Accepts NULL. Does not wait for other ranks, which get PEER_LOST if they
 * were still waiting for this one; but where the id is an address rank 0, by whom the others know of each other, waits until they are
 * done with the calls that it is done with, at the latest until its time-out. No call may be in progress on the context. On CUDA it
 * waits until what calls have enqueued is over; graphs that calls were captured in hold the context's memory, and may not be
 * launched any more.
 */
RA_API void ra_destroy_context(ra_context *context);

/**
 * Ends the call in progress on this context, on this rank with ABORTED and on all others with ABORTED naming this rank, and
 * returns without waiting for that. From then on the contexts of all ranks say INVALID_STATE until destroyed. May be
 * called from any thread. On CUDA what is enqueued ends with undefined results; with an ncclUniqueId or a borrowed nccl_comm the
 * other ranks get TIMEOUT when their time-out is over. Errors: INVALID_ARGUMENT.
 */
RA_API ra_status ra_abort_context(ra_context *context, ra_error *error);

/**
 * SUCCESS until something has broken the group, else what did, with the ra_error::rank that every rank names. Looks at what is
 * known and asks nobody: the group is broken by ra_abort_context, or by a collective call that failed on any rank (not by one
 * that was refused or found a wrong result), and all ranks know at once, also between calls; where the id is an address
 * also by a rank whose process ends without destroying its context, or falls silent for a second. That a rank destroyed its context,
 * or does not come, is known only when another has waited for it in a call; until then this says SUCCESS. With an ncclUniqueId or a
 * borrowed nccl_comm each rank finds out for itself: what NCCL reports, or within its time-out TIMEOUT, with rank -1 where more than
 * one was waited for. From any thread; never blocks.
 * Errors: INVALID_ARGUMENT, and those of ra_forward.
 */
RA_API ra_status ra_get_async_error(const ra_context *context, ra_error *error);

/** What a context is, with everything that its config left to the library. */
typedef struct ra_context_info {
  size_t struct_size;
  int32_t rank;
  int32_t world_size;
  int32_t backend;      /**< ra_backend */
  int32_t transport;    /**< ra_transport */
  int32_t device;       /**< CUDA device ordinal; 0 on the CPU backend */
  int32_t num_threads;  /**< CPU threads that calls of this rank may use, the calling one included */
  int64_t timeout_ms;   /**< longest wait for another rank */
  char engine[32];      /**< its name, as in ra_capabilities::engines. Types and sizes that the engine has no instructions for
                             are computed with those of the engines behind it in that list. On CUDA "cudnn" if that may run,
                             with "portable" behind it */
} ra_context_info;

/** Clears `info`. `struct_size` is sizeof(ra_context_info). Accepts NULL. */
RA_API void ra_init_context_info(ra_context_info *info, size_t struct_size);

/** Fills `info`. Local; also during a call, from any thread. Errors: INVALID_ARGUMENT. */
RA_API ra_status ra_get_context_info(const ra_context *context, ra_context_info *info, ra_error *error);

/** What this build can do on this machine. */
typedef struct ra_capabilities {
  size_t struct_size;
  int32_t version;          /**< ra_get_version() */
  int32_t has_cuda;         /**< 1 if RA_BACKEND_CUDA can be used here */
  int32_t has_zeromq;       /**< 1 if RA_TRANSPORT_ZEROMQ can be used here */
  int32_t has_nccl;         /**< 1 if RA_TRANSPORT_NCCL can be used here */
  int32_t hardware_threads; /**< logical processors that the process may use */
  int32_t num_devices;      /**< CUDA devices */
  int64_t max_head_dim;     /**< largest head_dim and head_dim_v */
  char engines[256];        /**< engine names that ra_context_config::engine takes here on CPUs, fastest first, comma-separated */
} ra_capabilities;

/** Clears `capabilities`. `struct_size` is sizeof(ra_capabilities). Accepts NULL. */
RA_API void ra_init_capabilities(ra_capabilities *capabilities, size_t struct_size);

/** Fills `capabilities`. Errors: INVALID_ARGUMENT. */
RA_API ra_status ra_get_capabilities(ra_capabilities *capabilities, ra_error *error);

/* ---------------------------------------------------------------- problem */

/**
 * One attention problem, equal on every rank.
 *
 * Query i of one batch entry sees key j of the same entry iff all of these hold:
 *
 *     mask           RA_MASK_FULL: always. RA_MASK_CAUSAL: j <= i + shift
 *     window         window_left  < 0 or j >= i + shift - window_left;  window_right < 0 or j <= i + shift + window_right
 *     documents      i and j lie in documents of the same number
 *     kv_lengths     j < kv_lengths[batch entry]
 *     mask_slices    there are none, or one of them has (i, j) (ra_mask_slice_kind)
 *
 * where shift is 0 (top-left) or the number of keys minus the number of queries (bottom-right). With documents, i, j and
 * shift count inside the document, but kv_lengths and mask_slices count from the start of the sequence; neither moves the diagonal.
 *
 * score(i, j) = softcap(softmax_scale * dot(q_i, k_j)) - alibi_slopes[head] * |i + shift - j| + key_bias[batch entry, j], with
 * softcap(s) = c * tanh(s / c) where c = desc.softcap > 0 (Gemma 2, 2024); the second term as in Press et al. 2022, "ALiBi"; what
 * the description does not ask for is left out. The sinks of a query head are logits that join its softmax without a value (Xiao
 * et al. 2024): lse_i = log(sum_j exp(score) + sum_n exp(sinks[head, n])), natural logarithm; out_i = sum_j exp(score - lse_i) v_j.
 * A row that sees no key has out = 0 and gradients 0; its lse is that of the sinks alone, -infinity without any.
 *
 * Dropout of probability p makes weights 0 by chance and the others larger: out_i = sum_j kept_ij / (1 - p) exp(score - lse_i) v_j,
 * where lse_i is as without. Which are kept (ra_get_dropout_mask) depends on dropout_seed, dropout_offset, the batch entry, the
 * query head and the positions of query and key in the whole sequence, by Philox 4x32-10 (Salmon et al. 2011): it is the same for
 * every world size, sharding, schedule, number of chunks and backend, and the backward pass finds it again.
 *
 * Dilated attention (Ding et al. 2023, "LongNet") has one or more branches. Branch n cuts the positions of a document's
 * keys into segments of g = min(segment_lengths[n], keys of the document), of which the last may be shorter; query i stands at
 * position i + shift, and before the first key or behind the last one in the first or the last segment. With r = dilations[n], each
 * query head keeps those positions of a segment whose place in it, mod r, is the head's phase (dilation_phase). In branch n, i sees j
 * iff all that is said above holds, both are of one segment, and the head keeps both. With o_n, l_n the output and lse of branch n
 * alone, out_i = sum_n exp(l_n) o_n / sum_n exp(l_n), and lse_i = log(sum_n exp(l_n)).
 *
 * So a key that a row sees in several branches counts as often; sinks join the sum once, and dropout keeps or drops a pair for all
 * branches alike. A row that a branch does not keep has nothing from it, and one that no branch keeps sees no key: its out is 0. A
 * branch of dilation 1 keeps all. Where heads share K and V the phase is the query head's, so that they may use different rows. Where
 * g is no multiple of r and there are several segments, places still count from the start of each; torchscale, which counts on
 * through the segments, places rows elsewhere there.
 */
typedef struct ra_attention_desc {
  size_t struct_size;
  int64_t batch;                       /**< entries, >= 1; default 1 */
  int64_t seqlen_q;                    /**< queries of the whole sequence, >= 0; no default: -1, which is refused */
  int64_t seqlen_kv;                   /**< keys of the whole sequence, >= 0; default -1: seqlen_q */
  int64_t num_heads_q;                 /**< >= 1, a multiple of num_heads_kv; default 1 */
  int64_t num_heads_kv;                /**< >= 1; default 0: num_heads_q. Query head h uses head h / (num_heads_q / num_heads_kv) */
  int64_t head_dim;                    /**< 1 .. 256, of q and k; no default */
  int64_t head_dim_v;                  /**< 1 .. 256, of v and out; default 0: head_dim */
  int32_t dtype;                       /**< ra_dtype of q, k, v; default RA_DTYPE_FLOAT32 */
  int32_t out_dtype;                   /**< ra_dtype of out and dout; default RA_DTYPE_SAME */
  int32_t grad_dtype;                  /**< ra_dtype of dq, dk, dv; default RA_DTYPE_SAME */
  int32_t sharding;                    /**< ra_sharding, of both sequences; default RA_SHARDING_CONTIGUOUS */
  int64_t stripe;                      /**< tokens of a stripe, >= 1; read for RA_SHARDING_STRIPED only; default 1 */
  int32_t mask;                        /**< ra_mask; default RA_MASK_FULL */
  int32_t mask_alignment;              /**< ra_mask_alignment; default RA_MASK_ALIGNMENT_BOTTOM_RIGHT */
  int64_t window_left;                 /**< keys visible before the diagonal, >= -1; default -1: all */
  int64_t window_right;                /**< keys visible after the diagonal, >= -1; default -1: all */
  float softmax_scale;                 /**< finite; default 0: 1 / sqrt(head_dim) */
  float softcap;                       /**< >= 0 and finite; default 0: none */
  int64_t num_documents;               /**< packed documents, 0 .. 2^31; default 0: the sequence is not packed */
  const int64_t *document_offsets_q;   /**< host, num_documents + 1 entries: 0, ascending, seqlen_q. Document d is the tokens
                                            offsets[d] .. offsets[d + 1] - 1 (the cu_seqlens convention); may be empty */
  const int64_t *document_offsets_kv;  /**< host, num_documents + 1 entries: the same for keys; NULL: document_offsets_q, and then
                                            seqlen_kv = seqlen_q */
  const int64_t *kv_lengths;           /**< host, batch entries of 0 .. seqlen_kv: keys before right padding; NULL: none */
  int32_t schedule;                    /**< ra_schedule; default RA_SCHEDULE_AUTO */
  int32_t reserved;                    /**< 0 */
  int64_t num_chunks;                  /**< chunks that a K/V shard travels in, 1 .. 65536: more chunks, less memory; default 0:
                                            the library chooses */
  int64_t gather_bytes;                /**< with RA_SCHEDULE_ALL_GATHER, most bytes that a rank holds of K, V and key_bias of all
                                            ranks, and of their gradients: the problem is computed in parts, some batch entries or
                                            some heads of K and V of one entry, that need no more than this; a single head whose
                                            shards are longer is cut into chunks, unless num_chunks is set. 0 .. 2^58; default 0: 2^28. It
                                            holds more where one head is more than 1,024 times as much: into more chunks than
                                            these the library cuts no shard unasked */
  const float *alibi_slopes;           /**< host, num_heads_q entries, finite: what a key's distance from the diagonal takes off its
                                            score, per position, for each query head; NULL: none */
  int64_t num_sinks;                   /**< sinks of each query head, 0 .. 1024, in ra_forward_args::sinks; default 0: none */
  float dropout_probability;           /**< of a weight to be dropped, 0 <= p < 1; default 0: none */
  int32_t has_key_bias;                /**< 1 if scores get ra_forward_args::key_bias; default 0 */
  int64_t dropout_seed;                /**< 64 bits, any; read where dropout_probability > 0 only; default 0 */
  int64_t dropout_offset;              /**< 64 bits, any: another one for each call that is to drop other weights, but in the
                                            backward pass that of its forward pass; read as dropout_seed; default 0 */
  int64_t num_mask_slices;             /**< 0 .. 2^20; default 0: pairs are seen without regard to slices */
  const int64_t *mask_slices;          /**< host, 5 * num_mask_slices entries: q_begin, q_end, kv_begin, kv_end, ra_mask_slice_kind of
                                            each, in positions of the whole sequence, 0 <= begin <= end <= seqlen; NULL where
                                            there are none. In any order; may be empty; no two rectangles have a pair in common,
                                            whatever their kinds. Slices that share queries or keys are computed one after the
                                            other (ra_memory_requirements), but for RA_MASK_SLICE_KIND_FULL side by side */
  int32_t num_branches;                /**< of dilated attention, 0 .. 16; default 0: not dilated */
  int32_t dilation_phase;              /**< ra_dilation_phase; default RA_DILATION_PHASE_BLOCKS_OF_HEADS. As all that follows it
                                            changes nothing where there are no branches */
  const int64_t *segment_lengths;      /**< host, num_branches entries: positions of a segment of each branch, >= 1 and
                                            at least seqlen_kv / 2^20; NULL where there are none */
  const int64_t *dilations;            /**< host, num_branches entries: of how many positions each branch keeps one, 1 .. 2^48; NULL
                                            where there are none. A head whose phase is beyond a segment keeps nothing of it */
  int32_t dilation_padding;            /**< ra_dilation_padding; default RA_DILATION_PADDING_MASKED */
  int32_t dilation_gradient;           /**< ra_dilation_gradient; default RA_DILATION_GRADIENT_EXACT */
} ra_attention_desc;

/** Fills `desc` with defaults. `struct_size` is sizeof(ra_attention_desc). Accepts NULL. */
RA_API void ra_init_attention_desc(ra_attention_desc *desc, size_t struct_size);

/**
 * SUCCESS if this context can run `desc` forward and backward, with the engine that does it in ra_error::message, and on CUDA why
 * another does not: "forward: cudnn; backward: portable (not cudnn: ...)". Blocks that a rank finds it cannot leave to cuDNN go to
 * "portable" all the same; log messages of RA_LOG_LEVEL_DEBUG say of each block which engine had it, and why. Else NOT_SUPPORTED
 * with the reason, or INVALID_ARGUMENT with the field, its value and the limit. Local.
 */
RA_API ra_status ra_check_support(const ra_context *context, const ra_attention_desc *desc, ra_error *error);

/**
 * Which weights of one row dropout keeps: mask[n] is 1 if it keeps that of key first_key + n, 0 if it drops it, for 0 <= n < count,
 * whether the query sees the key or not. All 1 if desc.dropout_probability is 0.
 *
 * `entry` is of the batch, `head` of Q; `query` and the keys are positions of the whole sequence: 0 <= first_key, 0 <= count,
 * first_key + count <= seqlen_kv. `mask` has room for `count` bytes, may be NULL if that is 0, and is untouched on errors. Local, no
 * context needed; for tests, and for those who compute a row by themselves. Errors: INVALID_ARGUMENT.
 */
RA_API ra_status ra_get_dropout_mask(const ra_attention_desc *desc, int64_t entry, int64_t head, int64_t query,
                                     int64_t first_key, int64_t count, uint8_t *mask, ra_error *error);

/* ---------------------------------------------------------------- memory and cost */

/**
 * What one rank needs for one problem, in bytes, and what its calls will do. A rank's memory during a forward call is
 * forward_tensors + forward_workspace, and the same with backward_. Not counted are the context itself, its threads, its transport,
 * which over ZeroMQ has up to 4 MiB each way of messages under way with each rank that it exchanges chunks with, and short lists of what
 * is to be computed: about 500 bytes for each document, the same for each mask slice and, for the
 * heads of each phase, each segment of a branch, where all that a rank has side by side, or that stripes divide alike, are as one; with
 * 100 for each of their ranks, and 100 for each chunk of each rank.
 *
 * Mask slices and dilated attention are computed in layers, one after the other: a layer has the slices that share no rows, of the
 * heads that keep the same positions in a branch. Steps, hops, bytes, pairs and flops are those of all layers together, a workspace is
 * that of the layer that needs most, and what all of them share.
 */
typedef struct ra_memory_requirements {
  size_t struct_size;
  size_t forward_tensors;     /**< q, k, v, out and lse, packed; and where the description has them, key_bias and sinks */
  size_t backward_tensors;    /**< q, k, v, out, lse, dout, dq, dk and dv, packed; and where the description has them, key_bias,
                                   sinks and dsinks */
  size_t forward_workspace;   /**< tiles of each thread and, unless world_size is 1, two chunks in flight, max and sum of each
                                   row, and the output in fp32 where out_dtype is another; where cuDNN may run, what it needs
                                   and, unless world_size is 1, one block's output in fp32.
                                   RA_SCHEDULE_ALL_GATHER: the same for one part, but its own chunk and those of the r ranks
                                   whose keys it sees, 1 + r. A chunk has its keys' key_bias with it; sinks take a number for
                                   each query head. With mask slices or branches: tiles and chunks of one layer, and unless that
                                   keeps all rows in all heads, its rows of q, packed, and their output, max and sum in fp32; and
                                   shared by all layers, max and sum of each row, and the output in fp32 where out_dtype is
                                   another */
  size_t backward_workspace;  /**< tiles of each thread, delta of each row, dq in fp32 where grad_dtype is another, two chunks in
                                   flight and four of gradients in fp32; if world_size is 1, one and one. RA_SCHEDULE_ALL_GATHER: the
                                   same for one part, but 1 + r chunks, and 1 + r + s of gradients, where s other ranks see its keys.
                                   With mask slices or branches: tiles, chunks and their gradients of one layer, and unless that
                                   keeps all rows in all heads, its rows of q and dout, packed, and their lse, delta and dq in
                                   fp32; and shared by all layers, delta, and dq, dk and dv in fp32 where grad_dtype is another.
                                   RA_DILATION_GRADIENT_CONSTANT_WEIGHTS: or that of a branch's forward pass, if it is more, and
                                   in any case a branch's output, max and sum in fp32 */
  size_t lse;                 /**< lse alone, part of the tensors */
  size_t context;             /**< sizeof the context, without what it points to */
  int64_t forward_chunks;     /**< chunks that a K/V shard is cut into: num_chunks or the library's choice, but no more than
                                   the longest shard has tokens, and 1 if world_size is 1 */
  int64_t backward_chunks;    /**< the same for ra_backward, also if world_size is 1 */
  int64_t forward_steps;      /**< block computations of this rank that see at least one key */
  int64_t backward_steps;     /**< the same for ra_backward */
  int64_t forward_hops;       /**< messages that this rank sends */
  int64_t backward_hops;      /**< the same for ra_backward, gradients included */
  int64_t forward_hop_bytes;  /**< bytes of those messages */
  int64_t backward_hop_bytes; /**< the same for ra_backward */
  double visible_pairs;       /**< (query, key) pairs that this rank's rows see, summed over batch and query heads */
  double forward_flops;       /**< 2 (head_dim + head_dim_v) per visible pair */
  double backward_flops;      /**< 2 (3 head_dim + 2 head_dim_v) per visible pair */
  int32_t forward_schedule;   /**< ra_schedule of ra_forward: desc.schedule, or what RA_SCHEDULE_AUTO stands for; RING if
                                   world_size is 1 */
  int32_t backward_schedule;  /**< ra_schedule of ra_backward, in the same way */
  int64_t forward_parts;      /**< parts of the problem that are computed one after the other; 1 with RA_SCHEDULE_RING, but of
                                   each layer */
  int64_t backward_parts;     /**< the same for ra_backward */
} ra_memory_requirements;

/** Clears `requirements`. `struct_size` is sizeof(ra_memory_requirements). Accepts NULL. */
RA_API void ra_init_memory_requirements(ra_memory_requirements *requirements, size_t struct_size);

/** Fills `requirements` for this rank of `context`. Local; allocates nothing lasting. Errors: as ra_check_support. */
RA_API ra_status ra_get_memory_requirements(const ra_context *context, const ra_attention_desc *desc,
                                            ra_memory_requirements *requirements, ra_error *error);

/**
 * The same before any context or device exists: of `config` only rank, world_size, backend, transport, num_threads and
 * engine are read. Where a context turns out to have no cuDNN, it needs less than this. Errors: as ra_create_context and
 * ra_check_support.
 */
RA_API ra_status ra_estimate_memory(const ra_context_config *config, const ra_attention_desc *desc,
                                    ra_memory_requirements *requirements, ra_error *error);

/** How fast ranks compute and reach each other, all of them alike, for ra_estimate_time. */
typedef struct ra_machine_rates {
  size_t struct_size;
  double forward_flops;  /**< per second of one rank, > 0 and finite: ra_memory_requirements::forward_flops of some call over its
                              ra_call_statistics::compute_seconds, or over total_seconds where links were no limit, which has in
                              it what ranks pack and encrypt; no default */
  double backward_flops; /**< the same for ra_backward; no default */
  double link_bytes;     /**< bytes per second that a rank can send and, at the same time, receive, > 0 and finite; default 0: no
                              limit */
  double link_seconds;   /**< latency of a message, >= 0 and finite; default 0 */
} ra_machine_rates;

/** Fills `rates` with defaults. `struct_size` is sizeof(ra_machine_rates). Accepts NULL. */
RA_API void ra_init_machine_rates(ra_machine_rates *rates, size_t struct_size);

/** How long a rank's calls take; comparable with ra_call_statistics. */
typedef struct ra_time_estimate {
  size_t struct_size;
  double forward_seconds;          /**< of ra_forward, from when all ranks have made the call until this one is done */
  double forward_compute_seconds;  /**< of it, in block computations; the rest is waiting */
  double backward_seconds;         /**< the same for ra_backward */
  double backward_compute_seconds; /**< the same for ra_backward */
} ra_time_estimate;

/** Clears `estimate`. `struct_size` is sizeof(ra_time_estimate). Accepts NULL. */
RA_API void ra_init_time_estimate(ra_time_estimate *estimate, size_t struct_size);

/**
 * Predicts how long a rank's calls take, by going through what all ranks do with a clock for each. In each step a rank computes while
 * its messages travel, and goes on when both are over: where a chunk travels for longer than the ranks compute with it, a call takes
 * as long as its messages. Counted are the products of visible pairs, and bytes; not what ranks pack and round, nor that small blocks
 * are computed at lower rates, so that short calls take longer than this says.
 *
 * Of `config` only rank and world_size are read. Local; takes as long as planning for every rank does. Errors: INVALID_ARGUMENT,
 * NOT_SUPPORTED (schedule), OUT_OF_MEMORY.
 */
RA_API ra_status ra_estimate_time(const ra_context_config *config, const ra_attention_desc *desc,
                                  const ra_machine_rates *rates, ra_time_estimate *estimate, ra_error *error);

/**
 * What the last call of ra_forward, ra_backward, ra_mha_forward, ra_mha_backward, ra_all_reduce or ra_decode on a context did; comparable field by field with ra_memory_requirements. On CUDA
 * times are those of enqueuing.
 */
typedef struct ra_call_statistics {
  size_t struct_size;
  int64_t steps;          /**< block computations that were carried out */
  int64_t hops;           /**< messages that this rank sent */
  int64_t hop_bytes;      /**< bytes of those messages */
  double total_seconds;   /**< wall time of the call */
  double compute_seconds; /**< of it, in block computations, and the communication that is hidden among them */
  double wait_seconds;    /**< of it, waiting for other ranks: until all make the call, and for communication that was not
                               hidden */
  double projection_seconds; /**< of it, in what a layer of multi-head attention does beside attention */
  int32_t schedule;       /**< ra_schedule of ra_decode: RA_SCHEDULE_PASS_Q or RA_SCHEDULE_RING; RA_SCHEDULE_AUTO after other calls */
  int32_t reserved;       /**< 0 */
} ra_call_statistics;

/** Clears `statistics`. `struct_size` is sizeof(ra_call_statistics). Accepts NULL. */
RA_API void ra_init_call_statistics(ra_call_statistics *statistics, size_t struct_size);

/** Fills `statistics` for the last completed call; all 0 before the first. Local. Errors: INVALID_ARGUMENT. */
RA_API ra_status ra_get_call_statistics(const ra_context *context, ra_call_statistics *statistics, ra_error *error);

/* ---------------------------------------------------------------- shards */

/**
 * Tokens of one side (ra_side) that rank `rank` of `world_size` owns under `desc`; may be 0. Returns -1 with `error` filled
 * on INVALID_ARGUMENT. Local, no context needed.
 */
RA_API int64_t ra_get_shard_length(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                                   ra_error *error);

/**
 * Position in the whole sequence of token `index` of that shard, 0 <= index < ra_get_shard_length. Returns -1 with `error`
 * filled on INVALID_ARGUMENT.
 */
RA_API int64_t ra_get_shard_position(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                                     int64_t index, ra_error *error);

/**
 * The same for `count` tokens of that shard from token `first` on, 0 <= first, 0 <= count, first + count <= the shard's length:
 * positions[i] is that of token first + i. The way to get many: each call reads all document offsets. `positions` has room for
 * `count` numbers, may be NULL if that is 0, and is untouched on errors. Errors: INVALID_ARGUMENT.
 */
RA_API ra_status ra_get_shard_positions(const ra_attention_desc *desc, int32_t world_size, int32_t rank, int32_t side,
                                        int64_t first, int64_t count, int64_t *positions, ra_error *error);

/** Strides that are not a distance. */
typedef enum ra_stride {
  RA_STRIDE_PACKED = 0, /**< all three: each follows from the sizes */
  RA_STRIDE_REPEAT = -1 /**< one slice again and again, as in a tensor that is broadcast; of inputs only */
} ra_stride;

/**
 * A tensor [batch, seq, head, dim] in memory that the caller owns. Strides are in elements; `dim` is dense. All three
 * RA_STRIDE_PACKED, or none of a dimension with more than one entry: with fewer, or without elements, it does not matter.
 *
 * No element of an output may be one of another tensor, but tensors may be interleaved in one buffer, as dq, dk and dv are in
 * [batch, seq, 3, head, dim]. A stride of one of them must show it: modulo this stride, the bytes of the one lie apart from
 * those of the other (all strides that are not multiples of it counted in full): dq, dk and dv of that buffer pass by their
 * seq_stride. Else the call is refused as an overlap.
 */
typedef struct ra_tensor {
  void *data;           /**< the first element; may be NULL if there is none */
  int64_t batch_stride; /**< from one entry to the next */
  int64_t seq_stride;   /**< from one token to the next */
  int64_t head_stride;  /**< from one head to the next */
  size_t size;          /**< bytes that may be read or written from data on; a tensor that takes more is refused. 0: not checked */
} ra_tensor;

/** Which tensor ra_split_sequence and ra_join_sequence copy. */
typedef struct ra_sequence_args {
  size_t struct_size;
  int32_t side;      /**< ra_side; default RA_SIDE_QUERY */
  int32_t dtype;     /**< ra_dtype of the elements; default RA_DTYPE_SAME: desc.dtype */
  int64_t num_heads; /**< heads of this tensor, >= 1; no default */
  int64_t dim;       /**< elements of a head, >= 1; no default */
  ra_tensor whole;   /**< [batch, seqlen_q or seqlen_kv, num_heads, dim] */
  ra_tensor shard;   /**< [batch, shard length, num_heads, dim] */
} ra_sequence_args;

/** Fills `args` with defaults. `struct_size` is sizeof(ra_sequence_args). Accepts NULL. */
RA_API void ra_init_sequence_args(ra_sequence_args *args, size_t struct_size);

/**
 * Copies the tokens that `rank` owns out of `args->whole` into `args->shard`. Local host memory. Where the elements are not
 * desc.dtype, as those of out, lse and gradients may be, set dtype. For lse [batch, head, n] set dtype to RA_DTYPE_FLOAT32,
 * dim to 1, batch_stride to num_heads * n, seq_stride to 1 and head_stride to n, where n is the length of `whole` for the strides
 * of `whole`, and that of the shard for those of `shard`. Errors: INVALID_ARGUMENT.
 */
RA_API ra_status ra_split_sequence(const ra_attention_desc *desc, int32_t world_size, int32_t rank,
                                   const ra_sequence_args *args, ra_error *error);

/** The reverse: copies `args->shard` to its places in `args->whole` and leaves the other tokens as they are. */
RA_API ra_status ra_join_sequence(const ra_attention_desc *desc, int32_t world_size, int32_t rank,
                                  const ra_sequence_args *args, ra_error *error);

/* ---------------------------------------------------------------- attention */

/** One rank's tensors of ra_forward. n_q, n_kv: this rank's shard lengths (ra_get_shard_length). */
typedef struct ra_forward_args {
  size_t struct_size;
  ra_tensor q;           /**< [batch, n_q, num_heads_q, head_dim], desc.dtype */
  ra_tensor k;           /**< [batch, n_kv, num_heads_kv, head_dim], desc.dtype */
  ra_tensor v;           /**< [batch, n_kv, num_heads_kv, head_dim_v], desc.dtype */
  ra_tensor out;         /**< [batch, n_q, num_heads_q, head_dim_v], desc.out_dtype; written */
  float *lse;            /**< [batch, num_heads_q, n_q] packed; written; NULL if not wanted (ra_backward needs it) */
  size_t lse_size;       /**< bytes that may be written from lse on; fewer than it takes are refused. 0: not checked */
  void *workspace;       /**< forward_workspace bytes aligned to 64, or NULL: the context keeps one of its
                              own, as large as its largest call needed, until it is destroyed */
  size_t workspace_size; /**< bytes at workspace */
  ra_stream stream;      /**< a stream of the context's device; must be NULL on the CPU */
  const float *key_bias; /**< [batch, n_kv] packed, of this rank's keys; where desc.has_key_bias is 1, else NULL. -infinity
                              hides a key; NaN or +infinity make the rows that see it undefined */
  size_t key_bias_size;  /**< bytes that may be read from key_bias on; fewer than it takes are refused. 0: not checked */
  const float *sinks;    /**< [num_heads_q, num_sinks] packed, the same on every rank; where desc.num_sinks > 0, else NULL. As
                              key_bias, never NaN or +infinity */
  size_t sinks_size;     /**< bytes that may be read from sinks on; fewer than it takes are refused. 0: not checked */
} ra_forward_args;

/** Clears `args`. `struct_size` is sizeof(ra_forward_args). Accepts NULL. */
RA_API void ra_init_forward_args(ra_forward_args *args, size_t struct_size);

/**
 * Attends this rank's queries to the keys and values of all ranks.
 *
 * Collective: every rank of `context` calls it with an equal `desc`, in the same order. A tensor without elements may have
 * NULL data. `out` and `lse` may not overlap each other, the inputs or the workspace (ra_tensor says what an overlap is).
 * Results are bitwise equal from run to run, for any number of threads and any timing.
 *
 * CPU: returns when `out` and `lse` are complete. CUDA: enqueues, and waits for the other ranks' threads, not for a GPU; over NCCL
 * the first call of a shape waits until all ranks have agreed on it, later ones leave that to the GPU, so that a MISMATCH may be
 * found after the call. What follows in `stream` comes after the call, and so do other calls of this context, whatever their
 * stream. Nothing is allocated after the first call of a shape; the engine "cudnn" plans for shapes, strides and whether there is
 * an lse, and a context makes no more than 256 such plans, after which "portable" computes what is new. The call may be captured in
 * a CUDA graph, once it was made like that without one; local ranks are captured together, in one graph. Then `stream` orders it
 * with other calls, and of failures only those are noticed that NCCL reports by itself.
 *
 * Errors: INVALID_ARGUMENT and NOT_SUPPORTED, found before anything is sent: the other ranks wait, and the call may be
 * repeated with better arguments until their time-out, or ra_abort_context lets them go. After OUT_OF_MEMORY, TIMEOUT,
 * PEER_LOST, MISMATCH, ABORTED, CUDA_ERROR, NCCL_ERROR and INTERNAL_ERROR the context is of no more use and says
 * INVALID_STATE. Outputs are untouched unless the call got as far as computing.
 * Method: Liu et al. 2023, "Ring Attention with Blockwise Transformers"; online softmax as in Dao et al. 2022,
 * "FlashAttention", Algorithm 1.
 */
RA_API ra_status ra_forward(ra_context *context, const ra_attention_desc *desc, const ra_forward_args *args,
                            ra_error *error);

/** One rank's tensors of ra_backward; shapes as in ra_forward_args. */
typedef struct ra_backward_args {
  size_t struct_size;
  ra_tensor dout;        /**< shape of out, desc.out_dtype */
  ra_tensor q;           /**< as given to ra_forward */
  ra_tensor k;           /**< as given to ra_forward */
  ra_tensor v;           /**< as given to ra_forward */
  ra_tensor out;         /**< as ra_forward wrote it */
  const float *lse;      /**< as ra_forward wrote it */
  size_t lse_size;       /**< as in ra_forward_args */
  ra_tensor dq;          /**< shape of q, desc.grad_dtype; written */
  ra_tensor dk;          /**< shape of k, desc.grad_dtype; written */
  ra_tensor dv;          /**< shape of v, desc.grad_dtype; written */
  int32_t accumulate;    /**< 0: overwrite dq, dk, dv and dsinks; 1: add to what they hold */
  int32_t reserved;      /**< 0 */
  void *workspace;       /**< backward_workspace bytes aligned to 64, or NULL: the context keeps one of its
                              own, as large as its largest call needed, until it is destroyed */
  size_t workspace_size; /**< bytes at workspace */
  ra_stream stream;      /**< a stream of the context's device; must be NULL on the CPU */
  const float *key_bias; /**< as given to ra_forward */
  size_t key_bias_size;  /**< as in ra_forward_args */
  const float *sinks;    /**< as given to ra_forward */
  size_t sinks_size;     /**< as in ra_forward_args */
  float *dsinks;         /**< [num_heads_q, num_sinks] packed; written: this rank's share of the gradient, that of its own
                              queries. The gradient is the sum over all ranks, which the caller makes. NULL if not wanted */
  size_t dsinks_size;    /**< bytes that may be written from dsinks on; fewer than it takes are refused. 0: not checked */
} ra_backward_args;

/** Clears `args`. `struct_size` is sizeof(ra_backward_args). Accepts NULL. */
RA_API void ra_init_backward_args(ra_backward_args *args, size_t struct_size);

/**
 * Gradients of ra_forward with respect to this rank's q, k and v, given the gradient of `out`.
 *
 * Collective, blocking, overlap and errors as ra_forward. Recomputes the scores from lse; gradients travel and accumulate
 * in fp32 and are rounded once. Deterministic. Rows whose lse is -infinity have gradients 0. key_bias has no gradient here.
 * Method: Dao et al. 2022, "FlashAttention", Algorithm 4, with delta = rowsum(dout * out).
 */
RA_API ra_status ra_backward(ra_context *context, const ra_attention_desc *desc, const ra_backward_args *args,
                             ra_error *error);

/** Two partial results over disjoint sets of keys, and where their union goes. */
typedef struct ra_merge_args {
  size_t struct_size;
  int64_t batch;      /**< >= 1; default 1 */
  int64_t seqlen;     /**< rows, >= 0; no default: -1, which is refused */
  int64_t num_heads;  /**< >= 1; default 1 */
  int64_t head_dim_v; /**< >= 1; no default */
  int32_t dtype;      /**< ra_dtype of the three tensors; default RA_DTYPE_FLOAT32 */
  int32_t reserved;   /**< 0 */
  ra_tensor out_a;    /**< [batch, seqlen, num_heads, head_dim_v] */
  ra_tensor out_b;    /**< the same shape */
  ra_tensor out;      /**< the same shape; written; may be out_a or out_b with the same strides, else may not overlap them */
  const float *lse_a; /**< [batch, num_heads, seqlen] packed */
  const float *lse_b; /**< the same shape */
  float *lse;         /**< the same shape; written; may be lse_a or lse_b itself */
  size_t lse_size;    /**< bytes that may be read or written from each of the three on; 0: not checked */
} ra_merge_args;

/** Fills `args` with defaults. `struct_size` is sizeof(ra_merge_args). Accepts NULL. */
RA_API void ra_init_merge_args(ra_merge_args *args, size_t struct_size);

/**
 * Combines attention over two disjoint sets of keys into attention over their union: lse = log(exp(lse_a) + exp(lse_b)),
 * out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b. Local, host memory, on the calling thread.
 * Errors: INVALID_ARGUMENT.
 */
RA_API ra_status ra_merge_attention(const ra_merge_args *args, ra_error *error);

/* ---------------------------------------------------------------- multi-head attention */

/** Which elements of a head of q and k are turned together (Su et al. 2021, "RoFormer"). */
typedef enum ra_rotary {
  RA_ROTARY_NONE = 0,
  RA_ROTARY_HALVES = 1,     /**< of the first r: element i with element i + r / 2, as GPT-NeoX and Hugging Face's LLaMA */
  RA_ROTARY_INTERLEAVED = 2 /**< of the first r: element 2 i with element 2 i + 1, as in the paper and GPT-J */
} ra_rotary;

/** What ra_mha_forward keeps for ra_mha_backward. Gradients are the same to the last bit with each. */
typedef enum ra_checkpoint {
  RA_CHECKPOINT_ATTENTION = 0, /**< the output of attention and its lse: q, k and v are projected again, nothing is attended again */
  RA_CHECKPOINT_ALL = 1,       /**< q, k and v too: nothing is computed again but, where there is any, rotation and normalisation */
  RA_CHECKPOINT_INPUT = 2      /**< nothing, the caller keeps x: the forward pass is made again, its communication included */
} ra_checkpoint;

/**
 * What a layer of multi-head attention has around attention, equal on every rank.
 *
 *     q = heads(x w_q + b_q)    k = heads(x w_k + b_k)    v = x w_v + b_v    out = attention(q, k, v) w_o + b_o
 *
 * where each head of q and k is first normalised, if normalize_heads is 1: y = norm * x / sqrt(mean(x^2) + norm_epsilon), and
 * then turned by its token's position p in the whole sequence, unless rotary is NONE: elements a and b of pair i become
 * a cos t - b sin t and a sin t + b cos t with t = p * rotary_base^(-2 i / r). Attention is that of a ra_attention_desc, whose
 * num_heads_q, num_heads_kv, head_dim and head_dim_v are those of the weights.
 */
typedef struct ra_mha_desc {
  size_t struct_size;
  int64_t d_model;         /**< elements of a token of x and out, 1 .. 2^20; no default */
  int32_t rotary;          /**< ra_rotary; default RA_ROTARY_NONE. What follows of it changes nothing then */
  float rotary_base;       /**< finite and > 1; default 10000 */
  float rotary_fraction;   /**< of a head's elements that are turned, 0 < f <= 1: r = 2 floor(f * head_dim / 2), at least 2; default 1 */
  int32_t has_qkv_bias;    /**< 1 if there are b_q, b_k and b_v; default 0 */
  int32_t has_out_bias;    /**< 1 if there is b_o; default 0 */
  int32_t normalize_heads; /**< 1 if there are norm_q and norm_k (RMSNorm: Zhang and Sennrich 2019); default 0 */
  float norm_epsilon;      /**< >= 0 and finite; default 1e-6 */
  int32_t checkpoint;      /**< ra_checkpoint; default RA_CHECKPOINT_ATTENTION */
} ra_mha_desc;

/** Fills `mha` with defaults. `struct_size` is sizeof(ra_mha_desc). Accepts NULL. */
RA_API void ra_init_mha_desc(ra_mha_desc *mha, size_t struct_size);

/**
 * One rank's tensors of ra_mha_forward. n: this rank's shard length (ra_get_shard_length). Weights are whole on every rank. A matrix
 * [rows, columns] is a tensor of one entry and one head, with a token for each row: unless it is packed, seq_stride, which is then at
 * least `columns`, leads from one row to the next, as in a matrix that has w_q, w_k and w_v side by side. So is [batch, n, d_model].
 */
typedef struct ra_mha_forward_args {
  size_t struct_size;
  ra_tensor x;             /**< [batch, n, d_model], desc.dtype */
  ra_tensor w_q;           /**< [d_model, num_heads_q * head_dim], desc.dtype */
  ra_tensor w_k;           /**< [d_model, num_heads_kv * head_dim], desc.dtype */
  ra_tensor w_v;           /**< [d_model, num_heads_kv * head_dim_v], desc.dtype */
  ra_tensor w_o;           /**< [num_heads_q * head_dim_v, d_model], desc.dtype */
  ra_tensor b_q;           /**< [num_heads_q * head_dim], desc.dtype, where mha.has_qkv_bias is 1, else data is NULL */
  ra_tensor b_k;           /**< [num_heads_kv * head_dim], desc.dtype, where there is b_q */
  ra_tensor b_v;           /**< [num_heads_kv * head_dim_v], desc.dtype, where there is b_q */
  ra_tensor b_o;           /**< [d_model], desc.dtype, where mha.has_out_bias is 1, else data is NULL */
  ra_tensor norm_q;        /**< [head_dim], desc.dtype, where mha.normalize_heads is 1, else data is NULL */
  ra_tensor norm_k;        /**< [head_dim], desc.dtype, where there is norm_q */
  ra_tensor out;           /**< [batch, n, d_model], desc.out_dtype; written */
  void *activations;       /**< ra_mha_requirements::activations bytes aligned to 64, written for ra_mha_backward; NULL with
                                RA_CHECKPOINT_INPUT, which needs none, also where ra_mha_backward will not be called */
  size_t activations_size; /**< bytes at activations */
  void *workspace;         /**< ra_mha_requirements::forward_workspace bytes aligned to 64, or NULL: the context keeps one of its own */
  size_t workspace_size;   /**< bytes at workspace */
  ra_stream stream;        /**< must be NULL on the CPU */
} ra_mha_forward_args;

/** Clears `args`. `struct_size` is sizeof(ra_mha_forward_args). Accepts NULL. */
RA_API void ra_init_mha_forward_args(ra_mha_forward_args *args, size_t struct_size);

/**
 * Multi-head attention of this rank's tokens over those of all ranks, from the tokens themselves: projects x, attends as
 * ra_forward does, projects what comes out.
 *
 * Collective: every rank calls it with an equal `desc` and `mha`, and the same weights. K and V are projected first, and travel
 * while Q is. The keys are the tokens of x: seqlen_kv is seqlen_q, and key_bias and sinks are not part of a layer. What lies between
 * (q, k, v and their attention) is stored in desc.dtype; products are summed in fp32. On CPUs they are oneDNN's, those of
 * RA_DTYPE_FLOAT16 and, where the processor has no instructions for it, of RA_DTYPE_BFLOAT16 of inputs that are widened to fp32, and
 * results are bitwise equal from run to run and for any number of threads. On CUDA they are cuBLAS's, and results are bitwise equal from
 * run to run for the same GPU, num_sms, version of cuBLAS and alignment of the caller's memory. Either is loaded when a layer is first
 * asked for.
 *
 * Overlap, blocking, timing, captures and errors as ra_forward; NOT_SUPPORTED also where oneDNN or cuBLAS is not found.
 */
RA_API ra_status ra_mha_forward(ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                                const ra_mha_forward_args *args, ra_error *error);

/** One rank's tensors of ra_mha_backward; shapes as in ra_mha_forward_args. */
typedef struct ra_mha_backward_args {
  size_t struct_size;
  ra_tensor dout;          /**< shape of out, desc.out_dtype */
  ra_tensor x;             /**< as given to ra_mha_forward */
  ra_tensor w_q;           /**< as given to ra_mha_forward */
  ra_tensor w_k;           /**< as given to ra_mha_forward */
  ra_tensor w_v;           /**< as given to ra_mha_forward */
  ra_tensor w_o;           /**< as given to ra_mha_forward */
  ra_tensor b_q;           /**< as given to ra_mha_forward */
  ra_tensor b_k;           /**< as given to ra_mha_forward */
  ra_tensor b_v;           /**< as given to ra_mha_forward */
  ra_tensor b_o;           /**< as given to ra_mha_forward */
  ra_tensor norm_q;        /**< as given to ra_mha_forward */
  ra_tensor norm_k;        /**< as given to ra_mha_forward */
  ra_tensor dx;            /**< shape of x, desc.grad_dtype; written; data is NULL if not wanted */
  ra_tensor dw_q;          /**< shape of w_q, fp32; written; data is NULL if not wanted */
  ra_tensor dw_k;          /**< shape of w_k, fp32; written; data is NULL if not wanted */
  ra_tensor dw_v;          /**< shape of w_v, fp32; written; data is NULL if not wanted */
  ra_tensor dw_o;          /**< shape of w_o, fp32; written; data is NULL if not wanted */
  ra_tensor db_q;          /**< shape of b_q, fp32; written; data is NULL if not wanted */
  ra_tensor db_k;          /**< shape of b_k, fp32; written; data is NULL if not wanted */
  ra_tensor db_v;          /**< shape of b_v, fp32; written; data is NULL if not wanted */
  ra_tensor db_o;          /**< shape of b_o, fp32; written; data is NULL if not wanted */
  ra_tensor dnorm_q;       /**< shape of norm_q, fp32; written; data is NULL if not wanted */
  ra_tensor dnorm_k;       /**< shape of norm_k, fp32; written; data is NULL if not wanted */
  int32_t accumulate;      /**< 0: overwrite the gradients of weights; 1: add to what they hold, as over micro-batches. dx is
                                overwritten in any case */
  int32_t reduce;          /**< 0: gradients of weights are this rank's share, and their sum over all ranks is the gradient; 1: in
                                the end each is summed over all ranks, what it held before with accumulate included, as after the
                                last micro-batch; the same on every rank, and so are the gradients that are wanted */
  const void *activations; /**< as ra_mha_forward wrote it; with RA_CHECKPOINT_INPUT NULL */
  size_t activations_size; /**< bytes at activations */
  void *workspace;         /**< ra_mha_requirements::backward_workspace bytes aligned to 64, or NULL: the context keeps one of its own */
  size_t workspace_size;   /**< bytes at workspace */
  ra_stream stream;        /**< must be NULL on the CPU */
} ra_mha_backward_args;

/** Clears `args`. `struct_size` is sizeof(ra_mha_backward_args). Accepts NULL. */
RA_API void ra_init_mha_backward_args(ra_mha_backward_args *args, size_t struct_size);

/**
 * Gradients of ra_mha_forward with respect to x and the weights, given the gradient of `out`.
 *
 * Collective, blocking, overlap and errors as ra_mha_forward. Deterministic, sums over ranks included: these are made in an order
 * of ranks that depends on nothing but the world size, and are the same bits on every rank.
 */
RA_API ra_status ra_mha_backward(ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                                 const ra_mha_backward_args *args, ra_error *error);

/** What one rank needs for one layer, in bytes. */
typedef struct ra_mha_requirements {
  size_t struct_size;
  size_t activations;        /**< kept from ra_mha_forward to ra_mha_backward, beside x; 0 with RA_CHECKPOINT_INPUT */
  size_t forward_workspace;  /**< q, k and v, the output of attention and its lse, unless they are kept; room for each thread's
                                  blocks of products, on CUDA about 80 MiB for those and for cuBLAS; and
                                  ra_memory_requirements::forward_workspace of attention */
  size_t backward_workspace; /**< gradients of q, k, v and the output of attention; what is computed again; a part of the largest
                                  gradient of a weight, where gradients are summed over ranks; the same room for products; and the
                                  larger of the workspaces of attention that are needed */
  double forward_flops;      /**< of products of matrices and of attention, of this rank */
  double backward_flops;     /**< the same for ra_mha_backward, what is computed again included */
} ra_mha_requirements;

/** Clears `requirements`. `struct_size` is sizeof(ra_mha_requirements). Accepts NULL. */
RA_API void ra_init_mha_requirements(ra_mha_requirements *requirements, size_t struct_size);

/** Fills `requirements` for this rank of `context`. Local. Errors: as ra_mha_forward. */
RA_API ra_status ra_get_mha_requirements(const ra_context *context, const ra_attention_desc *desc, const ra_mha_desc *mha,
                                         ra_mha_requirements *requirements, ra_error *error);

/** What ra_all_reduce sums. */
typedef struct ra_reduce_args {
  size_t struct_size;
  float *data;           /**< `count` numbers; read and written; may be NULL if there are none */
  size_t data_size;      /**< bytes that may be read and written from data on; fewer than it takes are refused. 0: not checked */
  int64_t count;         /**< >= 0, the same on every rank; at most 2^48; no default: -1, which is refused */
  void *workspace;       /**< room for ceil(count / world_size) numbers, aligned to 64, or NULL: the context keeps its own; not
                              needed where world_size is 1 */
  size_t workspace_size; /**< bytes at workspace */
  ra_stream stream;      /**< must be NULL on the CPU */
} ra_reduce_args;

/** Clears `args`. `struct_size` is sizeof(ra_reduce_args). Accepts NULL. */
RA_API void ra_init_reduce_args(ra_reduce_args *args, size_t struct_size);

/**
 * data[i] becomes the sum of data[i] of all ranks, in fp32: for what a model has beside attention, whose gradients are summed over
 * ranks like those of a layer. Each rank sends and receives 2 (world_size - 1) / world_size times the bytes of `data`. Deterministic,
 * and the same bits on every rank: number i is summed along the ring, from rank floor(i / ceil(count / world_size)) on.
 *
 * Collective, blocking, captures and errors as ra_forward; on errors `data` holds what has been summed so far.
 */
RA_API ra_status ra_all_reduce(ra_context *context, const ra_reduce_args *args, ra_error *error);

/* ---------------------------------------------------------------- KV cache */

/**
 * Keys and values of many sequences that grow token by token, in pages that are spread over the ranks of a context, for ra_decode.
 * Opaque.
 *
 * Page i of a sequence has its tokens i * page_tokens and the page_tokens - 1 behind, and lies on rank (b + i) mod world_size, where b
 * differs from sequence to sequence. Which page is where is known on every rank, without a word between them: all ranks make the same
 * calls with a cache, in the same order. So they get the same sequences, and the same refusal, as where there is no page left on some
 * rank, or a sequence is not known; what is refused has changed nothing. Ranks that have made other calls get MISMATCH from the next
 * ra_decode. Only that function sends anything; the others are local and do not block.
 *
 * One thread at a time per cache. A cache outlives its context: ra_move_kv_cache takes what the remaining ranks have to another one.
 */
typedef struct ra_kv_cache ra_kv_cache;

/** What a cache holds; the same on every rank. */
typedef struct ra_kv_cache_desc {
  size_t struct_size;
  int64_t page_tokens;  /**< tokens of a page, 16 .. 256; default 64 */
  int64_t num_pages;    /**< pages of each rank, 1 .. 2^24; no default */
  int64_t num_heads_kv; /**< of K and V, >= 1; no default */
  int64_t head_dim;     /**< of K, 1 .. 256; no default */
  int64_t head_dim_v;   /**< of V, 1 .. 256; default 0: head_dim */
  int32_t dtype;        /**< ra_dtype of K and V; default RA_DTYPE_FLOAT32 */
  int32_t reserved;     /**< 0 */
} ra_kv_cache_desc;

/** Fills `desc` with defaults. `struct_size` is sizeof(ra_kv_cache_desc). Accepts NULL. */
RA_API void ra_init_kv_cache_desc(ra_kv_cache_desc *desc, size_t struct_size);

/**
 * Makes an empty cache for the ranks of `context`, with memory for all pages of this rank: num_pages * page_tokens * num_heads_kv *
 * (head_dim + head_dim_v) elements, and beside it some 4 bytes for each page of each rank.
 *
 * Returns the cache, which the caller releases with ra_destroy_kv_cache, or NULL with `error` filled: INVALID_ARGUMENT, NOT_SUPPORTED
 * (the CPU backend has caches), OUT_OF_MEMORY.
 */
RA_API ra_kv_cache *ra_create_kv_cache(ra_context *context, const ra_kv_cache_desc *desc, ra_error *error);

/** Frees the cache and its memory. Accepts NULL. No call may be in progress with it; its context may be gone. */
RA_API void ra_destroy_kv_cache(ra_kv_cache *cache);

/**
 * A new sequence without tokens, which takes no page. Returns its number, >= 0 and never given again, the same on every rank; or -1 with
 * `error` filled: INVALID_ARGUMENT, OUT_OF_MEMORY.
 */
RA_API int64_t ra_create_sequence(ra_kv_cache *cache, ra_error *error);

/**
 * A new sequence that begins with all tokens of `sequence`: both share the pages, which stay as long as anybody has them. Whichever first
 * appends to a page that they share, and that is not full, gets one of its own for it, on the same rank.
 *
 * Returns the new sequence's number, or -1 with `error` filled: INVALID_ARGUMENT (`sequence` is not known, or was freed), OUT_OF_MEMORY.
 */
RA_API int64_t ra_fork_sequence(ra_kv_cache *cache, int64_t sequence, ra_error *error);

/** Leaves the first `length` tokens, 0 <= length <= those it has, and gives back pages of the others. Errors: INVALID_ARGUMENT. */
RA_API ra_status ra_truncate_sequence(ra_kv_cache *cache, int64_t sequence, int64_t length, ra_error *error);

/** Gives back the pages of a sequence, which is no more. Errors: INVALID_ARGUMENT (also if that was done before). */
RA_API ra_status ra_free_sequence(ra_kv_cache *cache, int64_t sequence, ra_error *error);

/** Tokens of a sequence, lost ones included. Returns -1 with `error` filled on INVALID_ARGUMENT. */
RA_API int64_t ra_get_sequence_length(const ra_kv_cache *cache, int64_t sequence, ra_error *error);

/** New tokens of some sequences. Every rank is given all of them, and stores those of its pages. */
typedef struct ra_append_args {
  size_t struct_size;
  int64_t num_sequences;    /**< >= 1; default 1 */
  int64_t num_tokens;       /**< of k and v, for each sequence, >= 0; no default: -1, which is refused */
  const int64_t *sequences; /**< host, num_sequences entries, each another sequence */
  const int64_t *lengths;   /**< host, num_sequences entries of 0 .. num_tokens: tokens that are appended, the first ones; NULL: all */
  const int64_t *positions; /**< host, num_sequences entries: in the place of which tokens they come, from there on. It is the sequence's
                                 length, behind the others, or where pages are lost: there its first lost token (ra_get_lost_tokens),
                                 and as many as are lost there, or all of several pages. NULL: behind the others, everywhere */
  ra_tensor k;              /**< [num_sequences, num_tokens, num_heads_kv, head_dim], the cache's dtype */
  ra_tensor v;              /**< [num_sequences, num_tokens, num_heads_kv, head_dim_v], the cache's dtype */
  ra_stream stream;         /**< must be NULL on the CPU */
} ra_append_args;

/** Fills `args` with defaults. `struct_size` is sizeof(ra_append_args). Accepts NULL. */
RA_API void ra_init_append_args(ra_append_args *args, size_t struct_size);

/**
 * Appends tokens to sequences: one to each, as in decoding, or many, as of a prompt. A sequence takes a page for each page_tokens
 * tokens begun. `context`: the cache's own, which may be broken: the tokens are there when the cache goes on in another. Local.
 *
 * Errors: INVALID_ARGUMENT; OUT_OF_MEMORY where a rank has not enough free pages for all of them: the message says which rank, how many
 * it has and how many are needed, is the same on all ranks, and nothing was appended to any sequence; INVALID_STATE where the last page
 * is lost, or the context is in use by another thread. The context stays usable after each.
 */
RA_API ra_status ra_append(ra_context *context, ra_kv_cache *cache, const ra_append_args *args, ra_error *error);

/** Tensors of ra_decode, the same on every rank. */
typedef struct ra_decode_args {
  size_t struct_size;
  int64_t num_sequences;    /**< desc.batch; default 1 */
  const int64_t *sequences; /**< host, num_sequences entries: whose tokens the queries of each batch entry are; one may come twice */
  ra_tensor q;              /**< [batch, seqlen_q, num_heads_q, head_dim], desc.dtype */
  ra_tensor out;            /**< [batch, seqlen_q, num_heads_q, head_dim_v], desc.out_dtype; written */
  float *lse;               /**< [batch, num_heads_q, seqlen_q] packed; written; NULL if not wanted */
  size_t lse_size;          /**< bytes that may be written from lse on; fewer than it takes are refused. 0: not checked */
  const float *sinks;       /**< [num_heads_q, num_sinks] packed; where desc.num_sinks > 0, else NULL. As in ra_forward_args */
  size_t sinks_size;        /**< bytes that may be read from sinks on; fewer than it takes are refused. 0: not checked */
  ra_stream stream;         /**< must be NULL on the CPU */
} ra_decode_args;

/** Fills `args` with defaults. `struct_size` is sizeof(ra_decode_args). Accepts NULL. */
RA_API void ra_init_decode_args(ra_decode_args *args, size_t struct_size);

/**
 * Attends the last seqlen_q tokens of each of desc.batch sequences to all tokens of theirs: a new token or several, as where guesses are
 * checked, or a chunk of a prompt. Their keys and values were appended before.
 *
 * Collective: every rank calls it with an equal `desc`, the same sequences and the same q, and gets the same out, to the last bit.
 * Of `desc`, seqlen_kv is -1: keys are those of the cache. A query sees keys by mask, windows and their alignment, which is
 * RA_MASK_ALIGNMENT_BOTTOM_RIGHT, as in ra_forward with the sequence's length for seqlen_kv; softmax_scale, softcap, alibi_slopes and
 * sinks are as there. num_heads_kv, head_dim, head_dim_v and dtype are the cache's. Documents, kv_lengths, key_bias, dropout, mask slices,
 * branches, num_chunks but with RA_SCHEDULE_RING, and shardings other than RA_SHARDING_CONTIGUOUS, the default, are not part of it.
 *
 * With RA_SCHEDULE_PASS_Q each rank attends all queries to the keys that it has, and keys never move: each of the batch * seqlen_q *
 * num_heads_q rows of partial results, head_dim_v + 1 fp32 numbers, goes to one rank that merges those of all ranks, in the order of
 * ranks, and comes back to all. With n such rows, of which a rank merges m, it sends (n - m) + (world_size - 1) m of them, whatever the
 * cache holds: 2 (world_size - 1) / world_size times all of them, where they divide evenly. With RA_SCHEDULE_RING each rank attends a
 * part of the queries to all keys, which go around, and then gives its part of the results to the others. RA_SCHEDULE_AUTO takes
 * the first where queries are fewer bytes than keys: t / n < 2 num_heads_kv / num_heads_q with t queries and n keys, those of t included,
 * over all sequences (Yang et al. 2024, "Context Parallelism for Scalable Million-Token Inference"); and where world_size is 1.
 * ra_call_statistics::schedule says which it was.
 *
 * Blocking, timing and errors as ra_forward; INVALID_ARGUMENT also where a sequence has fewer than seqlen_q tokens, is not known, or the
 * cache is another context's or of another dtype or shape; INVALID_STATE also where a sequence has lost tokens.
 */
RA_API ra_status ra_decode(ra_context *context, ra_kv_cache *cache, const ra_attention_desc *desc, const ra_decode_args *args,
                           ra_error *error);

/** What a cache holds now. */
typedef struct ra_kv_cache_statistics {
  size_t struct_size;
  int64_t num_sequences;    /**< that were made and not freed */
  int64_t num_tokens;       /**< of all of them, shared ones counted for each, lost ones included */
  int64_t used_pages;       /**< of this rank's, shared ones counted once */
  int64_t free_pages;       /**< of this rank's */
  int64_t least_free_pages; /**< of the rank that has the fewest free ones */
  int64_t lost_pages;       /**< of all sequences, that were on ranks which are gone, counted for each sequence */
  size_t memory;            /**< bytes of this rank's pages */
} ra_kv_cache_statistics;

/** Clears `statistics`. `struct_size` is sizeof(ra_kv_cache_statistics). Accepts NULL. */
RA_API void ra_init_kv_cache_statistics(ra_kv_cache_statistics *statistics, size_t struct_size);

/** Fills `statistics`. Errors: INVALID_ARGUMENT. */
RA_API ra_status ra_get_kv_cache_statistics(const ra_kv_cache *cache, ra_kv_cache_statistics *statistics, ra_error *error);

/**
 * Makes a cache that of another context, with the ranks that are left: rank r of `context` is the one that was rank former_ranks[r] of
 * the context before, and brings its pages. Pages of ranks that are not among them are lost; the sequences keep their lengths, and
 * once ra_append was given the lost tokens again (ra_get_lost_tokens), or they are cut off or freed, go on as before.
 *
 * `former_ranks` is a list of the host's with as many entries as `context` has ranks, each another one, the same on every rank. The former
 * context may be broken, or gone; a rank that is a call behind the others, as where that broke the group, makes it before: see ra_append.
 * Errors: INVALID_ARGUMENT, NOT_SUPPORTED (the CPU backend has caches), OUT_OF_MEMORY; the cache is then as it was.
 */
RA_API ra_status ra_move_kv_cache(ra_kv_cache *cache, ra_context *context, const int32_t *former_ranks, ra_error *error);

/**
 * The first token of `sequence` from position `from` on that is lost, 0 <= from <= its length; its length, if there is none. Tokens are lost
 * up to the end of the page, or of the sequence, at least. Returns -1 with `error` filled on INVALID_ARGUMENT.
 */
RA_API int64_t ra_get_lost_tokens(const ra_kv_cache *cache, int64_t sequence, int64_t from, ra_error *error);

/* ---------------------------------------------------------------- diagnosis */

/**
 * Runs `num_problems` small random problems, drawn from `seed` over every mask, sharding and dtype, with and without dilation
 * and what changes scores and weights, on the caller's own context, and checks each against fp64 and its gradients against finite differences.
 *
 * Collective: all ranks give the same `num_problems` (1 .. 1000000) and `seed`. Returns SUCCESS, or INTERNAL_ERROR with the
 * first problem whose error exceeds twice that of a plain computation in fp32 stored in the same dtypes, or any error of
 * ra_forward.
 */
RA_API ra_status ra_run_self_test(ra_context *context, int64_t num_problems, int64_t seed, ra_error *error);

/** Receives one log line; `message` is valid during the call. May be called from any thread; must not call the library. */
typedef void (*ra_log_callback)(int32_t level, const char *message, void *user_data);

/**
 * Sends log messages of `min_level` (ra_log_level) and above to `callback`; NULL, the initial state, discards them. Process
 * wide; from any thread. When it returns, no call of the earlier callback is in progress.
 */
RA_API void ra_set_log_callback(ra_log_callback callback, void *user_data, int32_t min_level);

#ifdef __cplusplus
}
#endif

#endif /* RINGATTN_RINGATTN_H */

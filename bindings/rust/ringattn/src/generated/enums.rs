// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.

use crate::choice::choice;
use crate::sys;
#[allow(unused_imports)] // in comments
use crate::*;

choice! {
    /// Outcome of a call. Values are stable; new ones are only added at the end.
    Status, "status";
    /// `Ok`.
    Success = sys::RA_STATUS_SUCCESS, "SUCCESS";
    /// A field is outside its documented range; nothing was done, but [`Context::new`] uses up its
    /// id.
    InvalidArgument = sys::RA_STATUS_INVALID_ARGUMENT, "INVALID_ARGUMENT";
    /// A legal request that this build, machine or engine cannot serve.
    NotSupported = sys::RA_STATUS_NOT_SUPPORTED, "NOT_SUPPORTED";
    /// Host or device memory could not be allocated.
    OutOfMemory = sys::RA_STATUS_OUT_OF_MEMORY, "OUT_OF_MEMORY";
    /// The context failed or was aborted earlier, or is in use by another thread, or is of the
    /// process that this one was forked from, or a stream is being captured before the call was
    /// once made without that ([`Context::forward`]).
    InvalidState = sys::RA_STATUS_INVALID_STATE, "INVALID_STATE";
    /// A rank did not come within [`ContextConfig::timeout_ms`]; [`Error::rank`] names it.
    Timeout = sys::RA_STATUS_TIMEOUT, "TIMEOUT";
    /// [`AbortHandle::abort`] was called on this rank or, if [`Error::rank`] says so, on another.
    Aborted = sys::RA_STATUS_ABORTED, "ABORTED";
    /// Another rank failed or left during the operation; [`Error::rank`] names it.
    PeerLost = sys::RA_STATUS_PEER_LOST, "PEER_LOST";
    /// Ranks disagree on the problem or on the order of calls; every rank gets this, and
    /// [`Error::rank`] names the one that contradicts all others, if they agree. The message has
    /// the first field that differs, with its value on two ranks; of a list, a digest.
    Mismatch = sys::RA_STATUS_MISMATCH, "MISMATCH";
    /// [`Error::cuda_error`] holds the cudaError_t.
    CudaError = sys::RA_STATUS_CUDA_ERROR, "CUDA_ERROR";
    /// [`Error::nccl_result`] holds the ncclResult_t.
    NcclError = sys::RA_STATUS_NCCL_ERROR, "NCCL_ERROR";
    /// A defect of the library, or a self-test that found a wrong result.
    InternalError = sys::RA_STATUS_INTERNAL_ERROR, "INTERNAL_ERROR";
}

choice! {
    /// Where the arithmetic runs.
    Backend, "backend";
    /// CPU.
    Cpu = sys::RA_BACKEND_CPU, "CPU";
    /// CUDA.
    Cuda = sys::RA_BACKEND_CUDA, "CUDA";
}

choice! {
    /// What carries chunks of K and V between ranks.
    Transport, "transport";
    /// Ranks are threads of one process; with CUDA on one GPU or several, whose copy engines do it.
    Local = sys::RA_TRANSPORT_LOCAL, "LOCAL";
    /// Ranks are processes, or threads, on one machine or many; CPU backend. Needs libzmq and
    /// libsodium.
    Zeromq = sys::RA_TRANSPORT_ZEROMQ, "ZEROMQ";
    /// Ranks have a GPU each, in one process or many, CUDA backend.
    Nccl = sys::RA_TRANSPORT_NCCL, "NCCL";
}

choice! {
    /// Whether what ranks of [`Transport::Zeromq`] send each other over TCP can be read on the way.
    Encryption, "encryption";
    /// Encrypted and authenticated.
    On = sys::RA_ENCRYPTION_ON, "ON";
    /// Authenticated only: whoever listens reads it, but nobody can change it unnoticed.
    Off = sys::RA_ENCRYPTION_OFF, "OFF";
}

choice! {
    /// Element type of a tensor.
    DType, "dtype";
    /// For output types only: the inputs' type.
    Same = sys::RA_DTYPE_SAME, "SAME";
    /// FLOAT32.
    Float32 = sys::RA_DTYPE_FLOAT32, "FLOAT32";
    /// BFLOAT16.
    Bfloat16 = sys::RA_DTYPE_BFLOAT16, "BFLOAT16";
    /// FLOAT16.
    Float16 = sys::RA_DTYPE_FLOAT16, "FLOAT16";
}

choice! {
    /// Which tokens a rank owns. P is the world size. A rank's shard holds its tokens densely in
    /// ascending position.
    ///
    /// Packed documents are cut one by one, so that every rank gets a like share of each; a
    /// sequence without documents is one document. Contiguous and zigzag cut it into m parts, one
    /// behind the other: of its n tokens, the first of which is token b of the whole sequence, part
    /// k (0 <= k < m) has n / m, rounded down, and one more if (k - b) mod m < n mod m, where mod
    /// is never negative. So with one document the longer parts come first, and with many each
    /// gives its odd tokens to the ranks after those of the document before: however many there
    /// are, shards differ in length by one token at most, or by one stripe.
    ///
    /// [`AttentionDesc::shard_length`] and [`AttentionDesc::shard_positions`] work this out.
    /// Queries and keys follow the same rule, so token i of both is on one rank if their sequences
    /// are cut alike: equal lengths and equal document offsets.
    Sharding, "sharding";
    /// P parts, rank r owns part r.
    Contiguous = sys::RA_SHARDING_CONTIGUOUS, "CONTIGUOUS";
    /// 2 P parts, rank r owns parts r and 2 P - 1 - r: equal work under a causal mask.
    Zigzag = sys::RA_SHARDING_ZIGZAG, "ZIGZAG";
    /// Token p of the whole sequence belongs to rank (p / stripe) mod P, in whatever document it
    /// is: equal work under a causal mask.
    Striped = sys::RA_SHARDING_STRIPED, "STRIPED";
}

choice! {
    /// Shape of the mask before windows, documents and padding, which all intersect with it.
    Mask, "mask";
    /// FULL.
    Full = sys::RA_MASK_FULL, "FULL";
    /// CAUSAL.
    Causal = sys::RA_MASK_CAUSAL, "CAUSAL";
}

choice! {
    /// Which query and key face each other where their lengths differ: the diagonal of causal masks
    /// and of windows.
    MaskAlignment, "mask_alignment";
    /// Query i faces key i.
    TopLeft = sys::RA_MASK_ALIGNMENT_TOP_LEFT, "TOP_LEFT";
    /// Query i faces key i + `seqlen_kv` - `seqlen_q`; inside each document, its lengths.
    BottomRight = sys::RA_MASK_ALIGNMENT_BOTTOM_RIGHT, "BOTTOM_RIGHT";
}

choice! {
    /// Which pairs of its rectangle a mask slice has: query i of q_begin .. q_end - 1, key j of
    /// kv_begin .. kv_end - 1.
    MaskSliceKind, "mask_slice_kind";
    /// All.
    Full = sys::RA_MASK_SLICE_KIND_FULL, "FULL";
    /// J - kv_end <= i - q_end: the last query faces the last key, and sees none behind.
    Causal = sys::RA_MASK_SLICE_KIND_CAUSAL, "CAUSAL";
    /// J - kv_begin >= i - q_begin: the first query faces the first key, and sees none before.
    InverseCausal = sys::RA_MASK_SLICE_KIND_INVERSE_CAUSAL, "INVERSE_CAUSAL";
    /// What both CAUSAL and INVERSE_CAUSAL have: a band, or nothing where there are more queries
    /// than keys.
    BidirectionalCausal = sys::RA_MASK_SLICE_KIND_BIDIRECTIONAL_CAUSAL, "BIDIRECTIONAL_CAUSAL";
}

choice! {
    /// Which positions of a segment a query head keeps in a branch of dilation r: those whose place
    /// in it, mod r, is its phase.
    DilationPhase, "dilation_phase";
    /// Of query head h: floor(h / ceil(`num_heads_q` / r)), as in torchscale's code.
    BlocksOfHeads = sys::RA_DILATION_PHASE_BLOCKS_OF_HEADS, "BLOCKS_OF_HEADS";
    /// Of query head h: h mod r, as in the LongNet paper.
    InterleavedHeads = sys::RA_DILATION_PHASE_INTERLEAVED_HEADS, "INTERLEAVED_HEADS";
}

choice! {
    /// What a head has in a segment where it keeps fewer positions than other heads, or than in
    /// other segments of its branch.
    DilationPadding, "dilation_padding";
    /// Nothing.
    Masked = sys::RA_DILATION_PADDING_MASKED, "MASKED";
    /// What torchscale pads with: keys with score 0 and value 0, so many that each head keeps
    /// ceil(g / r) in every segment of g positions, those counted that `kv_lengths` hides; for full
    /// masks only. Rows of that segment get smaller outputs and a larger lse for it, also those
    /// that see no other key, and longer sequences other results for the same tokens.
    ZeroKeys = sys::RA_DILATION_PADDING_ZERO_KEYS, "ZERO_KEYS";
}

choice! {
    /// What the backward pass differentiates.
    DilationGradient, "dilation_gradient";
    /// The result.
    Exact = sys::RA_DILATION_GRADIENT_EXACT, "EXACT";
    /// As torchscale: each branch by itself, and the weights by which branches are combined are
    /// taken for constants. Not the gradient of the result, where a row has several branches;
    /// dsinks is.
    ConstantWeights = sys::RA_DILATION_GRADIENT_CONSTANT_WEIGHTS, "CONSTANT_WEIGHTS";
}

choice! {
    /// Who computes and sends what, in which order. Results follow the same rules with each, but
    /// not to the last bit.
    ///
    /// [`Schedule::Auto`] is [`Schedule::AllGather`] where sequences are so short that the P - 1
    /// hops of a ring cost more than they hide: if `world_size` is 3 or more, no rank has more than
    /// 256 keys, `num_chunks` is 0, and 2^24 bytes, or `gather_bytes` where that is less, are
    /// enough to gather all at once. Else, and with mask slices or branches, it is
    /// [`Schedule::Ring`]. [`MemoryRequirements`] says which. The rule comes from measurements with
    /// ranks of one process on CPUs; on GPUs nothing has been measured yet.
    Schedule, "schedule";
    /// The library chooses.
    Auto = sys::RA_SCHEDULE_AUTO, "AUTO";
    /// Chunks of K and V travel from neighbour to neighbour.
    Ring = sys::RA_SCHEDULE_RING, "RING";
    /// Each rank sends its K and V to all ranks that see them, in one exchange, and computes with
    /// all that it got; in the backward pass another exchange returns the gradients. By parts of
    /// the problem, one after the other, so that memory stays within
    /// [`AttentionDesc::gather_bytes`].
    AllGather = sys::RA_SCHEDULE_ALL_GATHER, "ALL_GATHER";
    /// ALL_TO_ALL.
    AllToAll = sys::RA_SCHEDULE_ALL_TO_ALL, "ALL_TO_ALL";
    /// HYBRID.
    Hybrid = sys::RA_SCHEDULE_HYBRID, "HYBRID";
    /// Of [`Context::decode`] alone: queries come to the keys, and what they see there is merged.
    PassQ = sys::RA_SCHEDULE_PASS_Q, "PASS_Q";
}

choice! {
    /// Which of the two sequences of a cross-attention a function speaks of.
    Side, "side";
    /// QUERY.
    Query = sys::RA_SIDE_QUERY, "QUERY";
    /// KEY_VALUE.
    KeyValue = sys::RA_SIDE_KEY_VALUE, "KEY_VALUE";
}

choice! {
    /// Severity of a log message.
    LogLevel, "log_level";
    /// DEBUG.
    Debug = sys::RA_LOG_LEVEL_DEBUG, "DEBUG";
    /// INFO.
    Info = sys::RA_LOG_LEVEL_INFO, "INFO";
    /// WARNING.
    Warning = sys::RA_LOG_LEVEL_WARNING, "WARNING";
}

choice! {
    /// Strides that are not a distance.
    Stride, "stride";
    /// All three: each follows from the sizes.
    Packed = sys::RA_STRIDE_PACKED, "PACKED";
    /// One slice again and again, as in a tensor that is broadcast; of inputs only.
    Repeat = sys::RA_STRIDE_REPEAT, "REPEAT";
}

choice! {
    /// Which elements of a head of q and k are turned together (Su et al. 2021, "RoFormer").
    Rotary, "rotary";
    /// NONE.
    None = sys::RA_ROTARY_NONE, "NONE";
    /// Of the first r: element i with element i + r / 2, as GPT-NeoX and Hugging Face's LLaMA.
    Halves = sys::RA_ROTARY_HALVES, "HALVES";
    /// Of the first r: element 2 i with element 2 i + 1, as in the paper and GPT-J.
    Interleaved = sys::RA_ROTARY_INTERLEAVED, "INTERLEAVED";
}

choice! {
    /// What [`Context::mha_forward`] keeps for [`Context::mha_backward`]. Gradients are the same to
    /// the last bit with each.
    Checkpoint, "checkpoint";
    /// The output of attention and its lse: q, k and v are projected again, nothing is attended
    /// again.
    Attention = sys::RA_CHECKPOINT_ATTENTION, "ATTENTION";
    /// Q, k and v too: nothing is computed again but, where there is any, rotation and
    /// normalisation.
    All = sys::RA_CHECKPOINT_ALL, "ALL";
    /// Nothing, the caller keeps x: the forward pass is made again, its communication included.
    Input = sys::RA_CHECKPOINT_INPUT, "INPUT";
}

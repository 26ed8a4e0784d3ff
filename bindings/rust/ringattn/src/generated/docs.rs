// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.

/// What the header says of a function, struct or field.
macro_rules! c_doc {
    (ra_abort_context) => {
        r#"Ends the call in progress on this context, on this rank with
[`Status::Aborted`](crate::Status::Aborted) and on all others with
[`Status::Aborted`](crate::Status::Aborted) naming this rank, and returns without waiting
for that. From then on the contexts of all ranks say
[`Status::InvalidState`](crate::Status::InvalidState) until destroyed. May be called from
any thread. On CUDA what is enqueued ends with undefined results; with an ncclUniqueId or a
borrowed `nccl_comm` the other ranks get [`Status::Timeout`](crate::Status::Timeout) when
their time-out is over. Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument)."#
    };
    (ra_all_reduce) => {
        r#"data\[i\] becomes the sum of data\[i\] of all ranks, in fp32: for what a model has beside
attention, whose gradients are summed over ranks like those of a layer. Each rank sends and
receives 2 (`world_size` - 1) / `world_size` times the bytes of data. Deterministic, and the
same bits on every rank: number i is summed along the ring, from rank floor(i / ceil(count /
`world_size`)) on.

Collective, blocking, captures and errors as [`Context::forward`](crate::Context::forward);
on errors data holds what has been summed so far."#
    };
    (ra_append) => {
        r#"Appends tokens to sequences: one to each, as in decoding, or many, as of a prompt. A
sequence takes a page for each `page_tokens` tokens begun. The context is the cache's own,
which may be broken: the tokens are there when the cache goes on in another. Local.

Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument);
[`Status::OutOfMemory`](crate::Status::OutOfMemory) where a rank has not enough free pages
for all of them: the message says which rank, how many it has and how many are needed, is
the same on all ranks, and nothing was appended to any sequence;
[`Status::InvalidState`](crate::Status::InvalidState) where the last page is lost, or the
context is in use by another thread. The context stays usable after each."#
    };
    (ra_append_args) => {
        r#"New tokens of some sequences. Every rank is given all of them, and stores those of its
pages."#
    };
    (ra_append_args::k) => {
        r#"\[`num_sequences`, `num_tokens`, `num_heads_kv`, `head_dim`\], the cache's dtype"#
    };
    (ra_append_args::lengths) => {
        r#"Host, an entry for each of the sequences, 0 .. `num_tokens`: tokens that are appended, the
first ones; `None`: all"#
    };
    (ra_append_args::positions) => {
        r#"Host, an entry for each of the sequences: in the place of which tokens they come, from there
on. It is the sequence's length, behind the others, or where pages are lost: there its first
lost token ([`KvCache::lost_tokens`](crate::KvCache::lost_tokens)), and as many as are lost
there, or all of several pages. `None`: behind the others, everywhere"#
    };
    (ra_append_args::sequences) => {
        r#"Each another sequence"#
    };
    (ra_append_args::v) => {
        r#"\[`num_sequences`, `num_tokens`, `num_heads_kv`, `head_dim_v`\], the cache's dtype"#
    };
    (ra_backward) => {
        r#"Gradients of [`Context::forward`](crate::Context::forward) with respect to this rank's q, k
and v, given the gradient of out.

Collective, blocking, overlap and errors as [`Context::forward`](crate::Context::forward).
Recomputes the scores from lse; gradients travel and accumulate in fp32 and are rounded
once. Deterministic. Rows whose lse is -infinity have gradients 0. `key_bias` has no
gradient here. Method: Dao et al. 2022, "FlashAttention", Algorithm 4, with delta =
rowsum(dout \* out)."#
    };
    (ra_backward_args::dk) => {
        r#"Shape of k, `desc.grad_dtype`; written"#
    };
    (ra_backward_args::dout) => {
        r#"Shape of out, `desc.out_dtype`"#
    };
    (ra_backward_args::dq) => {
        r#"Shape of q, `desc.grad_dtype`; written"#
    };
    (ra_backward_args::dsinks) => {
        r#"\[`num_heads_q`, `num_sinks`\] packed; written: this rank's share of the gradient, that of
its own queries. The gradient is the sum over all ranks, which the caller makes. `None` if
not wanted"#
    };
    (ra_backward_args::dv) => {
        r#"Shape of v, `desc.grad_dtype`; written"#
    };
    (ra_backward_args::k) => {
        r#"As given to [`Context::forward`](crate::Context::forward)"#
    };
    (ra_backward_args::key_bias) => {
        r#"As given to [`Context::forward`](crate::Context::forward)"#
    };
    (ra_backward_args::lse) => {
        r#"As [`Context::forward`](crate::Context::forward) wrote it"#
    };
    (ra_backward_args::out) => {
        r#"As [`Context::forward`](crate::Context::forward) wrote it"#
    };
    (ra_backward_args::q) => {
        r#"As given to [`Context::forward`](crate::Context::forward)"#
    };
    (ra_backward_args::sinks) => {
        r#"As given to [`Context::forward`](crate::Context::forward)"#
    };
    (ra_backward_args::v) => {
        r#"As given to [`Context::forward`](crate::Context::forward)"#
    };
    (ra_backward_args::workspace) => {
        r#"`backward_workspace` bytes aligned to 64, or `None`: the context keeps one of its own, as
large as its largest call needed, until it is destroyed"#
    };
    (ra_create_sequence) => {
        r#"A new sequence without tokens, which takes no page. Returns its number, >= 0 and never given
again, the same on every rank; or an error:
[`Status::InvalidArgument`](crate::Status::InvalidArgument),
[`Status::OutOfMemory`](crate::Status::OutOfMemory)."#
    };
    (ra_decode) => {
        r#"Attends the last `seqlen_q` tokens of each of desc.batch sequences to all tokens of theirs:
a new token or several, as where guesses are checked, or a chunk of a prompt. Their keys and
values were appended before.

Collective: every rank calls it with an equal desc, the same sequences and the same q, and
gets the same out, to the last bit. Of desc, `seqlen_kv` is -1: keys are those of the cache.
A query sees keys by mask, windows and their alignment, which is
[`MaskAlignment::BottomRight`](crate::MaskAlignment::BottomRight), as in
[`Context::forward`](crate::Context::forward) with the sequence's length for `seqlen_kv`;
`softmax_scale`, softcap, `alibi_slopes` and sinks are as there. `num_heads_kv`, `head_dim`,
`head_dim_v` and dtype are the cache's. Documents, `kv_lengths`, `key_bias`, dropout, mask
slices, branches, `num_chunks` but with [`Schedule::Ring`](crate::Schedule::Ring), and
shardings other than [`Sharding::Contiguous`](crate::Sharding::Contiguous), the default, are
not part of it.

With [`Schedule::PassQ`](crate::Schedule::PassQ) each rank attends all queries to the keys
that it has, and keys never move: each of the batch \* `seqlen_q` \* `num_heads_q` rows of
partial results, `head_dim_v` + 1 fp32 numbers, goes to one rank that merges those of all
ranks, in the order of ranks, and comes back to all. With n such rows, of which a rank
merges m, it sends (n - m) + (`world_size` - 1) m of them, whatever the cache holds: 2
(`world_size` - 1) / `world_size` times all of them, where they divide evenly. With
[`Schedule::Ring`](crate::Schedule::Ring) each rank attends a part of the queries to all
keys, which go around, and then gives its part of the results to the others.
[`Schedule::Auto`](crate::Schedule::Auto) takes the first where queries are fewer bytes than
keys: t / n < 2 `num_heads_kv` / `num_heads_q` with t queries and n keys, those of t
included, over all sequences (Yang et al. 2024, "Context Parallelism for Scalable
Million-Token Inference"); and where `world_size` is 1.
[`CallStatistics::schedule`](crate::CallStatistics::schedule) says which it was.

Blocking, timing and errors as [`Context::forward`](crate::Context::forward);
[`Status::InvalidArgument`](crate::Status::InvalidArgument) also where a sequence has fewer
than `seqlen_q` tokens, is not known, or the cache is another context's or of another dtype
or shape; [`Status::InvalidState`](crate::Status::InvalidState) also where a sequence has
lost tokens."#
    };
    (ra_decode_args) => {
        r#"Tensors of [`Context::decode`](crate::Context::decode), the same on every rank."#
    };
    (ra_decode_args::lse) => {
        r#"\[batch, `num_heads_q`, `seqlen_q`\] packed; written; `None` if not wanted"#
    };
    (ra_decode_args::out) => {
        r#"\[batch, `seqlen_q`, `num_heads_q`, `head_dim_v`\], `desc.out_dtype`; written"#
    };
    (ra_decode_args::q) => {
        r#"\[batch, `seqlen_q`, `num_heads_q`, `head_dim`\], desc.dtype"#
    };
    (ra_decode_args::sequences) => {
        r#"Whose tokens the queries of each batch entry are; one may come twice"#
    };
    (ra_decode_args::sinks) => {
        r#"\[`num_heads_q`, `num_sinks`\] packed; where `desc.num_sinks` > 0, else `None`. As in
[`ForwardArgs`](crate::ForwardArgs)"#
    };
    (ra_error::cuda_error) => {
        r#"cudaError_t, 0 if none"#
    };
    (ra_error::nccl_result) => {
        r#"ncclResult_t, 0 if none"#
    };
    (ra_estimate_memory) => {
        r#"The same before any context or device exists: of config only rank, `world_size`, backend,
transport, `num_threads` and engine are read. Where a context turns out to have no cuDNN, it
needs less than this. Errors: as [`Context::new`](crate::Context::new) and
[`Context::check_support`](crate::Context::check_support)."#
    };
    (ra_estimate_time) => {
        r#"Predicts how long a rank's calls take, by going through what all ranks do with a clock for
each. In each step a rank computes while its messages travel, and goes on when both are
over: where a chunk travels for longer than the ranks compute with it, a call takes as long
as its messages. Counted are the products of visible pairs, and bytes; not what ranks pack
and round, nor that small blocks are computed at lower rates, so that short calls take
longer than this says.

Of config only rank and `world_size` are read. Local; takes as long as planning for every
rank does. Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument),
[`Status::NotSupported`](crate::Status::NotSupported) (schedule),
[`Status::OutOfMemory`](crate::Status::OutOfMemory)."#
    };
    (ra_fork_sequence) => {
        r#"A new sequence that begins with all tokens of sequence: both share the pages, which stay as
long as anybody has them. Whichever first appends to a page that they share, and that is not
full, gets one of its own for it, on the same rank.

Returns the new sequence's number, or an error:
[`Status::InvalidArgument`](crate::Status::InvalidArgument) (sequence is not known, or was
freed), [`Status::OutOfMemory`](crate::Status::OutOfMemory)."#
    };
    (ra_forward) => {
        r#"Attends this rank's queries to the keys and values of all ranks.

Collective: every rank of context calls it with an equal desc, in the same order. The slice
of a tensor without elements is empty. out and lse may not overlap each other, the inputs or
the workspace ([`Tensor`](crate::Tensor) says what an overlap is). Results are bitwise equal
from run to run, for any number of threads and any timing.

CPU: returns when out and lse are complete. CUDA: enqueues, and waits for the other ranks'
threads, not for a GPU; over NCCL the first call of a shape waits until all ranks have
agreed on it, later ones leave that to the GPU, so that a
[`Status::Mismatch`](crate::Status::Mismatch) may be found after the call. What follows in
stream comes after the call, and so do other calls of this context, whatever their stream.
Nothing is allocated after the first call of a shape; the engine "cudnn" plans for shapes,
strides and whether there is an lse, and a context makes no more than 256 such plans, after
which "portable" computes what is new. The call may be captured in a CUDA graph, once it was
made like that without one; local ranks are captured together, in one graph. Then stream
orders it with other calls, and of failures only those are noticed that NCCL reports by
itself.

Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument) and
[`Status::NotSupported`](crate::Status::NotSupported), found before anything is sent: the
other ranks wait, and the call may be repeated with better arguments until their time-out,
or [`AbortHandle::abort`](crate::AbortHandle::abort) lets them go. After
[`Status::OutOfMemory`](crate::Status::OutOfMemory),
[`Status::Timeout`](crate::Status::Timeout), [`Status::PeerLost`](crate::Status::PeerLost),
[`Status::Mismatch`](crate::Status::Mismatch), [`Status::Aborted`](crate::Status::Aborted),
[`Status::CudaError`](crate::Status::CudaError),
[`Status::NcclError`](crate::Status::NcclError) and
[`Status::InternalError`](crate::Status::InternalError) the context is of no more use and
says [`Status::InvalidState`](crate::Status::InvalidState). Outputs are untouched unless the
call got as far as computing. Method: Liu et al. 2023, "Ring Attention with Blockwise
Transformers"; online softmax as in Dao et al. 2022, "FlashAttention", Algorithm 1."#
    };
    (ra_forward_args::k) => {
        r#"\[batch, n_kv, `num_heads_kv`, `head_dim`\], desc.dtype"#
    };
    (ra_forward_args::key_bias) => {
        r#"\[batch, n_kv\] packed, of this rank's keys; where `desc.has_key_bias` is 1, else `None`.
-infinity hides a key; NaN or +infinity make the rows that see it undefined"#
    };
    (ra_forward_args::lse) => {
        r#"\[batch, `num_heads_q`, n_q\] packed; written; `None` if not wanted
([`Context::backward`](crate::Context::backward) needs it)"#
    };
    (ra_forward_args::out) => {
        r#"\[batch, n_q, `num_heads_q`, `head_dim_v`\], `desc.out_dtype`; written"#
    };
    (ra_forward_args::q) => {
        r#"\[batch, n_q, `num_heads_q`, `head_dim`\], desc.dtype"#
    };
    (ra_forward_args::sinks) => {
        r#"\[`num_heads_q`, `num_sinks`\] packed, the same on every rank; where `desc.num_sinks` > 0,
else `None`. As `key_bias`, never NaN or +infinity"#
    };
    (ra_forward_args::v) => {
        r#"\[batch, n_kv, `num_heads_kv`, `head_dim_v`\], desc.dtype"#
    };
    (ra_forward_args::workspace) => {
        r#"`forward_workspace` bytes aligned to 64, or `None`: the context keeps one of its own, as
large as its largest call needed, until it is destroyed"#
    };
    (ra_free_sequence) => {
        r#"Gives back the pages of a sequence, which is no more. Errors:
[`Status::InvalidArgument`](crate::Status::InvalidArgument) (also if that was done before)."#
    };
    (ra_get_async_error) => {
        r#"`Ok` until something has broken the group, else what did, with the
[`Error::rank`](crate::Error::rank) that every rank names. Looks at what is known and asks
nobody: the group is broken by [`AbortHandle::abort`](crate::AbortHandle::abort), or by a
collective call that failed on any rank (not by one that was refused or found a wrong
result), and all ranks know at once, also between calls; where the id is an address also by
a rank whose process ends without destroying its context, or falls silent for a second. That
a rank destroyed its context, or does not come, is known only when another has waited for it
in a call; until then this says `Ok`. With an ncclUniqueId or a borrowed `nccl_comm` each
rank finds out for itself: what NCCL reports, or within its time-out
[`Status::Timeout`](crate::Status::Timeout), without a rank where more than one was waited
for. From any thread; never blocks. Errors:
[`Status::InvalidArgument`](crate::Status::InvalidArgument), and those of
[`Context::forward`](crate::Context::forward)."#
    };
    (ra_get_lost_tokens) => {
        r#"The first token of sequence from position from on that is lost, 0 <= from <= its length; its
length, if there is none. Tokens are lost up to the end of the page, or of the sequence, at
least. Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument)."#
    };
    (ra_get_sequence_length) => {
        r#"Tokens of a sequence, lost ones included. Errors:
[`Status::InvalidArgument`](crate::Status::InvalidArgument)."#
    };
    (ra_kv_cache_statistics) => {
        r#"What a cache holds now."#
    };
    (ra_merge_attention) => {
        r#"Combines attention over two disjoint sets of keys into attention over their union: lse =
log(exp(`lse_a`) + exp(`lse_b`)), out = exp(`lse_a` - lse) `out_a` + exp(`lse_b` - lse)
`out_b`. Local, host memory, on the calling thread. Errors:
[`Status::InvalidArgument`](crate::Status::InvalidArgument)."#
    };
    (ra_mha_backward) => {
        r#"Gradients of [`Context::mha_forward`](crate::Context::mha_forward) with respect to x and the
weights, given the gradient of out.

Collective, blocking, overlap and errors as
[`Context::mha_forward`](crate::Context::mha_forward). Deterministic, sums over ranks
included: these are made in an order of ranks that depends on nothing but the world size,
and are the same bits on every rank."#
    };
    (ra_mha_backward_args::activations) => {
        r#"As [`Context::mha_forward`](crate::Context::mha_forward) wrote it; with
[`Checkpoint::Input`](crate::Checkpoint::Input) `None`"#
    };
    (ra_mha_backward_args::db_k) => {
        r#"Shape of `b_k`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::db_o) => {
        r#"Shape of `b_o`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::db_q) => {
        r#"Shape of `b_q`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::db_v) => {
        r#"Shape of `b_v`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dnorm_k) => {
        r#"Shape of `norm_k`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dnorm_q) => {
        r#"Shape of `norm_q`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dout) => {
        r#"Shape of out, `desc.out_dtype`"#
    };
    (ra_mha_backward_args::dw_k) => {
        r#"Shape of `w_k`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dw_o) => {
        r#"Shape of `w_o`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dw_q) => {
        r#"Shape of `w_q`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dw_v) => {
        r#"Shape of `w_v`, fp32; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::dx) => {
        r#"Shape of x, `desc.grad_dtype`; written; `None` if not wanted"#
    };
    (ra_mha_backward_args::x) => {
        r#"As given to [`Context::mha_forward`](crate::Context::mha_forward)"#
    };
    (ra_mha_forward) => {
        r#"Multi-head attention of this rank's tokens over those of all ranks, from the tokens
themselves: projects x, attends as [`Context::forward`](crate::Context::forward) does,
projects what comes out.

Collective: every rank calls it with an equal desc and mha, and the same weights. K and V
are projected first, and travel while Q is. The keys are the tokens of x: `seqlen_kv` is
`seqlen_q`, and `key_bias` and sinks are not part of a layer. What lies between (q, k, v and
their attention) is stored in desc.dtype; products are summed in fp32. On CPUs they are
oneDNN's, those of [`DType::Float16`](crate::DType::Float16) and, where the processor has no
instructions for it, of [`DType::Bfloat16`](crate::DType::Bfloat16) of inputs that are
widened to fp32, and results are bitwise equal from run to run and for any number of
threads. On CUDA they are cuBLAS's, and results are bitwise equal from run to run for the
same GPU, `num_sms`, version of cuBLAS and alignment of the caller's memory. Either is
loaded when a layer is first asked for.

Overlap, blocking, timing, captures and errors as
[`Context::forward`](crate::Context::forward);
[`Status::NotSupported`](crate::Status::NotSupported) also where oneDNN or cuBLAS is not
found."#
    };
    (ra_mha_forward_args::b_k) => {
        r#"\[`num_heads_kv` \* `head_dim`\], desc.dtype, where there is `b_q`"#
    };
    (ra_mha_forward_args::b_o) => {
        r#"\[`d_model`\], desc.dtype, where `mha.has_out_bias` is 1, else `None`"#
    };
    (ra_mha_forward_args::b_q) => {
        r#"\[`num_heads_q` \* `head_dim`\], desc.dtype, where `mha.has_qkv_bias` is 1, else `None`"#
    };
    (ra_mha_forward_args::b_v) => {
        r#"\[`num_heads_kv` \* `head_dim_v`\], desc.dtype, where there is `b_q`"#
    };
    (ra_mha_forward_args::norm_k) => {
        r#"\[`head_dim`\], desc.dtype, where there is `norm_q`"#
    };
    (ra_mha_forward_args::norm_q) => {
        r#"\[`head_dim`\], desc.dtype, where `mha.normalize_heads` is 1, else `None`"#
    };
    (ra_mha_forward_args::out) => {
        r#"\[batch, n, `d_model`\], `desc.out_dtype`; written"#
    };
    (ra_mha_forward_args::w_k) => {
        r#"\[`d_model`, `num_heads_kv` \* `head_dim`\], desc.dtype"#
    };
    (ra_mha_forward_args::w_o) => {
        r#"\[`num_heads_q` \* `head_dim_v`, `d_model`\], desc.dtype"#
    };
    (ra_mha_forward_args::w_q) => {
        r#"\[`d_model`, `num_heads_q` \* `head_dim`\], desc.dtype"#
    };
    (ra_mha_forward_args::w_v) => {
        r#"\[`d_model`, `num_heads_kv` \* `head_dim_v`\], desc.dtype"#
    };
    (ra_mha_forward_args::x) => {
        r#"\[batch, n, `d_model`\], desc.dtype"#
    };
    (ra_move_kv_cache) => {
        r#"Makes a cache that of another context, with the ranks that are left: rank r of context is
the one that was rank former_ranks\[r\] of the context before, and brings its pages. Pages
of ranks that are not among them are lost; the sequences keep their lengths, and once
[`Context::append`](crate::Context::append) was given the lost tokens again
([`KvCache::lost_tokens`](crate::KvCache::lost_tokens)), or they are cut off or freed, go on
as before.

former_ranks is a list of the host's with as many entries as context has ranks, each another
one, the same on every rank. The former context may be broken, or gone; a rank that is a
call behind the others, as where that broke the group, makes it before: see
[`Context::append`](crate::Context::append). Errors:
[`Status::InvalidArgument`](crate::Status::InvalidArgument),
[`Status::NotSupported`](crate::Status::NotSupported) (the CPU backend has caches),
[`Status::OutOfMemory`](crate::Status::OutOfMemory); the cache is then as it was."#
    };
    (ra_run_self_test) => {
        r#"Runs num_problems small random problems, drawn from seed over every mask, sharding and
dtype, with and without dilation and what changes scores and weights, on the caller's own
context, and checks each against fp64 and its gradients against finite differences.

Collective: all ranks give the same num_problems (1 .. 1000000) and seed. Returns `Ok`, or
[`Status::InternalError`](crate::Status::InternalError) with the first problem whose error
exceeds twice that of a plain computation in fp32 stored in the same dtypes, or any error of
[`Context::forward`](crate::Context::forward)."#
    };
    (ra_tensor) => {
        r#"A tensor \[batch, seq, head, dim\] in memory that the caller owns. Strides are in elements;
dim is dense. All three [`Stride::Packed`](crate::Stride::Packed), or none of a dimension
with more than one entry: with fewer, or without elements, it does not matter.

No element of an output may be one of another tensor, but tensors may be interleaved in one
buffer, as dq, dk and dv are in \[batch, seq, 3, head, dim\]. A stride of one of them must
show it: modulo this stride, the bytes of the one lie apart from those of the other (all
strides that are not multiples of it counted in full): dq, dk and dv of that buffer pass by
their `seq_stride`. Else the call is refused as an overlap."#
    };
    (ra_truncate_sequence) => {
        r#"Leaves the first length tokens, 0 <= length <= those it has, and gives back pages of the
others. Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument)."#
    };
}
pub(crate) use c_doc;

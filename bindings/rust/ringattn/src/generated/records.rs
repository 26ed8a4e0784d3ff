// Generated from ringattn.h by ./dev bindings (Doxygen 1.9.4). Not edited by hand.

use std::ffi::c_void;
use std::mem::size_of;

use crate::error::call;
use crate::record::*;
use crate::tensor::{check_dtype, check_float32};
use crate::*;

/// What [`Context::new`] needs to know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ContextConfig {
    /// 0 <= rank < `world_size`; default 0.
    pub rank: i32,
    /// 1 .. 4096; default 1.
    pub world_size: i32,
    /// [`Backend`]; default [`Backend::Cpu`].
    pub backend: Backend,
    /// [`Transport`]; default [`Transport::Local`].
    pub transport: Transport,
    /// CUDA device ordinal, whatever device the calling threads work on, which stays theirs; must
    /// be 0 on the CPU backend.
    pub device: i32,
    /// CPU threads of this rank, the calling one included, at most 1024; no more are used than
    /// oneTBB allows the process. 0: the share of a rank in the machine.
    pub num_threads: i32,
    /// Longest wait for another rank, 1 .. 2^31 - 1; 0, the default, means 300000 (5 minutes). What
    /// the other rank does meanwhile counts, be it healthy or not: its way to the call, and in the
    /// call what it computes before its next message, which is its longest block computation (its
    /// queries against one chunk of keys), or several where chunks need not travel, as all of a
    /// part with [`Schedule::AllGather`]. So choose it with regard to the length of the shards and
    /// to shardings that give some ranks more work than others; more `num_chunks` make the blocks
    /// shorter. With [`Transport::Nccl`] also the longest that a transfer may take from when this
    /// rank's GPU is ready for it.
    pub timeout_ms: i64,
    /// [`UniqueId`], the same on every rank; may be `None` where `world_size` is 1. With
    /// [`Transport::Nccl`] one that was made for [`Transport::Zeromq`] will do, too.
    pub unique_id: Option<UniqueId>,
    /// With [`Transport::Zeromq`] an address of this machine, a number or a name, where this rank
    /// takes what others send it, all by TCP and at a port that is free. `None`: the one from which
    /// rank 0 is reached, and no TCP between ranks of one user on one machine. Must be `None` with
    /// [`Transport::Local`] and [`Transport::Nccl`].
    pub bind_address: Option<String>,
    /// Forces an engine by its name in [`Capabilities::engines`], or on CUDA "portable", or "cudnn"
    /// where cuDNN 9.18 or newer is found: all that it can compute exactly; `None`: the fastest, on
    /// CUDA for each block.
    pub engine: Option<String>,
    nccl_comm: Pointer,
    /// CUDA: no kernel that computes takes more room than so many of the device's streaming
    /// multiprocessors have, which leaves that of the others to communication; 1 .. their number.
    /// Each is then launched in turns of so many blocks, and cuDNN, which cannot be limited, is not
    /// used. 0, the default: all. What a kernel computes does not depend on it. Must be 0 on the
    /// CPU backend.
    pub num_sms: i32,
    /// [`Encryption`], the same on every rank; must be [`Encryption::On`] but with
    /// [`Transport::Zeromq`].
    pub encryption: Encryption,
    /// A file, for each rank another, that is made or emptied and then written with what this rank
    /// does and when, in the Trace Event Format (JSON) that Perfetto and chrome://tracing read:
    /// calls, and inside them plan, agree, prepare, pack, post, compute, wait, kept rows (of
    /// layers), add gradients, merge (of [`Context::decode`]), round, end; and on CPUs each
    /// message, sent or received, from when it was posted to when it was over. On CUDA times are
    /// those of enqueuing. Times of ranks of one machine can be compared. About 150 bytes for each
    /// event, written when a call ends. `None`, the default: none.
    pub trace_path: Option<String>,
}

impl ContextConfig {
    /// The library's defaults.
    pub fn new() -> Self {
        let raw = defaults(sys::ra_init_context_config);
        Self {
            rank: raw.rank,
            world_size: raw.world_size,
            backend: Backend::from_raw(raw.backend),
            transport: Transport::from_raw(raw.transport),
            device: raw.device,
            num_threads: raw.num_threads,
            timeout_ms: raw.timeout_ms,
            unique_id: None,
            bind_address: None,
            engine: None,
            nccl_comm: Pointer(raw.nccl_comm),
            num_sms: raw.num_sms,
            encryption: Encryption::from_raw(raw.encryption),
            trace_path: None,
        }
    }

    /// Sets [`rank`](#structfield.rank).
    pub fn rank(mut self, rank: i32) -> Self {
        self.rank = rank;
        self
    }

    /// Sets [`world_size`](#structfield.world_size).
    pub fn world_size(mut self, world_size: i32) -> Self {
        self.world_size = world_size;
        self
    }

    /// Sets [`backend`](#structfield.backend).
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Sets [`transport`](#structfield.transport).
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Sets [`device`](#structfield.device).
    pub fn device(mut self, device: i32) -> Self {
        self.device = device;
        self
    }

    /// Sets [`num_threads`](#structfield.num_threads).
    pub fn num_threads(mut self, num_threads: i32) -> Self {
        self.num_threads = num_threads;
        self
    }

    /// Sets [`timeout_ms`](#structfield.timeout_ms).
    pub fn timeout_ms(mut self, timeout_ms: i64) -> Self {
        self.timeout_ms = timeout_ms;
        self
    }

    /// Sets [`unique_id`](#structfield.unique_id).
    pub fn unique_id(mut self, unique_id: impl Into<UniqueId>) -> Self {
        self.unique_id = Some(unique_id.into());
        self
    }

    /// Sets [`bind_address`](#structfield.bind_address).
    pub fn bind_address(mut self, bind_address: impl Into<String>) -> Self {
        self.bind_address = Some(bind_address.into());
        self
    }

    /// Sets [`engine`](#structfield.engine).
    pub fn engine(mut self, engine: impl Into<String>) -> Self {
        self.engine = Some(engine.into());
        self
    }

    /// Sets `nccl_comm`.
    ///
    /// # Safety
    ///
    /// It is null, or the object of C that is described here, and what is said of it here holds:
    ///
    /// > ncclComm_t of this rank and device, borrowed until the context is destroyed, meanwhile not
    /// > used by anybody else; `unique_id` is then `None`, and nobody is waited for. The library
    /// > never aborts it: after [`Status::Timeout`], [`Status::PeerLost`] or [`Status::NcclError`]
    /// > the caller does, then destroys the context. `None`: the library makes one.
    pub unsafe fn nccl_comm(mut self, nccl_comm: *mut c_void) -> Self {
        self.nccl_comm = Pointer(nccl_comm);
        self
    }

    /// Sets [`num_sms`](#structfield.num_sms).
    pub fn num_sms(mut self, num_sms: i32) -> Self {
        self.num_sms = num_sms;
        self
    }

    /// Sets [`encryption`](#structfield.encryption).
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = encryption;
        self
    }

    /// Sets [`trace_path`](#structfield.trace_path).
    pub fn trace_path(mut self, trace_path: impl Into<String>) -> Self {
        self.trace_path = Some(trace_path.into());
        self
    }

    /// Calls `call` with the record as C has it, which lives as long as the call.
    pub(crate) fn with_raw<R>(
        &self,
        call: impl FnOnce(&sys::ra_context_config) -> Result<R>,
    ) -> Result<R> {
        let unique_id = c_string("unique_id", &self.unique_id)?;
        let bind_address = c_string("bind_address", &self.bind_address)?;
        let engine = c_string("engine", &self.engine)?;
        let trace_path = c_string("trace_path", &self.trace_path)?;
        let raw = sys::ra_context_config {
            struct_size: size_of::<sys::ra_context_config>(),
            rank: self.rank,
            world_size: self.world_size,
            backend: self.backend as i32,
            transport: self.transport as i32,
            device: self.device,
            num_threads: self.num_threads,
            timeout_ms: self.timeout_ms,
            unique_id: characters(&unique_id),
            bind_address: characters(&bind_address),
            engine: characters(&engine),
            nccl_comm: self.nccl_comm.0,
            num_sms: self.num_sms,
            encryption: self.encryption as i32,
            trace_path: characters(&trace_path),
        };
        call(&raw)
    }
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// What a context is, with everything that its config left to the library.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ContextInfo {
    /// As [`ContextConfig::rank`].
    pub rank: i32,
    /// As [`ContextConfig::world_size`].
    pub world_size: i32,
    /// [`Backend`].
    pub backend: Backend,
    /// [`Transport`].
    pub transport: Transport,
    /// CUDA device ordinal; 0 on the CPU backend.
    pub device: i32,
    /// CPU threads that calls of this rank may use, the calling one included.
    pub num_threads: i32,
    /// Longest wait for another rank.
    pub timeout_ms: i64,
    /// Its name, as in [`Capabilities::engines`]. Types and sizes that the engine has no
    /// instructions for are computed with those of the engines behind it in that list. On CUDA
    /// "cudnn" if that may run, with "portable" behind it.
    pub engine: String,
}

impl ContextInfo {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_context_info, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_context_info);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            rank: raw.rank,
            world_size: raw.world_size,
            backend: Backend::from_raw(raw.backend),
            transport: Transport::from_raw(raw.transport),
            device: raw.device,
            num_threads: raw.num_threads,
            timeout_ms: raw.timeout_ms,
            engine: text(&raw.engine),
        })
    }
}

/// What this build can do on this machine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Capabilities {
    /// That of the library, in a number: major \* 10000 + minor \* 100 + patch.
    pub version: i32,
    /// Whether [`Backend::Cuda`] can be used here.
    pub has_cuda: bool,
    /// Whether [`Transport::Zeromq`] can be used here.
    pub has_zeromq: bool,
    /// Whether [`Transport::Nccl`] can be used here.
    pub has_nccl: bool,
    /// Logical processors that the process may use.
    pub hardware_threads: i32,
    /// CUDA devices.
    pub num_devices: i32,
    /// Largest `head_dim` and `head_dim_v`.
    pub max_head_dim: i64,
    /// Engine names that [`ContextConfig::engine`] takes here on CPUs, fastest first,
    /// comma-separated.
    pub engines: String,
}

impl Capabilities {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_capabilities, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_capabilities);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            version: raw.version,
            has_cuda: raw.has_cuda != 0,
            has_zeromq: raw.has_zeromq != 0,
            has_nccl: raw.has_nccl != 0,
            hardware_threads: raw.hardware_threads,
            num_devices: raw.num_devices,
            max_head_dim: raw.max_head_dim,
            engines: text(&raw.engines),
        })
    }
}

/// One attention problem, equal on every rank.
///
/// Query i of one batch entry sees key j of the same entry iff all of these hold:
///
/// ```text
/// mask           Mask::Full: always. Mask::Causal: j <= i + shift
/// window         window_left  < 0 or j >= i + shift - window_left;  window_right < 0 or j <= i + shift + window_right
/// documents      i and j lie in documents of the same number
/// kv_lengths     j < kv_lengths[batch entry]
/// mask_slices    there are none, or one of them has (i, j) (MaskSliceKind)
/// ```
///
/// where shift is 0 (top-left) or the number of keys minus the number of queries
/// (bottom-right). With documents, i, j and shift count inside the document, but `kv_lengths`
/// and `mask_slices` count from the start of the sequence; neither moves the diagonal.
///
/// score(i, j) = softcap(`softmax_scale` \* dot(q_i, k_j)) - `alibi_slopes`\[head\] \* |i +
/// shift - j| + `key_bias`\[batch entry, j\], with softcap(s) = c \* tanh(s / c) where c =
/// desc.softcap > 0 (Gemma 2, 2024); the second term as in Press et al. 2022, "ALiBi"; what the
/// description does not ask for is left out. The sinks of a query head are logits that join its
/// softmax without a value (Xiao et al. 2024): lse_i = log(sum_j exp(score) + sum_n
/// exp(sinks\[head, n\])), natural logarithm; out_i = sum_j exp(score - lse_i) v_j. A row that
/// sees no key has out = 0 and gradients 0; its lse is that of the sinks alone, -infinity
/// without any.
///
/// Dropout of probability p makes weights 0 by chance and the others larger: out_i = sum_j
/// kept_ij / (1 - p) exp(score - lse_i) v_j, where lse_i is as without. Which are kept
/// ([`AttentionDesc::dropout_mask`]) depends on `dropout_seed`, `dropout_offset`, the batch
/// entry, the query head and the positions of query and key in the whole sequence, by Philox
/// 4x32-10 (Salmon et al. 2011): it is the same for every world size, sharding, schedule,
/// number of chunks and backend, and the backward pass finds it again.
///
/// Dilated attention (Ding et al. 2023, "LongNet") has one or more branches. Branch n cuts the
/// positions of a document's keys into segments of g = min(`segment_lengths`\[n\], keys of the
/// document), of which the last may be shorter; query i stands at position i + shift, and
/// before the first key or behind the last one in the first or the last segment. With r =
/// dilations\[n\], each query head keeps those positions of a segment whose place in it, mod r,
/// is the head's phase (`dilation_phase`). In branch n, i sees j iff all that is said above
/// holds, both are of one segment, and the head keeps both. With o_n, l_n the output and lse of
/// branch n alone, out_i = sum_n exp(l_n) o_n / sum_n exp(l_n), and lse_i = log(sum_n
/// exp(l_n)).
///
/// So a key that a row sees in several branches counts as often; sinks join the sum once, and
/// dropout keeps or drops a pair for all branches alike. A row that a branch does not keep has
/// nothing from it, and one that no branch keeps sees no key: its out is 0. A branch of
/// dilation 1 keeps all. Where heads share K and V the phase is the query head's, so that they
/// may use different rows. Where g is no multiple of r and there are several segments, places
/// still count from the start of each; torchscale, which counts on through the segments, places
/// rows elsewhere there.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AttentionDesc {
    /// Entries, >= 1; default 1.
    pub batch: i64,
    /// Queries of the whole sequence, >= 0; no default: -1, which is refused.
    pub seqlen_q: i64,
    /// Keys of the whole sequence, >= 0; default -1: `seqlen_q`.
    pub seqlen_kv: i64,
    /// \>= 1, a multiple of `num_heads_kv`; default 1.
    pub num_heads_q: i64,
    /// \>= 1; default 0: `num_heads_q`. Query head h uses head h / (`num_heads_q` /
    /// `num_heads_kv`).
    pub num_heads_kv: i64,
    /// 1 .. 256, of q and k; no default.
    pub head_dim: i64,
    /// 1 .. 256, of v and out; default 0: `head_dim`.
    pub head_dim_v: i64,
    /// [`DType`] of q, k, v; default [`DType::Float32`].
    pub dtype: DType,
    /// [`DType`] of out and dout; default [`DType::Same`].
    pub out_dtype: DType,
    /// [`DType`] of dq, dk, dv; default [`DType::Same`].
    pub grad_dtype: DType,
    /// [`Sharding`], of both sequences; default [`Sharding::Contiguous`].
    pub sharding: Sharding,
    /// Tokens of a stripe, >= 1; read for [`Sharding::Striped`] only; default 1.
    pub stripe: i64,
    /// [`Mask`]; default [`Mask::Full`].
    pub mask: Mask,
    /// [`MaskAlignment`]; default [`MaskAlignment::BottomRight`].
    pub mask_alignment: MaskAlignment,
    /// Keys visible before the diagonal, >= -1; default -1: all.
    pub window_left: i64,
    /// Keys visible after the diagonal, >= -1; default -1: all.
    pub window_right: i64,
    /// Finite; default 0: 1 / sqrt(`head_dim`).
    pub softmax_scale: f32,
    /// \>= 0 and finite; default 0: none.
    pub softcap: f32,
    /// Host, one entry more than there are documents: 0, ascending, `seqlen_q`. Document d is the
    /// tokens offsets\[d\] .. offsets\[d + 1\] - 1 (the cu_seqlens convention); may be empty.
    /// `num_documents`, which follows from it: packed documents, 0 .. 2^31; default 0: the sequence
    /// is not packed.
    pub document_offsets_q: Option<Vec<i64>>,
    /// Host, one entry more than there are documents: the same for keys; `None`:
    /// `document_offsets_q`, and then `seqlen_kv` = `seqlen_q`.
    pub document_offsets_kv: Option<Vec<i64>>,
    /// Host, batch entries of 0 .. `seqlen_kv`: keys before right padding; `None`: none.
    pub kv_lengths: Option<Vec<i64>>,
    /// [`Schedule`]; default [`Schedule::Auto`].
    pub schedule: Schedule,
    /// Chunks that a K/V shard travels in, 1 .. 65536: more chunks, less memory; default 0: the
    /// library chooses.
    pub num_chunks: i64,
    /// With [`Schedule::AllGather`], most bytes that a rank holds of K, V and `key_bias` of all
    /// ranks, and of their gradients: the problem is computed in parts, some batch entries or some
    /// heads of K and V of one entry, that need no more than this; a single head whose shards are
    /// longer is cut into chunks, unless `num_chunks` is set. 0 .. 2^58; default 0: 2^28. It holds
    /// more where one head is more than 1,024 times as much: into more chunks than these the
    /// library cuts no shard unasked.
    pub gather_bytes: i64,
    /// Host, `num_heads_q` entries, finite: what a key's distance from the diagonal takes off its
    /// score, per position, for each query head; `None`: none.
    pub alibi_slopes: Option<Vec<f32>>,
    /// Sinks of each query head, 0 .. 1024, in [`ForwardArgs::sinks`]; default 0: none.
    pub num_sinks: i64,
    /// Of a weight to be dropped, 0 <= p < 1; default 0: none.
    pub dropout_probability: f32,
    /// Whether scores get [`ForwardArgs::key_bias`]; default 0.
    pub has_key_bias: bool,
    /// 64 bits, any; read where `dropout_probability` > 0 only; default 0.
    pub dropout_seed: i64,
    /// 64 bits, any: another one for each call that is to drop other weights, but in the backward
    /// pass that of its forward pass; read as `dropout_seed`; default 0.
    pub dropout_offset: i64,
    /// Host, 5 entries for each of the mask slices: q_begin, q_end, kv_begin, kv_end,
    /// [`MaskSliceKind`] of each, in positions of the whole sequence, 0 <= begin <= end <= seqlen;
    /// `None` where there are none. In any order; may be empty; no two rectangles have a pair in
    /// common, whatever their kinds. Slices that share queries or keys are computed one after the
    /// other ([`MemoryRequirements`]), but for [`MaskSliceKind::Full`] side by side.
    /// `num_mask_slices`, which follows from it: 0 .. 2^20; default 0: pairs are seen without
    /// regard to slices.
    pub mask_slices: Option<Vec<i64>>,
    /// [`DilationPhase`]; default [`DilationPhase::BlocksOfHeads`]. As all that follows it changes
    /// nothing where there are no branches.
    pub dilation_phase: DilationPhase,
    /// Host, an entry for each of the branches: positions of a segment of each branch, >= 1 and at
    /// least `seqlen_kv` / 2^20; `None` where there are none. `num_branches`, which follows from
    /// it: of dilated attention, 0 .. 16; default 0: not dilated.
    pub segment_lengths: Option<Vec<i64>>,
    /// Host, an entry for each of the branches: of how many positions each branch keeps one, 1 ..
    /// 2^48; `None` where there are none. A head whose phase is beyond a segment keeps nothing of
    /// it.
    pub dilations: Option<Vec<i64>>,
    /// [`DilationPadding`]; default [`DilationPadding::Masked`].
    pub dilation_padding: DilationPadding,
    /// [`DilationGradient`]; default [`DilationGradient::Exact`].
    pub dilation_gradient: DilationGradient,
}

impl AttentionDesc {
    /// The library's defaults.
    pub fn new() -> Self {
        let raw = defaults(sys::ra_init_attention_desc);
        Self {
            batch: raw.batch,
            seqlen_q: raw.seqlen_q,
            seqlen_kv: raw.seqlen_kv,
            num_heads_q: raw.num_heads_q,
            num_heads_kv: raw.num_heads_kv,
            head_dim: raw.head_dim,
            head_dim_v: raw.head_dim_v,
            dtype: DType::from_raw(raw.dtype),
            out_dtype: DType::from_raw(raw.out_dtype),
            grad_dtype: DType::from_raw(raw.grad_dtype),
            sharding: Sharding::from_raw(raw.sharding),
            stripe: raw.stripe,
            mask: Mask::from_raw(raw.mask),
            mask_alignment: MaskAlignment::from_raw(raw.mask_alignment),
            window_left: raw.window_left,
            window_right: raw.window_right,
            softmax_scale: raw.softmax_scale,
            softcap: raw.softcap,
            document_offsets_q: None,
            document_offsets_kv: None,
            kv_lengths: None,
            schedule: Schedule::from_raw(raw.schedule),
            num_chunks: raw.num_chunks,
            gather_bytes: raw.gather_bytes,
            alibi_slopes: None,
            num_sinks: raw.num_sinks,
            dropout_probability: raw.dropout_probability,
            has_key_bias: raw.has_key_bias != 0,
            dropout_seed: raw.dropout_seed,
            dropout_offset: raw.dropout_offset,
            mask_slices: None,
            dilation_phase: DilationPhase::from_raw(raw.dilation_phase),
            segment_lengths: None,
            dilations: None,
            dilation_padding: DilationPadding::from_raw(raw.dilation_padding),
            dilation_gradient: DilationGradient::from_raw(raw.dilation_gradient),
        }
    }

    /// Sets [`batch`](#structfield.batch).
    pub fn batch(mut self, batch: i64) -> Self {
        self.batch = batch;
        self
    }

    /// Sets [`seqlen_q`](#structfield.seqlen_q).
    pub fn seqlen_q(mut self, seqlen_q: i64) -> Self {
        self.seqlen_q = seqlen_q;
        self
    }

    /// Sets [`seqlen_kv`](#structfield.seqlen_kv).
    pub fn seqlen_kv(mut self, seqlen_kv: i64) -> Self {
        self.seqlen_kv = seqlen_kv;
        self
    }

    /// Sets [`num_heads_q`](#structfield.num_heads_q).
    pub fn num_heads_q(mut self, num_heads_q: i64) -> Self {
        self.num_heads_q = num_heads_q;
        self
    }

    /// Sets [`num_heads_kv`](#structfield.num_heads_kv).
    pub fn num_heads_kv(mut self, num_heads_kv: i64) -> Self {
        self.num_heads_kv = num_heads_kv;
        self
    }

    /// Sets [`head_dim`](#structfield.head_dim).
    pub fn head_dim(mut self, head_dim: i64) -> Self {
        self.head_dim = head_dim;
        self
    }

    /// Sets [`head_dim_v`](#structfield.head_dim_v).
    pub fn head_dim_v(mut self, head_dim_v: i64) -> Self {
        self.head_dim_v = head_dim_v;
        self
    }

    /// Sets [`dtype`](#structfield.dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets [`out_dtype`](#structfield.out_dtype).
    pub fn out_dtype(mut self, out_dtype: DType) -> Self {
        self.out_dtype = out_dtype;
        self
    }

    /// Sets [`grad_dtype`](#structfield.grad_dtype).
    pub fn grad_dtype(mut self, grad_dtype: DType) -> Self {
        self.grad_dtype = grad_dtype;
        self
    }

    /// Sets [`sharding`](#structfield.sharding).
    pub fn sharding(mut self, sharding: Sharding) -> Self {
        self.sharding = sharding;
        self
    }

    /// Sets [`stripe`](#structfield.stripe).
    pub fn stripe(mut self, stripe: i64) -> Self {
        self.stripe = stripe;
        self
    }

    /// Sets [`mask`](#structfield.mask).
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// Sets [`mask_alignment`](#structfield.mask_alignment).
    pub fn mask_alignment(mut self, mask_alignment: MaskAlignment) -> Self {
        self.mask_alignment = mask_alignment;
        self
    }

    /// Sets [`window_left`](#structfield.window_left).
    pub fn window_left(mut self, window_left: i64) -> Self {
        self.window_left = window_left;
        self
    }

    /// Sets [`window_right`](#structfield.window_right).
    pub fn window_right(mut self, window_right: i64) -> Self {
        self.window_right = window_right;
        self
    }

    /// Sets [`softmax_scale`](#structfield.softmax_scale).
    pub fn softmax_scale(mut self, softmax_scale: f32) -> Self {
        self.softmax_scale = softmax_scale;
        self
    }

    /// Sets [`softcap`](#structfield.softcap).
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = softcap;
        self
    }

    /// Sets [`document_offsets_q`](#structfield.document_offsets_q).
    pub fn document_offsets_q(mut self, document_offsets_q: impl Into<Vec<i64>>) -> Self {
        self.document_offsets_q = Some(document_offsets_q.into());
        self
    }

    /// Sets [`document_offsets_kv`](#structfield.document_offsets_kv).
    pub fn document_offsets_kv(mut self, document_offsets_kv: impl Into<Vec<i64>>) -> Self {
        self.document_offsets_kv = Some(document_offsets_kv.into());
        self
    }

    /// Sets [`kv_lengths`](#structfield.kv_lengths).
    pub fn kv_lengths(mut self, kv_lengths: impl Into<Vec<i64>>) -> Self {
        self.kv_lengths = Some(kv_lengths.into());
        self
    }

    /// Sets [`schedule`](#structfield.schedule).
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets [`num_chunks`](#structfield.num_chunks).
    pub fn num_chunks(mut self, num_chunks: i64) -> Self {
        self.num_chunks = num_chunks;
        self
    }

    /// Sets [`gather_bytes`](#structfield.gather_bytes).
    pub fn gather_bytes(mut self, gather_bytes: i64) -> Self {
        self.gather_bytes = gather_bytes;
        self
    }

    /// Sets [`alibi_slopes`](#structfield.alibi_slopes).
    pub fn alibi_slopes(mut self, alibi_slopes: impl Into<Vec<f32>>) -> Self {
        self.alibi_slopes = Some(alibi_slopes.into());
        self
    }

    /// Sets [`num_sinks`](#structfield.num_sinks).
    pub fn num_sinks(mut self, num_sinks: i64) -> Self {
        self.num_sinks = num_sinks;
        self
    }

    /// Sets [`dropout_probability`](#structfield.dropout_probability).
    pub fn dropout_probability(mut self, dropout_probability: f32) -> Self {
        self.dropout_probability = dropout_probability;
        self
    }

    /// Sets [`has_key_bias`](#structfield.has_key_bias).
    pub fn has_key_bias(mut self, has_key_bias: bool) -> Self {
        self.has_key_bias = has_key_bias;
        self
    }

    /// Sets [`dropout_seed`](#structfield.dropout_seed).
    pub fn dropout_seed(mut self, dropout_seed: i64) -> Self {
        self.dropout_seed = dropout_seed;
        self
    }

    /// Sets [`dropout_offset`](#structfield.dropout_offset).
    pub fn dropout_offset(mut self, dropout_offset: i64) -> Self {
        self.dropout_offset = dropout_offset;
        self
    }

    /// Sets [`mask_slices`](#structfield.mask_slices).
    pub fn mask_slices(mut self, mask_slices: impl Into<Vec<i64>>) -> Self {
        self.mask_slices = Some(mask_slices.into());
        self
    }

    /// Sets [`dilation_phase`](#structfield.dilation_phase).
    pub fn dilation_phase(mut self, dilation_phase: DilationPhase) -> Self {
        self.dilation_phase = dilation_phase;
        self
    }

    /// Sets [`segment_lengths`](#structfield.segment_lengths).
    pub fn segment_lengths(mut self, segment_lengths: impl Into<Vec<i64>>) -> Self {
        self.segment_lengths = Some(segment_lengths.into());
        self
    }

    /// Sets [`dilations`](#structfield.dilations).
    pub fn dilations(mut self, dilations: impl Into<Vec<i64>>) -> Self {
        self.dilations = Some(dilations.into());
        self
    }

    /// Sets [`dilation_padding`](#structfield.dilation_padding).
    pub fn dilation_padding(mut self, dilation_padding: DilationPadding) -> Self {
        self.dilation_padding = dilation_padding;
        self
    }

    /// Sets [`dilation_gradient`](#structfield.dilation_gradient).
    pub fn dilation_gradient(mut self, dilation_gradient: DilationGradient) -> Self {
        self.dilation_gradient = dilation_gradient;
        self
    }

    /// Calls `call` with the record as C has it, which lives as long as the call.
    pub(crate) fn with_raw<R>(
        &self,
        call: impl FnOnce(&sys::ra_attention_desc) -> Result<R>,
    ) -> Result<R> {
        let num_documents = count_entries(&self.document_offsets_q).map_or(0, |count| count - 1);
        check_entries(
            "document_offsets_kv",
            &self.document_offsets_kv,
            "num_documents + 1",
            num_documents + 1,
        )?;
        check_entries("kv_lengths", &self.kv_lengths, "batch", self.batch)?;
        check_entries(
            "alibi_slopes",
            &self.alibi_slopes,
            "num_heads_q",
            self.num_heads_q,
        )?;
        let num_mask_slices = count_entries(&self.mask_slices).map_or(0, |count| count / 5);
        check_entries(
            "mask_slices",
            &self.mask_slices,
            "5 * num_mask_slices",
            5 * num_mask_slices,
        )?;
        let num_branches = count_entries(&self.segment_lengths).unwrap_or(0);
        check_entries("dilations", &self.dilations, "num_branches", num_branches)?;
        let raw = sys::ra_attention_desc {
            struct_size: size_of::<sys::ra_attention_desc>(),
            batch: self.batch,
            seqlen_q: self.seqlen_q,
            seqlen_kv: self.seqlen_kv,
            num_heads_q: self.num_heads_q,
            num_heads_kv: self.num_heads_kv,
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v,
            dtype: self.dtype as i32,
            out_dtype: self.out_dtype as i32,
            grad_dtype: self.grad_dtype as i32,
            sharding: self.sharding as i32,
            stripe: self.stripe,
            mask: self.mask as i32,
            mask_alignment: self.mask_alignment as i32,
            window_left: self.window_left,
            window_right: self.window_right,
            softmax_scale: self.softmax_scale,
            softcap: self.softcap,
            num_documents,
            document_offsets_q: entries(&self.document_offsets_q),
            document_offsets_kv: entries(&self.document_offsets_kv),
            kv_lengths: entries(&self.kv_lengths),
            schedule: self.schedule as i32,
            reserved: 0,
            num_chunks: self.num_chunks,
            gather_bytes: self.gather_bytes,
            alibi_slopes: entries(&self.alibi_slopes),
            num_sinks: self.num_sinks,
            dropout_probability: self.dropout_probability,
            has_key_bias: i32::from(self.has_key_bias),
            dropout_seed: self.dropout_seed,
            dropout_offset: self.dropout_offset,
            num_mask_slices,
            mask_slices: entries(&self.mask_slices),
            num_branches: num_branches as i32,
            dilation_phase: self.dilation_phase as i32,
            segment_lengths: entries(&self.segment_lengths),
            dilations: entries(&self.dilations),
            dilation_padding: self.dilation_padding as i32,
            dilation_gradient: self.dilation_gradient as i32,
        };
        call(&raw)
    }
}

impl Default for AttentionDesc {
    fn default() -> Self {
        Self::new()
    }
}

/// What one rank needs for one problem, in bytes, and what its calls will do. A rank's memory
/// during a forward call is `forward_tensors` + `forward_workspace`, and the same with
/// backward_. Not counted are the context itself, its threads, its transport, which over ZeroMQ
/// has up to 4 MiB each way of messages under way with each rank that it exchanges chunks with,
/// and short lists of what is to be computed: about 500 bytes for each document, the same for
/// each mask slice and, for the heads of each phase, each segment of a branch, where all that a
/// rank has side by side, or that stripes divide alike, are as one; with 100 for each of their
/// ranks, and 100 for each chunk of each rank.
///
/// Mask slices and dilated attention are computed in layers, one after the other: a layer has
/// the slices that share no rows, of the heads that keep the same positions in a branch. Steps,
/// hops, bytes, pairs and flops are those of all layers together, a workspace is that of the
/// layer that needs most, and what all of them share.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemoryRequirements {
    /// Q, k, v, out and lse, packed; and where the description has them, `key_bias` and sinks.
    pub forward_tensors: usize,
    /// Q, k, v, out, lse, dout, dq, dk and dv, packed; and where the description has them,
    /// `key_bias`, sinks and dsinks.
    pub backward_tensors: usize,
    /// Tiles of each thread and, unless `world_size` is 1, two chunks in flight, max and sum of
    /// each row, and the output in fp32 where `out_dtype` is another; where cuDNN may run, what it
    /// needs and, unless `world_size` is 1, one block's output in fp32. [`Schedule::AllGather`]:
    /// the same for one part, but its own chunk and those of the r ranks whose keys it sees, 1 + r.
    /// A chunk has its keys' `key_bias` with it; sinks take a number for each query head. With mask
    /// slices or branches: tiles and chunks of one layer, and unless that keeps all rows in all
    /// heads, its rows of q, packed, and their output, max and sum in fp32; and shared by all
    /// layers, max and sum of each row, and the output in fp32 where `out_dtype` is another.
    pub forward_workspace: usize,
    /// Tiles of each thread, delta of each row, dq in fp32 where `grad_dtype` is another, two
    /// chunks in flight and four of gradients in fp32; if `world_size` is 1, one and one.
    /// [`Schedule::AllGather`]: the same for one part, but 1 + r chunks, and 1 + r + s of
    /// gradients, where s other ranks see its keys. With mask slices or branches: tiles, chunks and
    /// their gradients of one layer, and unless that keeps all rows in all heads, its rows of q and
    /// dout, packed, and their lse, delta and dq in fp32; and shared by all layers, delta, and dq,
    /// dk and dv in fp32 where `grad_dtype` is another. [`DilationGradient::ConstantWeights`]: or
    /// that of a branch's forward pass, if it is more, and in any case a branch's output, max and
    /// sum in fp32.
    pub backward_workspace: usize,
    /// Lse alone, part of the tensors.
    pub lse: usize,
    /// Sizeof the context, without what it points to.
    pub context: usize,
    /// Chunks that a K/V shard is cut into: `num_chunks` or the library's choice, but no more than
    /// the longest shard has tokens, and 1 if `world_size` is 1.
    pub forward_chunks: i64,
    /// The same for [`Context::backward`], also if `world_size` is 1.
    pub backward_chunks: i64,
    /// Block computations of this rank that see at least one key.
    pub forward_steps: i64,
    /// The same for [`Context::backward`].
    pub backward_steps: i64,
    /// Messages that this rank sends.
    pub forward_hops: i64,
    /// The same for [`Context::backward`], gradients included.
    pub backward_hops: i64,
    /// Bytes of those messages.
    pub forward_hop_bytes: i64,
    /// The same for [`Context::backward`].
    pub backward_hop_bytes: i64,
    /// (query, key) pairs that this rank's rows see, summed over batch and query heads.
    pub visible_pairs: f64,
    /// 2 (`head_dim` + `head_dim_v`) per visible pair.
    pub forward_flops: f64,
    /// 2 (3 `head_dim` + 2 `head_dim_v`) per visible pair.
    pub backward_flops: f64,
    /// [`Schedule`] of [`Context::forward`]: desc.schedule, or what [`Schedule::Auto`] stands for;
    /// RING if `world_size` is 1.
    pub forward_schedule: Schedule,
    /// [`Schedule`] of [`Context::backward`], in the same way.
    pub backward_schedule: Schedule,
    /// Parts of the problem that are computed one after the other; 1 with [`Schedule::Ring`], but
    /// of each layer.
    pub forward_parts: i64,
    /// The same for [`Context::backward`].
    pub backward_parts: i64,
}

impl MemoryRequirements {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_memory_requirements, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_memory_requirements);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            forward_tensors: raw.forward_tensors,
            backward_tensors: raw.backward_tensors,
            forward_workspace: raw.forward_workspace,
            backward_workspace: raw.backward_workspace,
            lse: raw.lse,
            context: raw.context,
            forward_chunks: raw.forward_chunks,
            backward_chunks: raw.backward_chunks,
            forward_steps: raw.forward_steps,
            backward_steps: raw.backward_steps,
            forward_hops: raw.forward_hops,
            backward_hops: raw.backward_hops,
            forward_hop_bytes: raw.forward_hop_bytes,
            backward_hop_bytes: raw.backward_hop_bytes,
            visible_pairs: raw.visible_pairs,
            forward_flops: raw.forward_flops,
            backward_flops: raw.backward_flops,
            forward_schedule: Schedule::from_raw(raw.forward_schedule),
            backward_schedule: Schedule::from_raw(raw.backward_schedule),
            forward_parts: raw.forward_parts,
            backward_parts: raw.backward_parts,
        })
    }
}

/// How fast ranks compute and reach each other, all of them alike, for [`estimate_time`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MachineRates {
    /// Per second of one rank, > 0 and finite: [`MemoryRequirements::forward_flops`] of some call
    /// over its [`CallStatistics::compute_seconds`], or over `total_seconds` where links were no
    /// limit, which has in it what ranks pack and encrypt; no default.
    pub forward_flops: f64,
    /// The same for [`Context::backward`]; no default.
    pub backward_flops: f64,
    /// Bytes per second that a rank can send and, at the same time, receive, > 0 and finite;
    /// default 0: no limit.
    pub link_bytes: f64,
    /// Latency of a message, >= 0 and finite; default 0.
    pub link_seconds: f64,
}

impl MachineRates {
    /// The library's defaults.
    pub fn new() -> Self {
        let raw = defaults(sys::ra_init_machine_rates);
        Self {
            forward_flops: raw.forward_flops,
            backward_flops: raw.backward_flops,
            link_bytes: raw.link_bytes,
            link_seconds: raw.link_seconds,
        }
    }

    /// Sets [`forward_flops`](#structfield.forward_flops).
    pub fn forward_flops(mut self, forward_flops: f64) -> Self {
        self.forward_flops = forward_flops;
        self
    }

    /// Sets [`backward_flops`](#structfield.backward_flops).
    pub fn backward_flops(mut self, backward_flops: f64) -> Self {
        self.backward_flops = backward_flops;
        self
    }

    /// Sets [`link_bytes`](#structfield.link_bytes).
    pub fn link_bytes(mut self, link_bytes: f64) -> Self {
        self.link_bytes = link_bytes;
        self
    }

    /// Sets [`link_seconds`](#structfield.link_seconds).
    pub fn link_seconds(mut self, link_seconds: f64) -> Self {
        self.link_seconds = link_seconds;
        self
    }

    /// Calls `call` with the record as C has it, which lives as long as the call.
    pub(crate) fn with_raw<R>(
        &self,
        call: impl FnOnce(&sys::ra_machine_rates) -> Result<R>,
    ) -> Result<R> {
        let raw = sys::ra_machine_rates {
            struct_size: size_of::<sys::ra_machine_rates>(),
            forward_flops: self.forward_flops,
            backward_flops: self.backward_flops,
            link_bytes: self.link_bytes,
            link_seconds: self.link_seconds,
        };
        call(&raw)
    }
}

impl Default for MachineRates {
    fn default() -> Self {
        Self::new()
    }
}

/// How long a rank's calls take; comparable with [`CallStatistics`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TimeEstimate {
    /// Of [`Context::forward`], from when all ranks have made the call until this one is done.
    pub forward_seconds: f64,
    /// Of it, in block computations; the rest is waiting.
    pub forward_compute_seconds: f64,
    /// The same for [`Context::backward`].
    pub backward_seconds: f64,
    /// The same for [`Context::backward`].
    pub backward_compute_seconds: f64,
}

impl TimeEstimate {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_time_estimate, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_time_estimate);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            forward_seconds: raw.forward_seconds,
            forward_compute_seconds: raw.forward_compute_seconds,
            backward_seconds: raw.backward_seconds,
            backward_compute_seconds: raw.backward_compute_seconds,
        })
    }
}

/// What the last call of [`Context::forward`], [`Context::backward`], [`Context::mha_forward`],
/// [`Context::mha_backward`], [`Context::all_reduce`] or [`Context::decode`] on a context did;
/// comparable field by field with [`MemoryRequirements`]. On CUDA times are those of enqueuing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CallStatistics {
    /// Block computations that were carried out.
    pub steps: i64,
    /// Messages that this rank sent.
    pub hops: i64,
    /// Bytes of those messages.
    pub hop_bytes: i64,
    /// Wall time of the call.
    pub total_seconds: f64,
    /// Of it, in block computations, and the communication that is hidden among them.
    pub compute_seconds: f64,
    /// Of it, waiting for other ranks: until all make the call, and for communication that was not
    /// hidden.
    pub wait_seconds: f64,
    /// Of it, in what a layer of multi-head attention does beside attention.
    pub projection_seconds: f64,
    /// [`Schedule`] of [`Context::decode`]: [`Schedule::PassQ`] or [`Schedule::Ring`];
    /// [`Schedule::Auto`] after other calls.
    pub schedule: Schedule,
}

impl CallStatistics {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_call_statistics, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_call_statistics);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            steps: raw.steps,
            hops: raw.hops,
            hop_bytes: raw.hop_bytes,
            total_seconds: raw.total_seconds,
            compute_seconds: raw.compute_seconds,
            wait_seconds: raw.wait_seconds,
            projection_seconds: raw.projection_seconds,
            schedule: Schedule::from_raw(raw.schedule),
        })
    }
}

/// What a layer of multi-head attention has around attention, equal on every rank.
///
/// ```text
/// q = heads(x w_q + b_q)    k = heads(x w_k + b_k)    v = x w_v + b_v    out = attention(q, k, v) w_o + b_o
/// ```
///
/// where each head of q and k is first normalised, if `normalize_heads` is 1: y = norm \* x /
/// sqrt(mean(x^2) + `norm_epsilon`), and then turned by its token's position p in the whole
/// sequence, unless rotary is NONE: elements a and b of pair i become a cos t - b sin t and a
/// sin t + b cos t with t = p \* `rotary_base`^(-2 i / r). Attention is that of a
/// [`AttentionDesc`], whose `num_heads_q`, `num_heads_kv`, `head_dim` and `head_dim_v` are
/// those of the weights.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MhaDesc {
    /// Elements of a token of x and out, 1 .. 2^20; no default.
    pub d_model: i64,
    /// [`Rotary`]; default [`Rotary::None`]. What follows of it changes nothing then.
    pub rotary: Rotary,
    /// Finite and > 1; default 10000.
    pub rotary_base: f32,
    /// Of a head's elements that are turned, 0 < f <= 1: r = 2 floor(f \* `head_dim` / 2), at least
    /// 2; default 1.
    pub rotary_fraction: f32,
    /// Whether there are `b_q`, `b_k` and `b_v`; default 0.
    pub has_qkv_bias: bool,
    /// Whether there is `b_o`; default 0.
    pub has_out_bias: bool,
    /// Whether there are `norm_q` and `norm_k` (RMSNorm: Zhang and Sennrich 2019); default 0.
    pub normalize_heads: bool,
    /// \>= 0 and finite; default 1e-6.
    pub norm_epsilon: f32,
    /// [`Checkpoint`]; default [`Checkpoint::Attention`].
    pub checkpoint: Checkpoint,
}

impl MhaDesc {
    /// The library's defaults.
    pub fn new() -> Self {
        let raw = defaults(sys::ra_init_mha_desc);
        Self {
            d_model: raw.d_model,
            rotary: Rotary::from_raw(raw.rotary),
            rotary_base: raw.rotary_base,
            rotary_fraction: raw.rotary_fraction,
            has_qkv_bias: raw.has_qkv_bias != 0,
            has_out_bias: raw.has_out_bias != 0,
            normalize_heads: raw.normalize_heads != 0,
            norm_epsilon: raw.norm_epsilon,
            checkpoint: Checkpoint::from_raw(raw.checkpoint),
        }
    }

    /// Sets [`d_model`](#structfield.d_model).
    pub fn d_model(mut self, d_model: i64) -> Self {
        self.d_model = d_model;
        self
    }

    /// Sets [`rotary`](#structfield.rotary).
    pub fn rotary(mut self, rotary: Rotary) -> Self {
        self.rotary = rotary;
        self
    }

    /// Sets [`rotary_base`](#structfield.rotary_base).
    pub fn rotary_base(mut self, rotary_base: f32) -> Self {
        self.rotary_base = rotary_base;
        self
    }

    /// Sets [`rotary_fraction`](#structfield.rotary_fraction).
    pub fn rotary_fraction(mut self, rotary_fraction: f32) -> Self {
        self.rotary_fraction = rotary_fraction;
        self
    }

    /// Sets [`has_qkv_bias`](#structfield.has_qkv_bias).
    pub fn has_qkv_bias(mut self, has_qkv_bias: bool) -> Self {
        self.has_qkv_bias = has_qkv_bias;
        self
    }

    /// Sets [`has_out_bias`](#structfield.has_out_bias).
    pub fn has_out_bias(mut self, has_out_bias: bool) -> Self {
        self.has_out_bias = has_out_bias;
        self
    }

    /// Sets [`normalize_heads`](#structfield.normalize_heads).
    pub fn normalize_heads(mut self, normalize_heads: bool) -> Self {
        self.normalize_heads = normalize_heads;
        self
    }

    /// Sets [`norm_epsilon`](#structfield.norm_epsilon).
    pub fn norm_epsilon(mut self, norm_epsilon: f32) -> Self {
        self.norm_epsilon = norm_epsilon;
        self
    }

    /// Sets [`checkpoint`](#structfield.checkpoint).
    pub fn checkpoint(mut self, checkpoint: Checkpoint) -> Self {
        self.checkpoint = checkpoint;
        self
    }

    /// Calls `call` with the record as C has it, which lives as long as the call.
    pub(crate) fn with_raw<R>(
        &self,
        call: impl FnOnce(&sys::ra_mha_desc) -> Result<R>,
    ) -> Result<R> {
        let raw = sys::ra_mha_desc {
            struct_size: size_of::<sys::ra_mha_desc>(),
            d_model: self.d_model,
            rotary: self.rotary as i32,
            rotary_base: self.rotary_base,
            rotary_fraction: self.rotary_fraction,
            has_qkv_bias: i32::from(self.has_qkv_bias),
            has_out_bias: i32::from(self.has_out_bias),
            normalize_heads: i32::from(self.normalize_heads),
            norm_epsilon: self.norm_epsilon,
            checkpoint: self.checkpoint as i32,
        };
        call(&raw)
    }
}

impl Default for MhaDesc {
    fn default() -> Self {
        Self::new()
    }
}

/// What one rank needs for one layer, in bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MhaRequirements {
    /// Kept from [`Context::mha_forward`] to [`Context::mha_backward`], beside x; 0 with
    /// [`Checkpoint::Input`].
    pub activations: usize,
    /// Q, k and v, the output of attention and its lse, unless they are kept; room for each
    /// thread's blocks of products, on CUDA about 80 MiB for those and for cuBLAS; and
    /// [`MemoryRequirements::forward_workspace`] of attention.
    pub forward_workspace: usize,
    /// Gradients of q, k, v and the output of attention; what is computed again; a part of the
    /// largest gradient of a weight, where gradients are summed over ranks; the same room for
    /// products; and the larger of the workspaces of attention that are needed.
    pub backward_workspace: usize,
    /// Of products of matrices and of attention, of this rank.
    pub forward_flops: f64,
    /// The same for [`Context::mha_backward`], what is computed again included.
    pub backward_flops: f64,
}

impl MhaRequirements {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_mha_requirements, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_mha_requirements);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            activations: raw.activations,
            forward_workspace: raw.forward_workspace,
            backward_workspace: raw.backward_workspace,
            forward_flops: raw.forward_flops,
            backward_flops: raw.backward_flops,
        })
    }
}

/// What a cache holds; the same on every rank.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KvCacheDesc {
    /// Tokens of a page, 16 .. 256; default 64.
    pub page_tokens: i64,
    /// Pages of each rank, 1 .. 2^24; no default.
    pub num_pages: i64,
    /// Of K and V, >= 1; no default.
    pub num_heads_kv: i64,
    /// Of K, 1 .. 256; no default.
    pub head_dim: i64,
    /// Of V, 1 .. 256; default 0: `head_dim`.
    pub head_dim_v: i64,
    /// [`DType`] of K and V; default [`DType::Float32`].
    pub dtype: DType,
}

impl KvCacheDesc {
    /// The library's defaults.
    pub fn new() -> Self {
        let raw = defaults(sys::ra_init_kv_cache_desc);
        Self {
            page_tokens: raw.page_tokens,
            num_pages: raw.num_pages,
            num_heads_kv: raw.num_heads_kv,
            head_dim: raw.head_dim,
            head_dim_v: raw.head_dim_v,
            dtype: DType::from_raw(raw.dtype),
        }
    }

    /// Sets [`page_tokens`](#structfield.page_tokens).
    pub fn page_tokens(mut self, page_tokens: i64) -> Self {
        self.page_tokens = page_tokens;
        self
    }

    /// Sets [`num_pages`](#structfield.num_pages).
    pub fn num_pages(mut self, num_pages: i64) -> Self {
        self.num_pages = num_pages;
        self
    }

    /// Sets [`num_heads_kv`](#structfield.num_heads_kv).
    pub fn num_heads_kv(mut self, num_heads_kv: i64) -> Self {
        self.num_heads_kv = num_heads_kv;
        self
    }

    /// Sets [`head_dim`](#structfield.head_dim).
    pub fn head_dim(mut self, head_dim: i64) -> Self {
        self.head_dim = head_dim;
        self
    }

    /// Sets [`head_dim_v`](#structfield.head_dim_v).
    pub fn head_dim_v(mut self, head_dim_v: i64) -> Self {
        self.head_dim_v = head_dim_v;
        self
    }

    /// Sets [`dtype`](#structfield.dtype).
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Calls `call` with the record as C has it, which lives as long as the call.
    pub(crate) fn with_raw<R>(
        &self,
        call: impl FnOnce(&sys::ra_kv_cache_desc) -> Result<R>,
    ) -> Result<R> {
        let raw = sys::ra_kv_cache_desc {
            struct_size: size_of::<sys::ra_kv_cache_desc>(),
            page_tokens: self.page_tokens,
            num_pages: self.num_pages,
            num_heads_kv: self.num_heads_kv,
            head_dim: self.head_dim,
            head_dim_v: self.head_dim_v,
            dtype: self.dtype as i32,
            reserved: 0,
        };
        call(&raw)
    }
}

impl Default for KvCacheDesc {
    fn default() -> Self {
        Self::new()
    }
}

/// What a cache holds now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KvCacheStatistics {
    /// That were made and not freed.
    pub num_sequences: i64,
    /// Of all of them, shared ones counted for each, lost ones included.
    pub num_tokens: i64,
    /// Of this rank's, shared ones counted once.
    pub used_pages: i64,
    /// Of this rank's.
    pub free_pages: i64,
    /// Of the rank that has the fewest free ones.
    pub least_free_pages: i64,
    /// Of all sequences, that were on ranks which are gone, counted for each sequence.
    pub lost_pages: i64,
    /// Bytes of this rank's pages.
    pub memory: usize,
}

impl KvCacheStatistics {
    /// What `fill`, a function of the library, fills the record with.
    pub(crate) fn filled(
        fill: impl FnOnce(*mut sys::ra_kv_cache_statistics, *mut sys::ra_error) -> sys::ra_status,
    ) -> Result<Self> {
        let mut raw = defaults(sys::ra_init_kv_cache_statistics);
        call(|error| fill(&mut raw, error))?;
        Ok(Self {
            num_sequences: raw.num_sequences,
            num_tokens: raw.num_tokens,
            used_pages: raw.used_pages,
            free_pages: raw.free_pages,
            least_free_pages: raw.least_free_pages,
            lost_pages: raw.lost_pages,
            memory: raw.memory,
        })
    }
}

impl ForwardArgs<'_> {
    /// Refuses tensors of other dtypes than `desc` has.
    pub(crate) fn check_dtypes(&self, desc: &AttentionDesc) -> Result<()> {
        check_dtype("q", self.q.dtype, "dtype", desc.dtype)?;
        check_dtype("k", self.k.dtype, "dtype", desc.dtype)?;
        check_dtype("v", self.v.dtype, "dtype", desc.dtype)?;
        check_dtype(
            "out",
            self.out.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        Ok(())
    }
}

impl BackwardArgs<'_> {
    /// Refuses tensors of other dtypes than `desc` has.
    pub(crate) fn check_dtypes(&self, desc: &AttentionDesc) -> Result<()> {
        check_dtype(
            "dout",
            self.dout.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        check_dtype("q", self.q.dtype, "dtype", desc.dtype)?;
        check_dtype("k", self.k.dtype, "dtype", desc.dtype)?;
        check_dtype("v", self.v.dtype, "dtype", desc.dtype)?;
        check_dtype(
            "out",
            self.out.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        check_dtype(
            "dq",
            self.dq.dtype,
            "grad_dtype",
            desc.grad_dtype.or(desc.dtype),
        )?;
        check_dtype(
            "dk",
            self.dk.dtype,
            "grad_dtype",
            desc.grad_dtype.or(desc.dtype),
        )?;
        check_dtype(
            "dv",
            self.dv.dtype,
            "grad_dtype",
            desc.grad_dtype.or(desc.dtype),
        )?;
        Ok(())
    }
}

impl MhaForwardArgs<'_> {
    /// Refuses tensors of other dtypes than `desc` has.
    pub(crate) fn check_dtypes(&self, desc: &AttentionDesc) -> Result<()> {
        check_dtype("x", self.x.dtype, "dtype", desc.dtype)?;
        check_dtype("w_q", self.weights.w_q.dtype, "dtype", desc.dtype)?;
        check_dtype("w_k", self.weights.w_k.dtype, "dtype", desc.dtype)?;
        check_dtype("w_v", self.weights.w_v.dtype, "dtype", desc.dtype)?;
        check_dtype("w_o", self.weights.w_o.dtype, "dtype", desc.dtype)?;
        if let Some(b_q) = &self.weights.b_q {
            check_dtype("b_q", b_q.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_k) = &self.weights.b_k {
            check_dtype("b_k", b_k.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_v) = &self.weights.b_v {
            check_dtype("b_v", b_v.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_o) = &self.weights.b_o {
            check_dtype("b_o", b_o.dtype, "dtype", desc.dtype)?;
        }
        if let Some(norm_q) = &self.weights.norm_q {
            check_dtype("norm_q", norm_q.dtype, "dtype", desc.dtype)?;
        }
        if let Some(norm_k) = &self.weights.norm_k {
            check_dtype("norm_k", norm_k.dtype, "dtype", desc.dtype)?;
        }
        check_dtype(
            "out",
            self.out.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        Ok(())
    }
}

impl MhaBackwardArgs<'_> {
    /// Refuses tensors of other dtypes than `desc` has.
    pub(crate) fn check_dtypes(&self, desc: &AttentionDesc) -> Result<()> {
        check_dtype(
            "dout",
            self.dout.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        check_dtype("x", self.x.dtype, "dtype", desc.dtype)?;
        check_dtype("w_q", self.weights.w_q.dtype, "dtype", desc.dtype)?;
        check_dtype("w_k", self.weights.w_k.dtype, "dtype", desc.dtype)?;
        check_dtype("w_v", self.weights.w_v.dtype, "dtype", desc.dtype)?;
        check_dtype("w_o", self.weights.w_o.dtype, "dtype", desc.dtype)?;
        if let Some(b_q) = &self.weights.b_q {
            check_dtype("b_q", b_q.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_k) = &self.weights.b_k {
            check_dtype("b_k", b_k.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_v) = &self.weights.b_v {
            check_dtype("b_v", b_v.dtype, "dtype", desc.dtype)?;
        }
        if let Some(b_o) = &self.weights.b_o {
            check_dtype("b_o", b_o.dtype, "dtype", desc.dtype)?;
        }
        if let Some(norm_q) = &self.weights.norm_q {
            check_dtype("norm_q", norm_q.dtype, "dtype", desc.dtype)?;
        }
        if let Some(norm_k) = &self.weights.norm_k {
            check_dtype("norm_k", norm_k.dtype, "dtype", desc.dtype)?;
        }
        if let Some(dx) = &self.dx {
            check_dtype("dx", dx.dtype, "grad_dtype", desc.grad_dtype.or(desc.dtype))?;
        }
        if let Some(dw_q) = &self.gradients.dw_q {
            check_float32("dw_q", dw_q.dtype)?;
        }
        if let Some(dw_k) = &self.gradients.dw_k {
            check_float32("dw_k", dw_k.dtype)?;
        }
        if let Some(dw_v) = &self.gradients.dw_v {
            check_float32("dw_v", dw_v.dtype)?;
        }
        if let Some(dw_o) = &self.gradients.dw_o {
            check_float32("dw_o", dw_o.dtype)?;
        }
        if let Some(db_q) = &self.gradients.db_q {
            check_float32("db_q", db_q.dtype)?;
        }
        if let Some(db_k) = &self.gradients.db_k {
            check_float32("db_k", db_k.dtype)?;
        }
        if let Some(db_v) = &self.gradients.db_v {
            check_float32("db_v", db_v.dtype)?;
        }
        if let Some(db_o) = &self.gradients.db_o {
            check_float32("db_o", db_o.dtype)?;
        }
        if let Some(dnorm_q) = &self.gradients.dnorm_q {
            check_float32("dnorm_q", dnorm_q.dtype)?;
        }
        if let Some(dnorm_k) = &self.gradients.dnorm_k {
            check_float32("dnorm_k", dnorm_k.dtype)?;
        }
        Ok(())
    }
}

impl AppendArgs<'_> {
    /// Refuses tensors of other dtypes than `cache` has.
    pub(crate) fn check_dtypes(&self, cache: &KvCacheDesc) -> Result<()> {
        check_dtype("k", self.k.dtype, "cache.dtype", cache.dtype)?;
        check_dtype("v", self.v.dtype, "cache.dtype", cache.dtype)?;
        Ok(())
    }
}

impl DecodeArgs<'_> {
    /// Refuses tensors of other dtypes than `desc` has.
    pub(crate) fn check_dtypes(&self, desc: &AttentionDesc) -> Result<()> {
        check_dtype("q", self.q.dtype, "dtype", desc.dtype)?;
        check_dtype(
            "out",
            self.out.dtype,
            "out_dtype",
            desc.out_dtype.or(desc.dtype),
        )?;
        Ok(())
    }
}

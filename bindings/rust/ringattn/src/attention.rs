//! Attention over tensors in host memory.

use std::mem::size_of;

use crate::docs::c_doc;
use crate::error::call;
use crate::tensor::{check_dtype, lse_size};
use crate::{sys, AttentionDesc, Context, DType, Result, Tensor, TensorMut};

/// One rank's tensors of [`Context::forward`]. n_q, n_kv: this rank's shard lengths
/// ([`AttentionDesc::shard_length`]).
#[derive(Debug)]
pub struct ForwardArgs<'a> {
    #[doc = c_doc!(ra_forward_args::q)]
    pub q: Tensor<'a>,
    #[doc = c_doc!(ra_forward_args::k)]
    pub k: Tensor<'a>,
    #[doc = c_doc!(ra_forward_args::v)]
    pub v: Tensor<'a>,
    #[doc = c_doc!(ra_forward_args::out)]
    pub out: TensorMut<'a>,
    #[doc = c_doc!(ra_forward_args::lse)]
    pub lse: Option<&'a mut [f32]>,
    #[doc = c_doc!(ra_forward_args::key_bias)]
    pub key_bias: Option<&'a [f32]>,
    #[doc = c_doc!(ra_forward_args::sinks)]
    pub sinks: Option<&'a [f32]>,
}

impl<'a> ForwardArgs<'a> {
    /// Without lse, key_bias and sinks.
    pub fn new(
        q: impl Into<Tensor<'a>>,
        k: impl Into<Tensor<'a>>,
        v: impl Into<Tensor<'a>>,
        out: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            out: out.into(),
            lse: None,
            key_bias: None,
            sinks: None,
        }
    }

    /// With lse.
    pub fn lse(self, lse: &'a mut [f32]) -> Self {
        Self {
            lse: Some(lse),
            ..self
        }
    }

    /// With key_bias.
    pub fn key_bias(self, key_bias: &'a [f32]) -> Self {
        Self {
            key_bias: Some(key_bias),
            ..self
        }
    }

    /// With sinks.
    pub fn sinks(self, sinks: &'a [f32]) -> Self {
        Self {
            sinks: Some(sinks),
            ..self
        }
    }
}

/// One rank's tensors of [`Context::backward`]; shapes as in [`ForwardArgs`].
#[derive(Debug)]
pub struct BackwardArgs<'a> {
    #[doc = c_doc!(ra_backward_args::dout)]
    pub dout: Tensor<'a>,
    #[doc = c_doc!(ra_backward_args::q)]
    pub q: Tensor<'a>,
    #[doc = c_doc!(ra_backward_args::k)]
    pub k: Tensor<'a>,
    #[doc = c_doc!(ra_backward_args::v)]
    pub v: Tensor<'a>,
    #[doc = c_doc!(ra_backward_args::out)]
    pub out: Tensor<'a>,
    #[doc = c_doc!(ra_backward_args::lse)]
    pub lse: &'a [f32],
    #[doc = c_doc!(ra_backward_args::dq)]
    pub dq: TensorMut<'a>,
    #[doc = c_doc!(ra_backward_args::dk)]
    pub dk: TensorMut<'a>,
    #[doc = c_doc!(ra_backward_args::dv)]
    pub dv: TensorMut<'a>,
    /// Whether to add to what dq, dk, dv and dsinks hold, instead of overwriting it.
    pub accumulate: bool,
    #[doc = c_doc!(ra_backward_args::key_bias)]
    pub key_bias: Option<&'a [f32]>,
    #[doc = c_doc!(ra_backward_args::sinks)]
    pub sinks: Option<&'a [f32]>,
    #[doc = c_doc!(ra_backward_args::dsinks)]
    pub dsinks: Option<&'a mut [f32]>,
}

impl DType {
    /// A dtype of outputs, which may be that of the inputs.
    pub(crate) fn or(self, same: DType) -> DType {
        if self == DType::Same {
            same
        } else {
            self
        }
    }
}

/// An optional array as C takes it: its address and bytes.
pub(crate) fn floats(array: Option<&[f32]>) -> (*const f32, usize) {
    array.map_or((std::ptr::null(), 0), |array| {
        (array.as_ptr(), lse_size(array))
    })
}

pub(crate) fn floats_mut(array: Option<&mut [f32]>) -> (*mut f32, usize) {
    array.map_or((std::ptr::null_mut(), 0), |array| {
        (array.as_mut_ptr(), lse_size(array))
    })
}

impl Context {
    #[doc = c_doc!(ra_forward)]
    ///
    /// ```
    /// use ringattn::{AttentionDesc, Context, ContextConfig, ForwardArgs};
    ///
    /// let context = Context::new(&ContextConfig::new())?;
    /// let desc = AttentionDesc::new().seqlen_q(2).seqlen_kv(3).head_dim(1).window_left(1);
    /// let (q, k, v) = ([0.0f32; 2], [0.0f32; 3], [1.0f32, 2.0, 4.0]);
    /// let (mut out, mut lse) = ([0.0f32; 2], [0.0; 2]);
    /// context.forward(&desc, ForwardArgs::new(&q, &k, &v, &mut out).lse(&mut lse))?;
    /// assert!((out[1] - 3.0).abs() < 1e-6 && (lse[1] - 2.0f32.ln()).abs() < 1e-6);
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn forward(&self, desc: &AttentionDesc, args: ForwardArgs<'_>) -> Result<()> {
        self.check_host_memory()?;
        args.check_dtypes(desc)?;
        let (lse, lse_size) = floats_mut(args.lse);
        let (key_bias, key_bias_size) = floats(args.key_bias);
        let (sinks, sinks_size) = floats(args.sinks);
        let args = sys::ra_forward_args {
            struct_size: size_of::<sys::ra_forward_args>(),
            q: args.q.raw,
            k: args.k.raw,
            v: args.v.raw,
            out: args.out.raw,
            lse,
            lse_size,
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            stream: std::ptr::null_mut(),
            key_bias,
            key_bias_size,
            sinks,
            sinks_size,
        };
        // SAFETY: the tensors are slices of the described dtypes, whose sizes the library checks,
        // and outputs are borrowed by nobody else. The context is used by one thread, as it is not
        // Sync.
        desc.with_raw(|desc| call(|e| unsafe { sys::ra_forward(self.raw(), desc, &args, e) }))?;
        Ok(())
    }

    #[doc = c_doc!(ra_backward)]
    pub fn backward(&self, desc: &AttentionDesc, args: BackwardArgs<'_>) -> Result<()> {
        self.check_host_memory()?;
        args.check_dtypes(desc)?;
        let (key_bias, key_bias_size) = floats(args.key_bias);
        let (sinks, sinks_size) = floats(args.sinks);
        let (dsinks, dsinks_size) = floats_mut(args.dsinks);
        let args = sys::ra_backward_args {
            struct_size: size_of::<sys::ra_backward_args>(),
            dout: args.dout.raw,
            q: args.q.raw,
            k: args.k.raw,
            v: args.v.raw,
            out: args.out.raw,
            lse: args.lse.as_ptr(),
            lse_size: lse_size(args.lse),
            dq: args.dq.raw,
            dk: args.dk.raw,
            dv: args.dv.raw,
            accumulate: i32::from(args.accumulate),
            reserved: 0,
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            stream: std::ptr::null_mut(),
            key_bias,
            key_bias_size,
            sinks,
            sinks_size,
            dsinks,
            dsinks_size,
        };
        // SAFETY: as in `forward`.
        desc.with_raw(|desc| call(|e| unsafe { sys::ra_backward(self.raw(), desc, &args, e) }))?;
        Ok(())
    }
}

/// Attention over disjoint sets of keys, a and b, and where that over their union goes.
#[derive(Debug)]
pub struct MergeArgs<'a> {
    /// Entries, at least 1.
    pub batch: i64,
    /// Rows, at least 0.
    pub seqlen: i64,
    /// Heads, at least 1.
    pub num_heads: i64,
    /// Elements of a head, at least 1.
    pub head_dim_v: i64,
    /// out `[batch, seqlen, num_heads, head_dim_v]` and lse `[batch, num_heads, seqlen]` of a;
    /// `None`: what `out` and `lse` hold.
    pub a: Option<(Tensor<'a>, &'a [f32])>,
    /// The same of b.
    pub b: (Tensor<'a>, &'a [f32]),
    /// That of both, in the same shape and of the same dtype; written.
    pub out: TensorMut<'a>,
    /// In the same shape; written.
    pub lse: &'a mut [f32],
}

#[doc = c_doc!(ra_merge_attention)]
///
/// ```
/// use ringattn::{merge_attention, MergeArgs};
///
/// let (mut out, mut lse) = ([1.0f32], [0.0]); // of one key whose score is 0
/// let of_two: (&[f32], &[f32]) = (&[4.0], &[2.0f32.ln()]); // of two keys whose scores are 0
/// merge_attention(MergeArgs {
///     batch: 1,
///     seqlen: 1,
///     num_heads: 1,
///     head_dim_v: 1,
///     a: None,
///     b: (of_two.0.into(), of_two.1),
///     out: (&mut out).into(),
///     lse: &mut lse,
/// })?;
/// assert!((out[0] - 3.0).abs() < 1e-6 && (lse[0] - 3.0f32.ln()).abs() < 1e-6);
/// # Ok::<(), ringattn::Error>(())
/// ```
pub fn merge_attention(args: MergeArgs<'_>) -> Result<()> {
    let lse = args.lse.as_mut_ptr();
    let (out_a, lse_a, size_a) = match &args.a {
        Some((out, lse)) => {
            check_dtype("out_a", out.dtype, "out", args.out.dtype)?;
            (out.raw, lse.as_ptr(), lse_size(lse))
        }
        None => (args.out.raw, lse.cast_const(), lse_size(args.lse)),
    };
    check_dtype("out_b", args.b.0.dtype, "out", args.out.dtype)?;
    let raw = sys::ra_merge_args {
        struct_size: size_of::<sys::ra_merge_args>(),
        batch: args.batch,
        seqlen: args.seqlen,
        num_heads: args.num_heads,
        head_dim_v: args.head_dim_v,
        dtype: args.out.dtype as i32,
        reserved: 0,
        out_a,
        out_b: args.b.0.raw,
        out: args.out.raw,
        lse_a,
        lse_b: args.b.1.as_ptr(),
        lse,
        lse_size: size_a.min(lse_size(args.b.1)).min(lse_size(args.lse)),
    };
    // SAFETY: the tensors are slices of one dtype, whose sizes the library checks, and out and lse
    // are borrowed by nobody else.
    call(|error| unsafe { sys::ra_merge_attention(&raw, error) })?;
    Ok(())
}

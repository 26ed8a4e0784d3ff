//! Layers of multi-head attention over tensors in host memory, and sums over ranks.

use std::ffi::c_void;
use std::fmt;
use std::mem::size_of;

use crate::docs::c_doc;
use crate::error::call;
use crate::tensor::lse_size;
use crate::{
    sys, AttentionDesc, Context, Error, MhaDesc, MhaRequirements, Result, Status, Tensor, TensorMut,
};

/// The weights of a layer, whole on every rank. A matrix `[rows, columns]` is a tensor of one entry
/// and one head, with a token for each row: unless it is packed, its stride from token to token,
/// which is then at least `columns`, leads from one row to the next, as in a matrix that has w_q,
/// w_k and w_v side by side.
#[derive(Clone, Copy, Debug)]
pub struct MhaWeights<'a> {
    #[doc = c_doc!(ra_mha_forward_args::w_q)]
    pub w_q: Tensor<'a>,
    #[doc = c_doc!(ra_mha_forward_args::w_k)]
    pub w_k: Tensor<'a>,
    #[doc = c_doc!(ra_mha_forward_args::w_v)]
    pub w_v: Tensor<'a>,
    #[doc = c_doc!(ra_mha_forward_args::w_o)]
    pub w_o: Tensor<'a>,
    #[doc = c_doc!(ra_mha_forward_args::b_q)]
    pub b_q: Option<Tensor<'a>>,
    #[doc = c_doc!(ra_mha_forward_args::b_k)]
    pub b_k: Option<Tensor<'a>>,
    #[doc = c_doc!(ra_mha_forward_args::b_v)]
    pub b_v: Option<Tensor<'a>>,
    #[doc = c_doc!(ra_mha_forward_args::b_o)]
    pub b_o: Option<Tensor<'a>>,
    #[doc = c_doc!(ra_mha_forward_args::norm_q)]
    pub norm_q: Option<Tensor<'a>>,
    #[doc = c_doc!(ra_mha_forward_args::norm_k)]
    pub norm_k: Option<Tensor<'a>>,
}

impl<'a> MhaWeights<'a> {
    /// Without biases and norms.
    pub fn new(
        w_q: impl Into<Tensor<'a>>,
        w_k: impl Into<Tensor<'a>>,
        w_v: impl Into<Tensor<'a>>,
        w_o: impl Into<Tensor<'a>>,
    ) -> Self {
        Self {
            w_q: w_q.into(),
            w_k: w_k.into(),
            w_v: w_v.into(),
            w_o: w_o.into(),
            b_q: None,
            b_k: None,
            b_v: None,
            b_o: None,
            norm_q: None,
            norm_k: None,
        }
    }

    /// With b_q, b_k and b_v, as [`MhaDesc::has_qkv_bias`] wants them.
    pub fn qkv_bias(
        self,
        b_q: impl Into<Tensor<'a>>,
        b_k: impl Into<Tensor<'a>>,
        b_v: impl Into<Tensor<'a>>,
    ) -> Self {
        Self {
            b_q: Some(b_q.into()),
            b_k: Some(b_k.into()),
            b_v: Some(b_v.into()),
            ..self
        }
    }

    /// With b_o, as [`MhaDesc::has_out_bias`] wants it.
    pub fn out_bias(self, b_o: impl Into<Tensor<'a>>) -> Self {
        Self {
            b_o: Some(b_o.into()),
            ..self
        }
    }

    /// With norm_q and norm_k, as [`MhaDesc::normalize_heads`] wants them.
    pub fn norms(self, norm_q: impl Into<Tensor<'a>>, norm_k: impl Into<Tensor<'a>>) -> Self {
        Self {
            norm_q: Some(norm_q.into()),
            norm_k: Some(norm_k.into()),
            ..self
        }
    }
}

/// The gradients of [`MhaWeights`] that are wanted: `f32`, whatever the dtype of the weights is. By
/// default none.
#[derive(Debug, Default)]
pub struct MhaGradients<'a> {
    #[doc = c_doc!(ra_mha_backward_args::dw_q)]
    pub dw_q: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::dw_k)]
    pub dw_k: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::dw_v)]
    pub dw_v: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::dw_o)]
    pub dw_o: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::db_q)]
    pub db_q: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::db_k)]
    pub db_k: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::db_v)]
    pub db_v: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::db_o)]
    pub db_o: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::dnorm_q)]
    pub dnorm_q: Option<TensorMut<'a>>,
    #[doc = c_doc!(ra_mha_backward_args::dnorm_k)]
    pub dnorm_k: Option<TensorMut<'a>>,
}

impl<'a> MhaGradients<'a> {
    /// Of the four matrices.
    pub fn new(
        dw_q: impl Into<TensorMut<'a>>,
        dw_k: impl Into<TensorMut<'a>>,
        dw_v: impl Into<TensorMut<'a>>,
        dw_o: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            dw_q: Some(dw_q.into()),
            dw_k: Some(dw_k.into()),
            dw_v: Some(dw_v.into()),
            dw_o: Some(dw_o.into()),
            ..Self::default()
        }
    }

    /// Also of b_q, b_k and b_v.
    pub fn qkv_bias(
        self,
        db_q: impl Into<TensorMut<'a>>,
        db_k: impl Into<TensorMut<'a>>,
        db_v: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            db_q: Some(db_q.into()),
            db_k: Some(db_k.into()),
            db_v: Some(db_v.into()),
            ..self
        }
    }

    /// Also of b_o.
    pub fn out_bias(self, db_o: impl Into<TensorMut<'a>>) -> Self {
        Self {
            db_o: Some(db_o.into()),
            ..self
        }
    }

    /// Also of norm_q and norm_k.
    pub fn norms(
        self,
        dnorm_q: impl Into<TensorMut<'a>>,
        dnorm_k: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            dnorm_q: Some(dnorm_q.into()),
            dnorm_k: Some(dnorm_k.into()),
            ..self
        }
    }
}

/// What [`Context::mha_forward`] keeps for [`Context::mha_backward`]. One serves any number of such
/// pairs of calls, one pair after the other; what runs forward again before it ran backward needs one
/// of its own. With [`Checkpoint::Input`](crate::Checkpoint::Input) it has no memory, and may be given
/// to calls all the same.
pub struct Activations {
    lines: Vec<Line>,
    size: usize,
}

/// Aligned as C wants the block.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line(#[allow(dead_code)] [u8; 64]); // C reads and writes it

impl Activations {
    /// For calls of `context` with `desc` and `mha`, as [`Context::mha_requirements`] says. Errors: as
    /// that, and [`Status::OutOfMemory`].
    pub fn new(context: &Context, desc: &AttentionDesc, mha: &MhaDesc) -> Result<Self> {
        let size = context.mha_requirements(desc, mha)?.activations;
        let count = size.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|error| {
            let message = format!("activations takes {size} bytes; no memory for them: {error}");
            Error::new(Status::OutOfMemory, message)
        })?;
        lines.resize(count, Line([0; size_of::<Line>()])); // C must not read what was never written
        Ok(Self { lines, size })
    }

    /// Bytes that are kept.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl fmt::Debug for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Activations({} bytes)", self.size)
    }
}

/// As C takes them: address and bytes, null where there are none.
fn written(activations: Option<&mut Activations>) -> (*mut c_void, usize) {
    match activations {
        Some(a) if a.size > 0 => (a.lines.as_mut_ptr().cast(), a.size),
        _ => (std::ptr::null_mut(), 0),
    }
}

fn read(activations: Option<&Activations>) -> (*const c_void, usize) {
    match activations {
        Some(a) if a.size > 0 => (a.lines.as_ptr().cast(), a.size),
        _ => (std::ptr::null(), 0),
    }
}

fn input(tensor: Option<Tensor<'_>>) -> sys::ra_tensor {
    tensor.map_or_else(sys::ra_tensor::default, |tensor| tensor.raw)
}

fn output(tensor: Option<TensorMut<'_>>) -> sys::ra_tensor {
    tensor.map_or_else(sys::ra_tensor::default, |tensor| tensor.raw)
}

/// One rank's tensors of [`Context::mha_forward`]. n: this rank's shard length
/// ([`AttentionDesc::shard_length`]).
#[derive(Debug)]
pub struct MhaForwardArgs<'a> {
    #[doc = c_doc!(ra_mha_forward_args::x)]
    pub x: Tensor<'a>,
    /// The same on every rank.
    pub weights: MhaWeights<'a>,
    #[doc = c_doc!(ra_mha_forward_args::out)]
    pub out: TensorMut<'a>,
    /// Written for [`Context::mha_backward`]; `None` only with
    /// [`Checkpoint::Input`](crate::Checkpoint::Input), which needs none, also where that will not be
    /// called.
    pub activations: Option<&'a mut Activations>,
}

impl<'a> MhaForwardArgs<'a> {
    /// Without activations.
    pub fn new(
        x: impl Into<Tensor<'a>>,
        weights: MhaWeights<'a>,
        out: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            x: x.into(),
            weights,
            out: out.into(),
            activations: None,
        }
    }

    /// With activations.
    pub fn activations(self, activations: &'a mut Activations) -> Self {
        Self {
            activations: Some(activations),
            ..self
        }
    }
}

/// One rank's tensors of [`Context::mha_backward`]; shapes as in [`MhaForwardArgs`].
#[derive(Debug)]
pub struct MhaBackwardArgs<'a> {
    #[doc = c_doc!(ra_mha_backward_args::dout)]
    pub dout: Tensor<'a>,
    #[doc = c_doc!(ra_mha_backward_args::x)]
    pub x: Tensor<'a>,
    /// As given to [`Context::mha_forward`].
    pub weights: MhaWeights<'a>,
    #[doc = c_doc!(ra_mha_backward_args::activations)]
    pub activations: Option<&'a Activations>,
    #[doc = c_doc!(ra_mha_backward_args::dx)]
    pub dx: Option<TensorMut<'a>>,
    /// Those that are wanted; written.
    pub gradients: MhaGradients<'a>,
    /// Whether to add to what the gradients of weights hold, as over micro-batches, instead of
    /// overwriting it. dx is overwritten in any case.
    pub accumulate: bool,
    /// Whether in the end each gradient of a weight is summed over all ranks, what it held before with
    /// accumulate included, as after the last micro-batch. Else they are this rank's share, and their
    /// sum over all ranks is the gradient. The same on every rank, and so are the gradients that are
    /// wanted.
    pub reduce: bool,
}

impl<'a> MhaBackwardArgs<'a> {
    /// Without activations and gradients, which the following add.
    pub fn new(
        dout: impl Into<Tensor<'a>>,
        x: impl Into<Tensor<'a>>,
        weights: MhaWeights<'a>,
    ) -> Self {
        Self {
            dout: dout.into(),
            x: x.into(),
            weights,
            activations: None,
            dx: None,
            gradients: MhaGradients::default(),
            accumulate: false,
            reduce: false,
        }
    }

    /// With activations.
    pub fn activations(self, activations: &'a Activations) -> Self {
        Self {
            activations: Some(activations),
            ..self
        }
    }

    /// With dx.
    pub fn dx(self, dx: impl Into<TensorMut<'a>>) -> Self {
        Self {
            dx: Some(dx.into()),
            ..self
        }
    }

    /// With gradients of weights.
    pub fn gradients(self, gradients: MhaGradients<'a>) -> Self {
        Self { gradients, ..self }
    }

    /// Sets [`accumulate`](#structfield.accumulate).
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Sets [`reduce`](#structfield.reduce).
    pub fn reduce(self, reduce: bool) -> Self {
        Self { reduce, ..self }
    }
}

impl Context {
    #[doc = c_doc!(ra_mha_forward)]
    ///
    /// ```
    /// use ringattn::*;
    ///
    /// let context = Context::new(&ContextConfig::new())?;
    /// let desc = AttentionDesc::new().seqlen_q(2).head_dim(2).mask(Mask::Causal);
    /// let mha = MhaDesc::new().d_model(2).rotary(Rotary::Halves);
    /// let one = [1.0f32, 0.0, 0.0, 1.0]; // both the tokens and each matrix
    /// let weights = MhaWeights::new(&one, &one, &one, &one);
    /// let mut activations = Activations::new(&context, &desc, &mha)?;
    ///
    /// let mut out = [0.0f32; 4];
    /// let args = MhaForwardArgs::new(&one, weights, &mut out).activations(&mut activations);
    /// context.mha_forward(&desc, &mha, args)?;
    /// assert!(out[0] == 1.0 && (out[2] + out[3] - 1.0).abs() < 1e-6);
    ///
    /// let (mut dx, mut dw_q) = ([0.0f32; 4], [0.0f32; 4]);
    /// let gradients = MhaGradients {
    ///     dw_q: Some((&mut dw_q).into()),
    ///     ..MhaGradients::default()
    /// };
    /// let args = MhaBackwardArgs::new(&out, &one, weights).activations(&activations);
    /// context.mha_backward(&desc, &mha, args.dx(&mut dx).gradients(gradients).reduce(true))?;
    /// assert!(dw_q.iter().any(|&g| g != 0.0));
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn mha_forward(
        &self,
        desc: &AttentionDesc,
        mha: &MhaDesc,
        args: MhaForwardArgs<'_>,
    ) -> Result<()> {
        self.check_cpu()?;
        args.check_dtypes(desc)?;
        let weights = args.weights;
        let (activations, activations_size) = written(args.activations);
        let args = sys::ra_mha_forward_args {
            struct_size: size_of::<sys::ra_mha_forward_args>(),
            x: args.x.raw,
            w_q: weights.w_q.raw,
            w_k: weights.w_k.raw,
            w_v: weights.w_v.raw,
            w_o: weights.w_o.raw,
            b_q: input(weights.b_q),
            b_k: input(weights.b_k),
            b_v: input(weights.b_v),
            b_o: input(weights.b_o),
            norm_q: input(weights.norm_q),
            norm_k: input(weights.norm_k),
            out: args.out.raw,
            activations,
            activations_size,
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: the tensors are slices of the described dtypes, whose sizes the library checks, as it
        // does that of the activations, and what is written is borrowed by nobody else. The context is
        // used by one thread, as it is not Sync.
        let forward = |desc: &_, mha: &_| {
            call(|e| unsafe { sys::ra_mha_forward(self.raw(), desc, mha, &args, e) })
        };
        desc.with_raw(|desc| mha.with_raw(|mha| forward(desc, mha)))?;
        Ok(())
    }

    #[doc = c_doc!(ra_mha_backward)]
    pub fn mha_backward(
        &self,
        desc: &AttentionDesc,
        mha: &MhaDesc,
        args: MhaBackwardArgs<'_>,
    ) -> Result<()> {
        self.check_cpu()?;
        args.check_dtypes(desc)?;
        let (weights, gradients) = (args.weights, args.gradients);
        let (activations, activations_size) = read(args.activations);
        let args = sys::ra_mha_backward_args {
            struct_size: size_of::<sys::ra_mha_backward_args>(),
            dout: args.dout.raw,
            x: args.x.raw,
            w_q: weights.w_q.raw,
            w_k: weights.w_k.raw,
            w_v: weights.w_v.raw,
            w_o: weights.w_o.raw,
            b_q: input(weights.b_q),
            b_k: input(weights.b_k),
            b_v: input(weights.b_v),
            b_o: input(weights.b_o),
            norm_q: input(weights.norm_q),
            norm_k: input(weights.norm_k),
            dx: output(args.dx),
            dw_q: output(gradients.dw_q),
            dw_k: output(gradients.dw_k),
            dw_v: output(gradients.dw_v),
            dw_o: output(gradients.dw_o),
            db_q: output(gradients.db_q),
            db_k: output(gradients.db_k),
            db_v: output(gradients.db_v),
            db_o: output(gradients.db_o),
            dnorm_q: output(gradients.dnorm_q),
            dnorm_k: output(gradients.dnorm_k),
            accumulate: i32::from(args.accumulate),
            reduce: i32::from(args.reduce),
            activations,
            activations_size,
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: as in `mha_forward`.
        let backward = |desc: &_, mha: &_| {
            call(|e| unsafe { sys::ra_mha_backward(self.raw(), desc, mha, &args, e) })
        };
        desc.with_raw(|desc| mha.with_raw(|mha| backward(desc, mha)))?;
        Ok(())
    }

    /// What this rank needs for a layer, in bytes. Local. Errors: as [`Context::mha_forward`] of `desc`
    /// and `mha`.
    pub fn mha_requirements(&self, desc: &AttentionDesc, mha: &MhaDesc) -> Result<MhaRequirements> {
        desc.with_raw(|desc| {
            mha.with_raw(|mha| {
                // SAFETY: desc and mha are ones of C, and the record one that its function initialised.
                MhaRequirements::filled(|record, error| unsafe {
                    sys::ra_get_mha_requirements(self.raw(), desc, mha, record, error)
                })
            })
        })
    }

    #[doc = c_doc!(ra_all_reduce)]
    ///
    /// ```
    /// use ringattn::{Context, ContextConfig};
    ///
    /// let context = Context::new(&ContextConfig::new())?;
    /// let mut gradients = [1.0f32, 2.0]; // of one rank, so that they are the sum
    /// context.all_reduce(&mut gradients)?;
    /// assert_eq!(gradients, [1.0, 2.0]);
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn all_reduce(&self, data: &mut [f32]) -> Result<()> {
        self.check_cpu()?;
        let args = sys::ra_reduce_args {
            struct_size: size_of::<sys::ra_reduce_args>(),
            data_size: lse_size(data),
            count: data.len() as i64,
            data: data.as_mut_ptr(),
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: data has as many numbers as it says, and is borrowed by nobody else. The context is
        // used by one thread, as it is not Sync.
        call(|e| unsafe { sys::ra_all_reduce(self.raw(), &args, e) })?;
        Ok(())
    }
}

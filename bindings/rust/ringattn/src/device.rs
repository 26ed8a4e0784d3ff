//! Attention over tensors in the memory of a GPU.
//!
//! The memory belongs to whichever crate allocated it, which the compiler cannot check here: so
//! calls are unsafe, and say what must hold. Of a crate's own type of buffer implement
//! [`DeviceBuffer`].
//!
//! ```no_run
//! use ringattn::device::{DeviceForwardArgs, DeviceMemory, DeviceTensor};
//! use ringattn::{AttentionDesc, Backend, Context, ContextConfig};
//!
//! # fn run(q: DeviceMemory, k: DeviceMemory, v: DeviceMemory, out: DeviceMemory,
//! #        stream: *mut std::ffi::c_void) -> ringattn::Result<()> {
//! let context = Context::new(&ContextConfig::new().backend(Backend::Cuda))?;
//! let desc = AttentionDesc::new().seqlen_q(4096).head_dim(128);
//! let args = DeviceForwardArgs {
//!     q: DeviceTensor::new(&q),
//!     k: DeviceTensor::new(&k),
//!     v: DeviceTensor::new(&v),
//!     out: DeviceTensor::new(&out),
//!     lse: None,
//!     key_bias: None,
//!     sinks: None,
//!     workspace: None,
//!     stream,
//! };
//! // SAFETY: the four are memory of this device, and are freed after `stream` was waited for.
//! unsafe { context.forward_device(&desc, &args)? };
//! # Ok(())
//! # }
//! ```

use std::ffi::c_void;
use std::mem::size_of;

use crate::docs::c_doc;
use crate::error::call;
use crate::{sys, AttentionDesc, Context, Result};

/// Memory of a device. On the CPU backend it is host memory.
pub trait DeviceBuffer {
    /// Its address.
    fn address(&self) -> *mut c_void;
    /// Bytes that may be read and written there.
    fn size(&self) -> usize;
}

/// A [`DeviceBuffer`] by its address.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Where it begins.
    pub address: *mut c_void,
    /// Its bytes.
    pub size: usize,
}

impl DeviceBuffer for DeviceMemory {
    fn address(&self) -> *mut c_void {
        self.address
    }

    fn size(&self) -> usize {
        self.size
    }
}

impl<B: DeviceBuffer> From<&B> for DeviceMemory {
    fn from(buffer: &B) -> Self {
        Self {
            address: buffer.address(),
            size: buffer.size(),
        }
    }
}

/// A tensor `[batch, seq, head, dim]` in device memory, packed or with strides.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTensor(sys::ra_tensor);

impl DeviceTensor {
    /// Packed, from the buffer's first byte on.
    pub fn new(buffer: &impl DeviceBuffer) -> Self {
        let size = buffer.size();
        // To C a size of 0 is one that is not checked, so that nothing may be at the address either.
        let data = if size == 0 {
            std::ptr::null_mut()
        } else {
            buffer.address()
        };
        Self(sys::ra_tensor {
            data,
            size,
            batch_stride: 0,
            seq_stride: 0,
            head_stride: 0,
        })
    }

    /// As [`Tensor::strides`](crate::Tensor::strides).
    pub fn strides(self, batch: i64, seq: i64, head: i64) -> Self {
        Self(sys::ra_tensor {
            batch_stride: batch,
            seq_stride: seq,
            head_stride: head,
            ..self.0
        })
    }
}

/// One rank's tensors of [`Context::forward_device`]; shapes as in
/// [`ForwardArgs`](crate::ForwardArgs).
#[derive(Clone, Copy, Debug)]
pub struct DeviceForwardArgs {
    #[doc = c_doc!(ra_forward_args::q)]
    pub q: DeviceTensor,
    #[doc = c_doc!(ra_forward_args::k)]
    pub k: DeviceTensor,
    #[doc = c_doc!(ra_forward_args::v)]
    pub v: DeviceTensor,
    #[doc = c_doc!(ra_forward_args::out)]
    pub out: DeviceTensor,
    #[doc = c_doc!(ra_forward_args::lse)]
    pub lse: Option<DeviceMemory>,
    #[doc = c_doc!(ra_forward_args::key_bias)]
    pub key_bias: Option<DeviceMemory>,
    #[doc = c_doc!(ra_forward_args::sinks)]
    pub sinks: Option<DeviceMemory>,
    #[doc = c_doc!(ra_forward_args::workspace)]
    pub workspace: Option<DeviceMemory>,
    /// A `cudaStream_t` of the context's device, null for the default stream; must be null on the
    /// CPU backend.
    pub stream: *mut c_void,
}

/// One rank's tensors of [`Context::backward_device`]; shapes as in
/// [`ForwardArgs`](crate::ForwardArgs).
#[derive(Clone, Copy, Debug)]
pub struct DeviceBackwardArgs {
    #[doc = c_doc!(ra_backward_args::dout)]
    pub dout: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::q)]
    pub q: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::k)]
    pub k: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::v)]
    pub v: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::out)]
    pub out: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::lse)]
    pub lse: DeviceMemory,
    #[doc = c_doc!(ra_backward_args::dq)]
    pub dq: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::dk)]
    pub dk: DeviceTensor,
    #[doc = c_doc!(ra_backward_args::dv)]
    pub dv: DeviceTensor,
    /// Whether to add to what dq, dk, dv and dsinks hold, instead of overwriting it.
    pub accumulate: bool,
    #[doc = c_doc!(ra_backward_args::key_bias)]
    pub key_bias: Option<DeviceMemory>,
    #[doc = c_doc!(ra_backward_args::sinks)]
    pub sinks: Option<DeviceMemory>,
    #[doc = c_doc!(ra_backward_args::dsinks)]
    pub dsinks: Option<DeviceMemory>,
    #[doc = c_doc!(ra_backward_args::workspace)]
    pub workspace: Option<DeviceMemory>,
    /// A `cudaStream_t` of the context's device, null for the default stream; must be null on the
    /// CPU backend.
    pub stream: *mut c_void,
}

fn memory_parts(memory: Option<DeviceMemory>) -> (*mut c_void, usize) {
    memory.map_or((std::ptr::null_mut(), 0), |memory| {
        (memory.address, memory.size)
    })
}

impl Context {
    /// [`Context::forward`] over tensors in the memory of the context's device, or on the CPU
    /// backend in host memory that slices cannot describe. On CUDA it enqueues the work on
    /// `args.stream` and returns.
    ///
    /// # Safety
    ///
    /// All of the memory that `args` names is of the context's device, is as large as it says, and
    /// holds elements of the description's dtypes. Outputs and workspace are used by nobody else,
    /// inputs are not written, and all stay allocated, until what was enqueued is over. `stream` is
    /// null or a stream of that device.
    pub unsafe fn forward_device(
        &self,
        desc: &AttentionDesc,
        args: &DeviceForwardArgs,
    ) -> Result<()> {
        let (lse, lse_size) = memory_parts(args.lse);
        let (key_bias, key_bias_size) = memory_parts(args.key_bias);
        let (sinks, sinks_size) = memory_parts(args.sinks);
        let (workspace, workspace_size) = memory_parts(args.workspace);
        let args = sys::ra_forward_args {
            struct_size: size_of::<sys::ra_forward_args>(),
            q: args.q.0,
            k: args.k.0,
            v: args.v.0,
            out: args.out.0,
            lse: lse.cast(),
            lse_size,
            workspace,
            workspace_size,
            stream: args.stream.cast(),
            key_bias: key_bias.cast_const().cast(),
            key_bias_size,
            sinks: sinks.cast_const().cast(),
            sinks_size,
        };
        // SAFETY: as the caller promises.
        desc.with_raw(|desc| call(|e| unsafe { sys::ra_forward(self.raw(), desc, &args, e) }))?;
        Ok(())
    }

    /// [`Context::backward`] over tensors in the memory of the context's device.
    ///
    /// # Safety
    ///
    /// As of [`Context::forward_device`].
    pub unsafe fn backward_device(
        &self,
        desc: &AttentionDesc,
        args: &DeviceBackwardArgs,
    ) -> Result<()> {
        let (key_bias, key_bias_size) = memory_parts(args.key_bias);
        let (sinks, sinks_size) = memory_parts(args.sinks);
        let (dsinks, dsinks_size) = memory_parts(args.dsinks);
        let (workspace, workspace_size) = memory_parts(args.workspace);
        let args = sys::ra_backward_args {
            struct_size: size_of::<sys::ra_backward_args>(),
            dout: args.dout.0,
            q: args.q.0,
            k: args.k.0,
            v: args.v.0,
            out: args.out.0,
            lse: args.lse.address.cast_const().cast(),
            lse_size: args.lse.size,
            dq: args.dq.0,
            dk: args.dk.0,
            dv: args.dv.0,
            accumulate: i32::from(args.accumulate),
            reserved: 0,
            workspace,
            workspace_size,
            stream: args.stream.cast(),
            key_bias: key_bias.cast_const().cast(),
            key_bias_size,
            sinks: sinks.cast_const().cast(),
            sinks_size,
            dsinks: dsinks.cast(),
            dsinks_size,
        };
        // SAFETY: as the caller promises.
        desc.with_raw(|desc| call(|e| unsafe { sys::ra_backward(self.raw(), desc, &args, e) }))?;
        Ok(())
    }
}

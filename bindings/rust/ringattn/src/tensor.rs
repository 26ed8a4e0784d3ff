//! Tensors in host memory.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::size_of;

use crate::docs::c_doc;
use crate::{sys, DType, Element, Error, Result};

/// A tensor that is read: a slice, packed or with strides. That it is long enough is checked, against
/// the description, by the call that is given it.
///
/// ```
/// use ringattn::Tensor;
///
/// let qkv = vec![0f32; 128 * 3 * 8 * 64]; // [128 tokens, q k v, 8 heads, 64]
/// let k = Tensor::from(&qkv[8 * 64..]).strides(0, 3 * 8 * 64, 64);
/// ```
///
/// In C it is described thus:
///
#[doc = c_doc!(ra_tensor)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub(crate) raw: sys::ra_tensor,
    pub(crate) dtype: DType,
    slice: PhantomData<&'a [f32]>,
}

/// A tensor that is written, and where the call says so read; else as [`Tensor`].
#[derive(Debug)]
pub struct TensorMut<'a> {
    pub(crate) raw: sys::ra_tensor,
    pub(crate) dtype: DType,
    slice: PhantomData<&'a mut [f32]>,
}

fn packed<T: Element>(data: *mut T, len: usize) -> sys::ra_tensor {
    // To C a size of 0 is one that is not checked, so that nothing may be at the address either.
    let data = if len == 0 {
        std::ptr::null_mut()
    } else {
        data.cast::<c_void>()
    };
    sys::ra_tensor {
        data,
        size: len * size_of::<T>(),
        batch_stride: 0,
        seq_stride: 0,
        head_stride: 0,
    }
}

fn with_strides(raw: sys::ra_tensor, [batch, seq, head]: [i64; 3]) -> sys::ra_tensor {
    sys::ra_tensor {
        batch_stride: batch,
        seq_stride: seq,
        head_stride: head,
        ..raw
    }
}

impl Tensor<'_> {
    /// With strides in elements, from one entry, token and head to the next; the elements of a head
    /// are dense. [`Stride::Repeat`](crate::Stride::Repeat)` as i64` is one slice again and again.
    /// The stride of a dimension with one entry does not matter; all three 0 is packed.
    pub fn strides(self, batch: i64, seq: i64, head: i64) -> Self {
        Self {
            raw: with_strides(self.raw, [batch, seq, head]),
            ..self
        }
    }
}

impl TensorMut<'_> {
    /// With strides in elements, as in [`Tensor::strides`], but none of them repeats.
    pub fn strides(self, batch: i64, seq: i64, head: i64) -> Self {
        Self {
            raw: with_strides(self.raw, [batch, seq, head]),
            ..self
        }
    }

    /// From an address, for outputs that lie interleaved in one buffer, as dq, dk and dv may in
    /// `[batch, seq, 3, head, dim]`, which slices cannot say.
    ///
    /// # Safety
    ///
    /// While it lives, elements `0 .. len` from `data` on are valid for reads and writes, and
    /// those that the strides reach are used by nobody else.
    pub unsafe fn from_raw_parts<T: Element>(data: *mut T, len: usize) -> Self {
        Self {
            raw: packed(data, len),
            dtype: T::DTYPE,
            slice: PhantomData,
        }
    }
}

impl<'a, T: Element> From<&'a [T]> for Tensor<'a> {
    fn from(slice: &'a [T]) -> Self {
        let raw = packed(slice.as_ptr().cast_mut(), slice.len());
        Self {
            raw,
            dtype: T::DTYPE,
            slice: PhantomData,
        }
    }
}

impl<'a, T: Element> From<&'a Vec<T>> for Tensor<'a> {
    fn from(elements: &'a Vec<T>) -> Self {
        elements.as_slice().into()
    }
}

impl<'a, T: Element, const N: usize> From<&'a [T; N]> for Tensor<'a> {
    fn from(elements: &'a [T; N]) -> Self {
        elements.as_slice().into()
    }
}

impl<'a, T: Element> From<&'a mut [T]> for TensorMut<'a> {
    fn from(slice: &'a mut [T]) -> Self {
        let raw = packed(slice.as_mut_ptr(), slice.len());
        Self {
            raw,
            dtype: T::DTYPE,
            slice: PhantomData,
        }
    }
}

impl<'a, T: Element> From<&'a mut Vec<T>> for TensorMut<'a> {
    fn from(elements: &'a mut Vec<T>) -> Self {
        elements.as_mut_slice().into()
    }
}

impl<'a, T: Element, const N: usize> From<&'a mut [T; N]> for TensorMut<'a> {
    fn from(elements: &'a mut [T; N]) -> Self {
        elements.as_mut_slice().into()
    }
}

/// Requires that a tensor holds what `field` says. What `field` itself may not say is the library's
/// to refuse.
pub(crate) fn check_dtype(name: &str, dtype: DType, field: &str, wanted: DType) -> Result<()> {
    let is_element = matches!(wanted, DType::Float32 | DType::Bfloat16 | DType::Float16);
    if dtype == wanted || !is_element {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "{name} holds {dtype}; {field} is {wanted}"
    )))
}

/// Requires what holds whatever the description says.
pub(crate) fn check_float32(name: &str, dtype: DType) -> Result<()> {
    if dtype == DType::Float32 {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "{name} holds {dtype}; must be {}",
        DType::Float32
    )))
}

/// Bytes of an lse, as C is told. To C a size of 0 is one that is not checked; in one byte there is
/// no number either.
pub(crate) fn lse_size(lse: &[f32]) -> usize {
    std::mem::size_of_val(lse).max(1)
}

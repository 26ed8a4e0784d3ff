//! Elements of tensors.

use crate::DType;

mod sealed {
    pub trait Sealed {}
}

/// What tensors in host memory hold: `f32`, [`Bf16`] and [`F16`], and with the feature `half` also
/// `half::bf16` and `half::f16`.
pub trait Element: sealed::Sealed + Copy + 'static {
    /// As a description says it.
    const DTYPE: DType;
}

macro_rules! element {
    ($type:ty, $dtype:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    };
}
element!(f32, Float32);
element!(Bf16, Bfloat16);
element!(F16, Float16);
#[cfg(feature = "half")]
element!(half::bf16, Bfloat16);
#[cfg(feature = "half")]
element!(half::f16, Float16);

/// A bfloat16: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Bf16(u16);

/// An IEEE 754 half-precision number: 5 bits of exponent, 10 of mantissa.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct F16(u16);

impl Bf16 {
    /// Of its bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The nearest one, and of two that are equally near the even one. A NaN stays one.
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }

    /// The same number.
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl F16 {
    /// Of its bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The nearest one, and of two that are equally near the even one; from 65520 on infinity. A
    /// NaN stays one.
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let sign = (bits >> 16 & 0x8000) as u16;
        let magnitude = bits & 0x7fff_ffff;
        Self(match magnitude {
            0x7f80_0001.. => sign | 0x7e00 | (magnitude >> 13) as u16,
            0x477f_f000.. => sign | 0x7c00,
            // From 2^-14 on: the exponent's bias falls by 112, the mantissa loses 13 bits.
            0x3880_0000.. => {
                let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
                sign | ((rounded - (112 << 23)) >> 13) as u16
            }
            // Below, a multiple of 2^-24, which is the last place of a sum that begins with 0.5.
            _ => sign | ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16,
        })
    }

    /// The same number.
    pub fn to_f32(self) -> f32 {
        let sign = u32::from(self.0 & 0x8000) << 16;
        let magnitude = u32::from(self.0 & 0x7fff);
        let value = match magnitude {
            0x7c00.. => f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13),
            0x0400.. => f32::from_bits((magnitude << 13) + (112 << 23)),
            _ => magnitude as f32 / (1 << 24) as f32,
        };
        f32::from_bits(value.to_bits() | sign)
    }
}

impl From<Bf16> for f32 {
    fn from(value: Bf16) -> f32 {
        value.to_f32()
    }
}

impl From<F16> for f32 {
    fn from(value: F16) -> f32 {
        value.to_f32()
    }
}

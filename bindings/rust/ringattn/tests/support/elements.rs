//! Elements of a tensor, of any dtype.

use ringattn::{Bf16, DType, Tensor, TensorMut, F16};

pub enum Elements {
    Float32(Vec<f32>),
    Bfloat16(Vec<Bf16>),
    Float16(Vec<F16>),
}
use Elements::*;

/// Evaluates `$result`, in which `$list` is the vector of whatever dtype `$elements` has.
macro_rules! with_list {
    ($elements:expr, $list:ident => $result:expr) => {
        match $elements {
            Float32($list) => $result,
            Bfloat16($list) => $result,
            Float16($list) => $result,
        }
    };
}

impl Elements {
    pub fn new(dtype: DType, len: usize, at: impl Fn(u64) -> f32) -> Self {
        let numbers = (0..len as u64).map(at);
        match dtype {
            DType::Bfloat16 => Bfloat16(numbers.map(Bf16::from_f32).collect()),
            DType::Float16 => Float16(numbers.map(F16::from_f32).collect()),
            _ => Float32(numbers.collect()),
        }
    }

    pub fn tensor(&self) -> Tensor<'_> {
        with_list!(self, list => list.into())
    }

    pub fn tensor_mut(&mut self) -> TensorMut<'_> {
        with_list!(self, list => list.into())
    }

    pub fn is_empty(&self) -> bool {
        with_list!(self, list => list.is_empty())
    }

    /// Of float32 only.
    pub fn floats(&mut self) -> &mut [f32] {
        match self {
            Float32(list) => list,
            _ => panic!("not float32"),
        }
    }

    pub fn at(&self, index: usize) -> f32 {
        match self {
            Float32(list) => list[index],
            Bfloat16(list) => list[index].to_f32(),
            Float16(list) => list[index].to_f32(),
        }
    }

    /// FNV-1a of its bytes, in hexadecimal digits.
    pub fn hash(&self) -> String {
        let bytes: Vec<u8> = match self {
            Float32(list) => list
                .iter()
                .flat_map(|x| x.to_bits().to_ne_bytes())
                .collect(),
            Bfloat16(list) => list
                .iter()
                .flat_map(|x| x.to_bits().to_ne_bytes())
                .collect(),
            Float16(list) => list
                .iter()
                .flat_map(|x| x.to_bits().to_ne_bytes())
                .collect(),
        };
        let add = |h: u64, &byte: &u8| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, add))
    }
}

//! Conversions of elements, of all numbers.

use ringattn::{Bf16, F16};

/// Of every number but the last finite one and those after it: it survives, and what lies
/// between it and the next goes to the nearer one, or to the even one.
fn rounds_to_nearest_even(infinity: u16, to: fn(u16) -> f32, from: fn(f32) -> u16) {
    for bits in 0..=u16::MAX {
        let value = to(bits);
        if value.is_nan() {
            assert!(to(from(value)).is_nan(), "{bits:#x}");
            continue;
        }
        assert_eq!(from(value), bits);
        if bits & 0x7fff >= infinity - 1 {
            continue;
        }
        let middle = ((f64::from(value) + f64::from(to(bits + 1))) / 2.0) as f32;
        let even = bits + (bits & 1);
        assert_eq!(from(middle), even, "{middle:e}");
        assert_eq!(
            from(f32::from_bits(middle.to_bits() - 1)),
            bits,
            "below {middle:e}"
        );
        assert_eq!(
            from(f32::from_bits(middle.to_bits() + 1)),
            bits + 1,
            "above {middle:e}"
        );
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    rounds_to_nearest_even(
        0x7f80,
        |bits| Bf16::from_bits(bits).to_f32(),
        |x| Bf16::from_f32(x).to_bits(),
    );
    assert_eq!(Bf16::from_f32(f32::MAX).to_f32(), f32::INFINITY);
    assert_eq!(Bf16::from_f32(-1.0).to_bits(), 0xbf80);
}

#[test]
fn f16_rounds_to_nearest_even() {
    rounds_to_nearest_even(
        0x7c00,
        |bits| F16::from_bits(bits).to_f32(),
        |x| F16::from_f32(x).to_bits(),
    );
    assert_eq!(F16::from_f32(65504.0).to_bits(), 0x7bff);
    assert_eq!(
        F16::from_f32(f32::from_bits(65520f32.to_bits() - 1)).to_bits(),
        0x7bff
    );
    assert_eq!(F16::from_f32(-65520.0).to_f32(), f32::NEG_INFINITY);
    assert_eq!(F16::from_f32(1.0).to_bits(), 0x3c00);
}

#[cfg(feature = "half")]
#[test]
fn the_crate_half_agrees() {
    for bits in (0..=u32::MAX).step_by(4099) {
        let x = f32::from_bits(bits);
        if !x.is_nan() {
            assert_eq!(
                Bf16::from_f32(x).to_bits(),
                half::bf16::from_f32(x).to_bits(),
                "{x:e}"
            );
            assert_eq!(
                F16::from_f32(x).to_bits(),
                half::f16::from_f32(x).to_bits(),
                "{x:e}"
            );
        }
    }
    let mut out = [half::f16::ZERO; 4];
    let ones = [half::f16::ONE; 4];
    let desc = ringattn::AttentionDesc::new().seqlen_q(4).head_dim(1);
    let desc = desc.dtype(ringattn::DType::Float16);
    let context = ringattn::Context::new(&ringattn::ContextConfig::new()).unwrap();
    let args = ringattn::ForwardArgs::new(&ones, &ones, &ones, &mut out);
    context.forward(&desc, args).unwrap();
    assert_eq!(out, ones);
}

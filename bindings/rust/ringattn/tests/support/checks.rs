//! Numbers for tensors, and what is required of results.

use std::fmt::Debug;

use ringattn::{Result, Status};

/// One of -1 .. 1, by splitmix64.
pub fn number(seed: u64, index: i64) -> f32 {
    let z = (seed << 32)
        .wrapping_add(index as u64)
        .wrapping_add(0x9E3779B97F4A7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58476D1CE4E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D049BB133111EB);
    ((z ^ z >> 31) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// They agree but for rounding.
pub fn assert_near(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 1e-4 * largest,
            "{what}[{i}] is {a}, not {b}"
        );
    }
}

/// It failed, with this status and all words in its message.
pub fn assert_status<T: Debug>(result: Result<T>, status: Status, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.status(), status, "{error}");
    assert!(
        words.iter().all(|word| error.message().contains(word)),
        "{words:?}: {error}"
    );
}

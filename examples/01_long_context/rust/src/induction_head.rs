//! The head itself: what its queries, keys and values are, and its output computed directly in fp64.
//! Nothing here uses the library.
//!
//! An induction head looks for earlier places that were preceded by the same bytes as this one, and
//! copies what came next there. It needs no training: with a token per byte,
//!
//! * key s says what came before byte s: a unit vector along the sum over i = 1 .. 12 of
//!   0.85^i sign(i, byte s - i), where sign(i, b) is a fixed random vector of +-1 for each pair of a
//!   distance and a byte
//! * value s is byte s, one-hot
//! * query t is the same vector as key t
//!
//! Random vectors of 128 signs are almost orthogonal, so the dot product of query t and key s is
//! about the weighted share of preceding bytes in which t and s agree. The softmax sharpens that, and
//! the output is a distribution over the next byte.

pub const DIM: usize = 128; // of queries and keys
pub const ALPHABET: usize = 128; // of values and of the output: one dimension per ASCII character
pub const SOFTMAX_SCALE: f32 = 32.0;

const REACH: usize = 12; // preceding bytes that a query or key describes
const DECAY: f32 = 0.85; // weight of one more byte of distance

pub type Feature = [f32; DIM];
pub type Distribution = [f64; ALPHABET];

/// The Mersenne twister of C++'s standard library, so that every language has the same head.
struct Mt19937 {
    state: [u32; 624],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..state.len() {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(last ^ last >> 30)
                .wrapping_add(i as u32);
        }
        Self { state, next: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % 624] & 0x7fff_ffff;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ y >> 1 ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }
}

/// What makes queries and keys: for each distance and byte, a random vector, times its weight.
pub struct Head {
    weighted_signs: Vec<Feature>,
}

impl Head {
    pub fn new() -> Self {
        let mut random = Mt19937::new(1);
        let mut weight = 1.0;
        let mut weighted_signs = Vec::with_capacity(REACH * ALPHABET);
        for _ in 0..REACH {
            weight *= DECAY;
            for _ in 0..ALPHABET {
                let sign = |_| {
                    if random.next() & 1 == 1 {
                        weight
                    } else {
                        -weight
                    }
                };
                weighted_signs.push([0; DIM].map(sign));
            }
        }
        Self { weighted_signs }
    }

    /// Query and key of byte `t` of the text: the bytes before it, as a unit vector. Zero at the
    /// start of the text.
    pub fn make_feature(&self, text: &[u8], t: usize) -> Feature {
        let mut sum = [0.0; DIM];
        for i in 0..REACH.min(t) {
            let signs = &self.weighted_signs[i * ALPHABET + usize::from(text[t - 1 - i])];
            for (x, sign) in sum.iter_mut().zip(signs) {
                *x += sign;
            }
        }
        let square = sum.iter().fold(0.0, |square: f32, x| square + x * x);
        if square > 0.0 {
            for x in &mut sum {
                *x /= square.sqrt();
            }
        }
        sum
    }

    /// The head's output for bytes `targets`, each of which sees the `context` bytes before it, in
    /// fp64 and from the definition: no blocks, no running maximum, no ranks.
    pub fn attend_fp64(&self, text: &[u8], targets: &[usize], context: usize) -> Vec<Distribution> {
        let queries: Vec<Feature> = targets
            .iter()
            .map(|&t| self.make_feature(text, t))
            .collect();
        let mut out = vec![[0.0; ALPHABET]; targets.len()];
        let mut sum = vec![0.0; targets.len()];
        let first = targets
            .iter()
            .min()
            .map_or(0, |t| t.saturating_sub(context));
        let last = targets.iter().max().map_or(0, |&t| t);
        for s in first..last {
            let key = self.make_feature(text, s);
            for (row, &t) in targets.iter().enumerate() {
                if s >= t || s + context < t {
                    continue;
                }
                let products = queries[row]
                    .iter()
                    .zip(&key)
                    .map(|(&q, &k)| f64::from(q) * f64::from(k));
                // Unit vectors: no score exceeds the scale, so subtracting it instead of the row's
                // maximum is safe in fp64.
                let weight = (f64::from(SOFTMAX_SCALE) * (products.sum::<f64>() - 1.0)).exp();
                out[row][usize::from(text[s])] += weight;
                sum[row] += weight;
            }
        }
        for (row, sum) in out.iter_mut().zip(sum) {
            row.iter_mut().for_each(|p| *p /= sum);
        }
        out
    }
}

//! The ranks that share the text: all calls of the library are in this file.
//!
//! The problem, in the library's words. There are `length` keys, one for each byte but the last, and
//! `SCORED` queries:
//!
//! * key, value j: byte j, 0 <= j < length
//! * query i: byte t = length - SCORED + i + 1, the one after the key that query i faces
//!   (bottom-right)
//! * visible: j <= t - 1 by the causal mask, j >= t - context by window_left = context - 1
//!
//! so a byte is never visible to its own query.

use std::thread;

use ringattn::*;

use crate::induction_head::{Head, ALPHABET, DIM, SOFTMAX_SCALE};

pub const SCORED: usize = 2048;

pub fn describe(length: usize, context: usize, sharding: Sharding) -> AttentionDesc {
    AttentionDesc::new()
        .seqlen_q(SCORED as i64)
        .seqlen_kv(length as i64)
        .head_dim(DIM as i64)
        .head_dim_v(ALPHABET as i64)
        .softmax_scale(SOFTMAX_SCALE)
        .sharding(sharding)
        .mask(Mask::Causal)
        .mask_alignment(MaskAlignment::BottomRight)
        .window_left(context as i64 - 1)
        // What travels at once is a fixed part of a shard, so that it shrinks as the ranks multiply.
        .num_chunks(32)
}

/// The byte of the text that query `i` guesses.
pub fn get_target(length: usize, i: usize) -> usize {
    length - SCORED + i + 1
}

/// A group of ranks that are threads of this process; with another transport only the config differs.
pub struct Ranks {
    length: usize,
    sharding: Sharding,
    ranks: Vec<Rank>,
}

struct Rank {
    context: Context,
    q: Vec<f32>, // this rank's shards
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
}

impl Ranks {
    pub fn new(
        head: &Head,
        text: &[u8],
        length: usize,
        world_size: i32,
        sharding: Sharding,
    ) -> Result<Self> {
        let id = UniqueId::new(Transport::Local, None)?;
        let config = ContextConfig::new().world_size(world_size).unique_id(&id);
        let desc = describe(length, length, sharding);
        let ranks = on_threads(0..world_size, |rank| {
            let context = Context::new(&config.clone().rank(rank))?;
            Rank::new(head, text, length, context, &desc)
        })?;
        Ok(Self {
            length,
            sharding,
            ranks,
        })
    }

    /// [SCORED, ALPHABET]: the head's distribution over each scored byte.
    pub fn forward(&mut self, context: usize) -> Result<Vec<f32>> {
        let desc = describe(self.length, context, self.sharding);
        on_threads(&mut self.ranks, |rank| {
            let Rank {
                context,
                q,
                k,
                v,
                out,
            } = rank;
            let done = context.forward(&desc, ForwardArgs::new(&*q, &*k, &*v, out));
            if done.is_err() {
                let _ = context.abort_handle().abort(); // else the others wait until their time-out
            }
            done
        })?;
        // Every rank's rows to where they belong.
        let mut whole = vec![0.0; SCORED * ALPHABET];
        for (r, rank) in (0..).zip(&self.ranks) {
            let args = JoinArgs {
                side: Side::Query,
                num_heads: 1,
                dim: ALPHABET as i64,
                shard: (&rank.out).into(),
                whole: (&mut whole).into(),
            };
            desc.join_sequence(self.ranks.len() as i32, r, args)?;
        }
        Ok(whole)
    }

    /// Tensors and workspace of the rank that needs most, in bytes.
    pub fn get_memory(&self, context: usize) -> Result<usize> {
        let desc = describe(self.length, context, self.sharding);
        most(
            self.ranks
                .iter()
                .map(|rank| rank.context.memory_requirements(&desc)),
        )
    }
}

impl Rank {
    /// A rank makes the tensors of its own tokens only: nobody ever holds those of the whole
    /// sequence.
    fn new(
        head: &Head,
        text: &[u8],
        length: usize,
        context: Context,
        desc: &AttentionDesc,
    ) -> Result<Self> {
        let ContextInfo {
            rank, world_size, ..
        } = context.info()?;
        let queries = desc.shard_positions(world_size, rank, Side::Query, ..)?;
        let keys = desc.shard_positions(world_size, rank, Side::KeyValue, ..)?;
        let query = |&i: &i64| head.make_feature(text, get_target(length, i as usize));
        let key = |&j: &i64| head.make_feature(text, j as usize);
        let mut v = vec![0.0; keys.len() * ALPHABET];
        for (value, &j) in v.chunks_mut(ALPHABET).zip(&keys) {
            value[usize::from(text[j as usize])] = 1.0;
        }
        Ok(Self {
            q: queries.iter().flat_map(query).collect(),
            k: keys.iter().flat_map(key).collect(),
            out: vec![0.0; queries.len() * ALPHABET],
            v,
            context,
        })
    }
}

/// What `Ranks::get_memory` would say for the longest context, without making the ranks.
pub fn get_estimate(length: usize, world_size: i32, sharding: Sharding) -> Result<usize> {
    let desc = describe(length, length, sharding);
    let config = ContextConfig::new().world_size(world_size);
    most((0..world_size).map(|rank| estimate_memory(&config.clone().rank(rank), &desc)))
}

fn most(mut ranks: impl Iterator<Item = Result<MemoryRequirements>>) -> Result<usize> {
    ranks.try_fold(0, |most, memory| {
        let memory = memory?;
        Ok(most.max(memory.forward_tensors + memory.forward_workspace))
    })
}

/// A collective call returns when all ranks have made it, so each rank needs a thread of its own to
/// make it from.
fn on_threads<T: Send, R: Send>(
    of: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let spawn = |of| scope.spawn(move || work(of));
        let threads: Vec<_> = of.into_iter().map(spawn).collect();
        let mut results: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("work does not panic"))
            .collect();
        // Where one rank failed and aborted the others, it is its failure that says why. Those that
        // were not yet in their call find a context of no more use.
        let is_cause = |e: &Error| !matches!(e.status(), Status::Aborted | Status::InvalidState);
        if let Some(cause) = results
            .iter()
            .position(|result| result.as_ref().is_err_and(is_cause))
        {
            results.swap(0, cause);
        }
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A rank whose call is refused does not leave the others waiting for it, and says why.
    #[test]
    fn others_are_let_go() {
        let text = [0; 5001];
        let mut ranks = Ranks::new(&Head::new(), &text, 5000, 3, Sharding::Zigzag).unwrap();
        ranks.ranks[2].k.clear();
        let begin = Instant::now();
        let error = ranks.forward(5000).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}

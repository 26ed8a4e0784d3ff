//! KV caches: what is decoded from one is what forward gives over the same tokens, whatever its
//! sequences went through; what is refused has changed nothing. That each shape and schedule is right is
//! the library's own tests' matter.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};

use ringattn::*;

#[path = "support/checks.rs"]
mod checks;
#[path = "support/ranks.rs"]
mod ranks;
use checks::{assert_near, assert_status, number};
use ranks::on_ranks;

const HEADS_Q: i64 = 4;
const HEADS_KV: i64 = 2;
const DIM: i64 = 8;
const DIM_V: i64 = 6;
const PAGE: i64 = 16;

fn cache_desc() -> KvCacheDesc {
    KvCacheDesc::new()
        .page_tokens(PAGE)
        .num_pages(8)
        .num_heads_kv(HEADS_KV)
        .head_dim(DIM)
        .head_dim_v(DIM_V)
}

fn desc(batch: usize, seqlen_q: i64) -> AttentionDesc {
    AttentionDesc::new()
        .batch(batch as i64)
        .seqlen_q(seqlen_q)
        .num_heads_q(HEADS_Q)
        .num_heads_kv(HEADS_KV)
        .head_dim(DIM)
        .head_dim_v(DIM_V)
        .mask(Mask::Causal)
}

/// What tokens, which are numbers, have of one tensor.
fn rows(tensor: u64, width: i64, tokens: &[i64]) -> Vec<f32> {
    let of = |&token: &i64| (0..width).map(move |i| number(tensor, token * width + i));
    tokens.iter().flat_map(of).collect()
}

fn q_of(tokens: &[i64]) -> Vec<f32> {
    rows(1, HEADS_Q * DIM, tokens)
}

fn k_of(tokens: &[i64]) -> Vec<f32> {
    rows(2, HEADS_KV * DIM, tokens)
}

fn v_of(tokens: &[i64]) -> Vec<f32> {
    rows(3, HEADS_KV * DIM_V, tokens)
}

/// One rank's cache, and which tokens each of its sequences has.
struct Served {
    cache: KvCache,
    tokens: BTreeMap<Sequence, Vec<i64>>,
    next: i64, // token that is new
}

impl Served {
    fn new(context: &Context) -> Self {
        Self {
            cache: KvCache::new(context, &cache_desc()).unwrap(),
            tokens: BTreeMap::new(),
            next: 0,
        }
    }

    fn create(&mut self) -> Sequence {
        let sequence = self.cache.create_sequence().unwrap();
        assert!(self.tokens.insert(sequence, Vec::new()).is_none());
        sequence
    }

    fn fork(&mut self, of: Sequence) -> Sequence {
        let sequence = self.cache.fork_sequence(of).unwrap();
        let tokens = self.tokens[&of].clone();
        assert!(self.tokens.insert(sequence, tokens).is_none());
        sequence
    }

    fn truncate(&mut self, sequence: Sequence, length: usize) {
        self.cache
            .truncate_sequence(sequence, length as i64)
            .unwrap();
        self.tokens.get_mut(&sequence).unwrap().truncate(length);
    }

    fn free(&mut self, sequence: Sequence) {
        self.cache.free_sequence(sequence).unwrap();
        self.tokens.remove(&sequence).unwrap();
    }

    /// New tokens for each sequence, of different numbers.
    fn append(&mut self, context: &Context, sequences: &[Sequence], lengths: &[i64]) -> Result<()> {
        let most = *lengths.iter().max().unwrap();
        let all: Vec<i64> = (self.next..self.next + most * sequences.len() as i64).collect();
        let (k, v) = (k_of(&all), v_of(&all));
        let args = AppendArgs::new(sequences, most, &k, &v).lengths(lengths);
        context.append(&mut self.cache, args)?;
        self.next += all.len() as i64;
        let entries = all.chunks(most as usize).zip(lengths);
        for (sequence, (entry, &length)) in sequences.iter().zip(entries) {
            let tokens = self.tokens.get_mut(sequence).unwrap();
            tokens.extend(&entry[..length as usize]);
            let length = self.cache.sequence_length(*sequence).unwrap();
            assert_eq!(length, tokens.len() as i64);
        }
        Ok(())
    }

    /// out and lse of the last queries of each sequence.
    fn decode(
        &mut self,
        context: &Context,
        desc: &AttentionDesc,
        sequences: &[Sequence],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let t = desc.seqlen_q as usize;
        let last = |s| &self.tokens[s][self.tokens[s].len() - t..];
        let q: Vec<f32> = sequences.iter().flat_map(|s| q_of(last(s))).collect();
        let num_rows = sequences.len() * t * HEADS_Q as usize;
        let mut out = vec![7.0; num_rows * DIM_V as usize];
        let mut lse = vec![7.0; num_rows];
        let sinks = sinks(desc);
        let args = DecodeArgs {
            sinks: (desc.num_sinks > 0).then_some(sinks.as_slice()),
            ..DecodeArgs::new(sequences, &q, &mut out).lse(&mut lse)
        };
        context.decode(&mut self.cache, desc, args)?;
        Ok((out, lse))
    }

    /// Decodes, and compares with what one rank without a cache has.
    fn check(
        &mut self,
        context: &Context,
        desc: &AttentionDesc,
        sequences: &[Sequence],
    ) -> (Vec<f32>, Vec<f32>) {
        let (out, lse) = self.decode(context, desc, sequences).unwrap();
        let alone = Context::new(&ContextConfig::new().num_threads(1)).unwrap();
        let num_rows = (desc.seqlen_q * HEADS_Q) as usize;
        for (n, sequence) in sequences.iter().enumerate() {
            let tokens = &self.tokens[sequence];
            let desc = desc.clone().batch(1).seqlen_kv(tokens.len() as i64);
            let desc = desc.schedule(Schedule::Auto);
            let queries = &tokens[tokens.len() - desc.seqlen_q as usize..];
            let (q, k, v) = (q_of(queries), k_of(tokens), v_of(tokens));
            let mut expected = vec![7.0; num_rows * DIM_V as usize];
            let mut expected_lse = vec![7.0; num_rows];
            let sinks = sinks(&desc);
            let args = ForwardArgs {
                sinks: (desc.num_sinks > 0).then_some(sinks.as_slice()),
                ..ForwardArgs::new(&q, &k, &v, &mut expected).lse(&mut expected_lse)
            };
            alone.forward(&desc, args).unwrap();
            let out = out.chunks(expected.len()).nth(n).unwrap();
            assert_near("out", out, &expected);
            let lse = lse.chunks(num_rows).nth(n).unwrap();
            assert_near("lse", lse, &expected_lse);
        }
        (out, lse)
    }
}

fn sinks(desc: &AttentionDesc) -> Vec<f32> {
    (0..HEADS_Q * desc.num_sinks)
        .map(|i| number(4, i))
        .collect()
}

fn all_equal<T: PartialEq>(of_ranks: &[T]) -> bool {
    of_ranks.iter().all(|x| *x == of_ranks[0])
}

/// Prompts of different lengths, then one token after the other, and several queries at once.
#[test]
fn decode_is_forward_over_the_same_tokens() {
    for world_size in [1, 3] {
        let ranks = on_ranks(world_size, |context, _| {
            let mut served = Served::new(&context);
            let sequences = [(); 3].map(|_| served.create());
            let [a, b, c] = sequences;
            served
                .append(&context, &sequences, &[2 * PAGE + 5, 0, PAGE])
                .unwrap();
            let mut results = Vec::new();
            for step in 0..4 {
                served.append(&context, &sequences, &[1, 1, 1]).unwrap();
                let desc = desc(3, 1).num_sinks(step % 2).softcap(step as f32);
                results.push(served.check(&context, &desc, &[c, a, b]));
            }
            let chunk = desc(3, 4).window_left(9);
            for schedule in [Schedule::PassQ, Schedule::Ring, Schedule::Auto] {
                let chunk = chunk.clone().schedule(schedule);
                results.push(served.check(&context, &chunk, &[b, a, b]));
                let ran = context.statistics().unwrap().schedule;
                assert_ne!(ran, Schedule::Auto);
                if world_size > 1 && schedule != Schedule::Auto {
                    assert_eq!(ran, schedule);
                }
            }
            results
        });
        assert!(all_equal(&ranks), "{world_size} ranks have the same bits");
    }
}

#[test]
fn sequences_fork_and_are_cut_off_and_freed() {
    on_ranks(2, |context, _| {
        let mut served = Served::new(&context);
        let a = served.create();
        served.append(&context, &[a], &[PAGE + 3]).unwrap();
        let pages_of_a = used_pages(&served.cache);
        let b = served.fork(a);
        assert!(a < b);
        assert_eq!(used_pages(&served.cache), pages_of_a, "both have them");

        served.append(&context, &[b, a], &[2, PAGE]).unwrap(); // each its own
        served.check(&context, &desc(2, 2), &[a, b]);
        let c = served.fork(b);
        served.truncate(b, 5);
        served.append(&context, &[b], &[1]).unwrap();
        served.check(&context, &desc(3, 3), &[a, b, c]);
        served.free(a);
        served.check(&context, &desc(2, 1), &[c, b]);

        let statistics = served.cache.statistics().unwrap();
        assert_eq!(statistics.num_sequences, 2);
        assert_eq!(statistics.num_tokens, 6 + PAGE + 3 + 2);
        let bytes = 8 * PAGE * HEADS_KV * (DIM + DIM_V) * 4;
        assert!(statistics.memory as i64 >= bytes);
        served.free(b);
        served.free(c);
        let statistics = served.cache.statistics().unwrap();
        assert_eq!(statistics.used_pages, 0);
        assert_eq!((statistics.free_pages, statistics.least_free_pages), (8, 8));
    });
}

fn used_pages(cache: &KvCache) -> i64 {
    cache.statistics().unwrap().used_pages
}

#[test]
fn what_is_refused_has_changed_nothing() {
    use Status::{InvalidArgument, NotSupported, OutOfMemory};
    on_ranks(2, |context, _| {
        let mut served = Served::new(&context);
        let [a, b, freed] = [(); 3].map(|_| served.create());
        served.append(&context, &[a, b], &[PAGE + 2, 3]).unwrap();
        served.free(freed);
        let before = served.cache.statistics().unwrap();
        let step = desc(2, 1);
        let expected = served.check(&context, &step, &[a, b]);

        // Sequences.
        let never = Sequence(100);
        let cache = &mut served.cache;
        assert_status(cache.free_sequence(freed), InvalidArgument, &["was freed"]);
        assert_status(cache.free_sequence(never), InvalidArgument, &["100"]);
        let none = Sequence(-1);
        assert_status(cache.fork_sequence(none), InvalidArgument, &["-1"]);
        assert_status(
            cache.fork_sequence(freed),
            InvalidArgument,
            &["sequence is 2", "was freed"],
        );
        assert_status(
            cache.truncate_sequence(b, 4),
            InvalidArgument,
            &["length is 4", "3"],
        );
        assert_status(cache.truncate_sequence(b, -1), InvalidArgument, &["-1"]);
        assert_status(cache.sequence_length(freed), InvalidArgument, &["freed"]);
        assert_status(cache.lost_tokens(b, 4), InvalidArgument, &["from is 4"]);
        assert_eq!(cache.lost_tokens(b, 0).unwrap(), 3, "none is");

        // Tokens.
        let many = (0..14 * PAGE).collect::<Vec<_>>();
        let (k, v) = (k_of(&many), v_of(&many));
        let half = vec![Bf16::default(); k.len()];
        let (of_a, both, with_freed) = ([a], [a, b], [a, freed]);
        let mut refused = |args: AppendArgs<'_>, status, words: &[&str]| {
            assert_status(context.append(&mut served.cache, args), status, words);
        };
        let args = || AppendArgs::new(&of_a, 14 * PAGE, &k, &v);
        refused(args(), OutOfMemory, &["rank 1 has 6 free pages", "7"]);
        let twice = [a, a];
        let two = AppendArgs::new(&twice, 1, &k, &v);
        refused(two, InvalidArgument, &["sequences[1]"]);
        let unknown = AppendArgs::new(&with_freed, 1, &k, &v);
        refused(unknown, InvalidArgument, &["sequences[1] is 2", "freed"]);
        let none = AppendArgs::new(&[], 1, &k, &v);
        refused(none, InvalidArgument, &["num_sequences is 0"]);
        let words = ["lengths has 2 entries", "num_sequences = 1"];
        refused(args().lengths(&[1, 1]), InvalidArgument, &words);
        refused(
            args().lengths(&[]),
            InvalidArgument,
            &["lengths has 0 entries"],
        );
        let words = ["positions has 2 entries", "num_sequences = 1"];
        refused(args().positions(&[0, 0]), InvalidArgument, &words);
        let words = ["lengths[0] is 225", "224"];
        refused(args().lengths(&[14 * PAGE + 1]), InvalidArgument, &words);
        refused(args().positions(&[0]), InvalidArgument, &["positions[0]"]);
        let short = AppendArgs::new(&of_a, 2, &k, &v[..23]);
        refused(short, InvalidArgument, &["v.size", "92", "96"]);
        let wrong = AppendArgs::new(&of_a, 1, &half, &v);
        let words = ["k holds BFLOAT16", "cache.dtype is FLOAT32"];
        refused(wrong, InvalidArgument, &words);
        let negative = AppendArgs::new(&of_a, -1, &k, &v);
        refused(negative, InvalidArgument, &["num_tokens is -1"]);

        // Queries, which the ranks do not even begin to attend.
        let q = q_of(&many);
        let mut refused = |context: &Context,
                           desc: &AttentionDesc,
                           sequences: &[Sequence],
                           status,
                           words: &[&str]| {
            let mut out = vec![7.0; 2 * (HEADS_Q * DIM_V * desc.seqlen_q) as usize];
            let args = DecodeArgs::new(sequences, &q, &mut out);
            let result = context.decode(&mut served.cache, desc, args);
            assert_status(result, status, words);
            assert!(out.iter().all(|&x| x == 7.0));
        };
        let mut wrong = |desc: &AttentionDesc, sequences: &[Sequence], words: &[&str]| {
            refused(&context, desc, sequences, InvalidArgument, words);
        };
        wrong(&step, &[a], &["num_sequences is 1", "batch = 2"]);
        wrong(&step, &with_freed, &["sequences[1] is 2", "freed"]);
        let words = ["sequences[1] is 1", "3 tokens", "seqlen_q = 4"];
        wrong(&desc(2, 4), &both, &words);
        let wide = step.clone().head_dim(16);
        wrong(&wide, &both, &["head_dim is 16", "8"]);
        let shorter = step.clone().seqlen_kv(8);
        wrong(&shorter, &both, &["seqlen_kv is 8"]);
        let gathered = step.clone().schedule(Schedule::AllGather);
        refused(&context, &gathered, &both, NotSupported, &["schedule"]);
        let other = Context::new(&ContextConfig::new().num_threads(1)).unwrap();
        let words = ["cache is of another context"];
        refused(&other, &step, &both, InvalidArgument, &words);
        let args = AppendArgs::new(&of_a, 1, &k, &v);
        let result = other.append(&mut served.cache, args);
        assert_status(result, InvalidArgument, &words);
        let (mut out, short) = ([0.0; 48], &q[..63]);
        let args = DecodeArgs::new(&both, short, &mut out);
        let result = context.decode(&mut served.cache, &step, args);
        assert_status(result, InvalidArgument, &["q.size", "252", "256"]);
        let mut lse = [0.0; 7];
        let args = DecodeArgs::new(&both, &q, &mut out).lse(&mut lse);
        let result = context.decode(&mut served.cache, &step, args);
        assert_status(result, InvalidArgument, &["lse_size", "28", "32"]);
        let sinks = [0.0; 4];
        let args = DecodeArgs::new(&both, &q, &mut out).sinks(&sinks);
        let result = context.decode(&mut served.cache, &step, args);
        assert_status(result, InvalidArgument, &["sinks"]);

        assert_eq!(served.cache.statistics().unwrap(), before);
        assert!(served.check(&context, &step, &[a, b]) == expected);
    });
}

#[test]
fn caches_that_cannot_be_are_refused() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    for (desc, words) in [
        (KvCacheDesc::new(), ["num_pages", "must be 1"]),
        (cache_desc().page_tokens(15), ["page_tokens is 15", "16"]),
        (cache_desc().head_dim(257), ["head_dim is 257", "256"]),
        (cache_desc().dtype(DType::Same), ["dtype", "0"]),
    ] {
        let result = KvCache::new(&context, &desc);
        assert_status(result, Status::InvalidArgument, &words);
    }
    assert_eq!(KvCacheDesc::new().page_tokens, 64);
    let cache = KvCache::new(&context, &cache_desc()).unwrap();
    assert_eq!(*cache.desc(), cache_desc());
}

#[test]
fn ranks_that_made_other_calls_are_a_mismatch() {
    let errors = on_ranks(2, |context, rank| {
        let mut served = Served::new(&context);
        let a = served.create();
        served.append(&context, &[a], &[3]).unwrap();
        if rank == 1 {
            served.create();
        }
        served.decode(&context, &desc(1, 1), &[a]).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.status(), Status::Mismatch, "{error}");
    }
}

/// A rank leaves while the others decode: these go on without it, once they have its tokens again.
#[test]
fn what_is_left_of_a_cache_goes_on_in_fewer_ranks() {
    let all_have_decoded = Barrier::new(3);
    let left = on_ranks(3, |context, rank| {
        let mut served = Served::new(&context);
        let [a, b] = [(); 2].map(|_| served.create());
        served
            .append(&context, &[a, b], &[5 * PAGE + 2, 7])
            .unwrap();
        served.check(&context, &desc(2, 1), &[a, b]);
        all_have_decoded.wait();
        if rank == 1 {
            return None;
        }
        let error = served.decode(&context, &desc(2, 1), &[a, b]).unwrap_err();
        // Of a call that began when another had found out.
        let known = error.status() == Status::InvalidState && error.message().contains("PEER_LOST");
        assert!(known || error.status() == Status::PeerLost, "{error}");
        assert_eq!(error.rank(), Some(1), "{error}");
        Some((served, a, b))
    });
    let left: Vec<_> = left.into_iter().map(Mutex::new).collect();
    let results = on_ranks(2, |context, rank| {
        let former = [0, 2];
        let (mut served, a, b) = left[former[rank as usize]].lock().unwrap().take().unwrap();
        let step = desc(2, 1);
        let before = served.cache.statistics().unwrap();

        let mut refused = |former: &[i32], words: &[&str]| {
            let result = served.cache.move_to(&context, former);
            assert_status(result, Status::InvalidArgument, words);
        };
        refused(
            &[0, 1, 2],
            &["former_ranks has 3 entries", "world_size = 2"],
        );
        refused(&[0], &["former_ranks has 1 entries"]);
        refused(&[0, 3], &["former_ranks[1] is 3", "2"]);
        refused(&[2, 2], &["former_ranks[1] is 2"]);
        refused(&[2, 0], &["must be"]);
        let none = [0f32; 0];
        let result = context.append(&mut served.cache, AppendArgs::new(&[a], 0, &none, &none));
        assert_status(result, Status::InvalidArgument, &["another context"]);
        assert_eq!(served.cache.statistics().unwrap(), before);
        served.cache.move_to(&context, &[0, 2]).unwrap();

        let result = served.decode(&context, &step, &[a, b]);
        assert_status(result, Status::InvalidState, &["lost tokens"]);
        let statistics = served.cache.statistics().unwrap();
        assert!(statistics.lost_pages > 0);
        assert_eq!(statistics.num_tokens, before.num_tokens);
        let mut given = 0;
        for sequence in [a, b] {
            let tokens = served.tokens[&sequence].clone();
            let length = tokens.len() as i64;
            loop {
                let first = served.cache.lost_tokens(sequence, 0).unwrap();
                if first == length {
                    break;
                }
                let end = length.min(first - first % PAGE + PAGE);
                let again = &tokens[first as usize..end as usize];
                let (k, v) = (k_of(again), v_of(again));
                let (whose, at) = ([sequence], [first]);
                let args = AppendArgs::new(&whose, end - first, &k, &v);
                context
                    .append(&mut served.cache, args.positions(&at))
                    .unwrap();
                given += 1;
            }
        }
        assert_eq!(given, statistics.lost_pages);
        let mut results = vec![served.check(&context, &step, &[a, b])];
        served.append(&context, &[a, b], &[1, PAGE]).unwrap();
        results.push(served.check(&context, &step, &[b, a]));
        results
    });
    assert!(all_equal(&results));
}

/// It needs no context to be asked, or dropped.
#[test]
fn a_cache_outlives_its_context() {
    let context = Context::new(&ContextConfig::new().num_threads(1)).unwrap();
    let mut served = Served::new(&context);
    let a = served.create();
    served.append(&context, &[a], &[PAGE]).unwrap();
    drop(context);
    let b = served.fork(a);
    served.truncate(b, 3);
    let again = Context::new(&ContextConfig::new().num_threads(1)).unwrap();
    served.cache.move_to(&again, &[0]).unwrap();
    served.append(&again, &[a, b], &[2, 1]).unwrap();
    served.check(&again, &desc(2, 2), &[a, b]);
}

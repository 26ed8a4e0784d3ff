//! Layers of multi-head attention, and sums over ranks: every argument reaches its place, and what one
//! cannot be is an error. That a layer computes what it should is the library's own tests' matter.

use ringattn::*;

#[path = "support/checks.rs"]
mod checks;
#[path = "support/ranks.rs"]
mod ranks;
use checks::{assert_near, assert_status, number};
use ranks::on_ranks;

const TOKENS: i64 = 24;
const D_MODEL: i64 = 10;

fn desc() -> AttentionDesc {
    AttentionDesc::new()
        .batch(2)
        .seqlen_q(TOKENS)
        .num_heads_q(4)
        .num_heads_kv(2)
        .head_dim(8)
        .head_dim_v(6)
        .mask(Mask::Causal)
        .sharding(Sharding::Zigzag)
}

fn mha() -> MhaDesc {
    MhaDesc::new()
        .d_model(D_MODEL)
        .rotary(Rotary::Halves)
        .has_qkv_bias(true)
        .has_out_bias(true)
        .normalize_heads(true)
}

/// Lists of the lengths of the weights, in their order: w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q,
/// norm_k.
type Lists = [Vec<f32>; 10];

fn lists(f: impl Fn(u64, i64) -> f32) -> Lists {
    let (q, k, v, attended) = (4 * 8, 2 * 8, 2 * 6, 4 * 6);
    let matrices = [D_MODEL * q, D_MODEL * k, D_MODEL * v, attended * D_MODEL];
    let vectors = [q, k, v, D_MODEL, 8, 8];
    let mut lengths = matrices.into_iter().chain(vectors).zip(0..);
    std::array::from_fn(|_| {
        let (length, list) = lengths.next().unwrap();
        (0..length).map(|i| f(list, i)).collect()
    })
}

fn some_weights() -> Lists {
    lists(|list, i| number(100 + list, i) / 2.0)
}

fn weights(lists: &Lists) -> MhaWeights<'_> {
    let [w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k] = lists;
    MhaWeights::new(w_q, w_k, w_v, w_o)
        .qkv_bias(b_q, b_k, b_v)
        .out_bias(b_o)
        .norms(norm_q, norm_k)
}

fn gradients(lists: &mut Lists) -> MhaGradients<'_> {
    let [dw_q, dw_k, dw_v, dw_o, db_q, db_k, db_v, db_o, dnorm_q, dnorm_k] = lists;
    MhaGradients::new(dw_q, dw_k, dw_v, dw_o)
        .qkv_bias(db_q, db_k, db_v)
        .out_bias(db_o)
        .norms(dnorm_q, dnorm_k)
}

/// What one rank has of a layer, and what the calls make of it. Tokens have numbers by their positions.
struct Shard {
    indices: Vec<i64>, // of its numbers in a whole [batch, TOKENS, D_MODEL]
    x: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    dx: Vec<f32>,
    gradients: Lists,
}

impl Shard {
    fn new(context: &Context, desc: &AttentionDesc) -> Self {
        let info = context.info().unwrap();
        let positions = desc
            .shard_positions(info.world_size, info.rank, Side::Query, ..)
            .unwrap();
        let rows = (0..desc.batch).flat_map(|b| positions.iter().map(move |p| b * TOKENS + p));
        let indices: Vec<i64> = rows
            .flat_map(|row| (0..D_MODEL).map(move |d| row * D_MODEL + d))
            .collect();
        let of = |seed| indices.iter().map(|&i| number(seed, i)).collect();
        Self {
            x: of(1),
            dout: of(2),
            out: of(3),
            dx: of(4),
            gradients: lists(|_, _| 7.0),
            indices,
        }
    }

    fn forward(
        &mut self,
        context: &Context,
        mha: &MhaDesc,
        lists: &Lists,
        activations: &mut Activations,
    ) -> Result<()> {
        let args = MhaForwardArgs::new(&self.x, weights(lists), &mut self.out);
        context.mha_forward(&desc(), mha, args.activations(activations))
    }

    fn backward_args<'a>(&'a mut self, lists: &'a Lists) -> MhaBackwardArgs<'a> {
        MhaBackwardArgs::new(&self.dout, &self.x, weights(lists))
            .dx(&mut self.dx)
            .gradients(gradients(&mut self.gradients))
    }

    /// Both passes.
    fn run(&mut self, context: &Context, mha: &MhaDesc, activations: &mut Activations) {
        let lists = some_weights();
        self.forward(context, mha, &lists, activations).unwrap();
        let args = self.backward_args(&lists).activations(activations);
        context
            .mha_backward(&desc(), mha, args.reduce(true))
            .unwrap();
    }
}

fn run(world_size: i32, mha: &MhaDesc) -> Vec<Shard> {
    on_ranks(world_size, |context, _| {
        let mut shard = Shard::new(&context, &desc());
        let mut activations = Activations::new(&context, &desc(), mha).unwrap();
        shard.run(&context, mha, &mut activations);
        shard
    })
}

#[test]
fn two_ranks_have_what_one_has() {
    let whole = run(1, &mha()).remove(0);
    let shards = run(2, &mha());
    for shard in &shards {
        let of = |whole: &[f32]| -> Vec<f32> {
            let numbers = shard.indices.iter().map(|&i| whole[i as usize]);
            numbers.collect()
        };
        assert_near("out", &shard.out, &of(&whole.out));
        assert_near("dx", &shard.dx, &of(&whole.dx));
        for (i, gradient) in shard.gradients.iter().enumerate() {
            assert_near("a gradient", gradient, &whole.gradients[i]);
            assert_eq!(gradient, &shards[0].gradients[i], "sums are the same bits");
        }
    }
}

/// The gradients of each weight are its own: they say how out changes with it.
#[test]
fn gradients_are_of_their_weights() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let mha = mha();
    let mut activations = Activations::new(&context, &desc(), &mha).unwrap();
    let mut shard = Shard::new(&context, &desc());
    shard.run(&context, &mha, &mut activations);
    let mut loss = |lists: &Lists| -> f64 {
        shard
            .forward(&context, &mha, lists, &mut activations)
            .unwrap();
        let products = shard.out.iter().zip(&shard.dout);
        products.map(|(&o, &d)| f64::from(o) * f64::from(d)).sum()
    };
    const STEP: f32 = 1.0 / 128.0;
    let mut losses = |i: usize| {
        [STEP, -STEP].map(|step| {
            let mut moved = some_weights();
            for (n, weight) in moved[i].iter_mut().enumerate() {
                *weight += step * number(200, n as i64);
            }
            loss(&moved)
        })
    };
    let slopes: Vec<f64> = (0..10)
        .map(|i| {
            let [up, down] = losses(i);
            (up - down) / (2.0 * f64::from(STEP))
        })
        .collect();
    for (i, slope) in slopes.into_iter().enumerate() {
        let along = shard.gradients[i].iter().zip(0..);
        let expected: f64 = along
            .map(|(&g, n)| f64::from(g) * f64::from(number(200, n)))
            .sum();
        assert!(
            (slope - expected).abs() <= 0.02 * (1.0 + expected.abs()),
            "weight {i}: {slope} is not {expected}"
        );
    }
}

/// What is kept, and what is computed again, changes nothing; neither does what activations held before.
#[test]
fn each_checkpoint_gives_the_same_bits() {
    let ranks = on_ranks(2, |context, _| {
        [Checkpoint::Attention, Checkpoint::All, Checkpoint::Input].map(|checkpoint| {
            let mha = mha().checkpoint(checkpoint);
            let mut activations = Activations::new(&context, &desc(), &mha).unwrap();
            let needs = context.mha_requirements(&desc(), &mha).unwrap();
            assert_eq!(activations.size(), needs.activations);
            assert_eq!(activations.size() == 0, checkpoint == Checkpoint::Input);
            let mut shard = Shard::new(&context, &desc());
            for _ in 0..2 {
                shard.run(&context, &mha, &mut activations);
                assert!(context.statistics().unwrap().projection_seconds > 0.0);
            }
            (shard.out, shard.dx, shard.gradients)
        })
    });
    for [attention, all, input] in ranks {
        assert!(attention == all && all == input);
    }
}

/// Two micro-batches, of which the second reduces, are twice one.
#[test]
fn gradients_accumulate() {
    let once = run(2, &mha());
    let lists = some_weights();
    on_ranks(2, |context, rank| {
        let mut shard = Shard::new(&context, &desc());
        let mut activations = Activations::new(&context, &desc(), &mha()).unwrap();
        for last in [false, true] {
            shard
                .forward(&context, &mha(), &lists, &mut activations)
                .unwrap();
            let args = shard.backward_args(&lists).activations(&activations);
            context
                .mha_backward(&desc(), &mha(), args.accumulate(last).reduce(last))
                .unwrap();
        }
        let once = &once[rank as usize];
        assert_eq!(shard.dx, once.dx);
        for (i, gradient) in shard.gradients.iter().enumerate() {
            let twice: Vec<f32> = once.gradients[i].iter().map(|g| 2.0 * g).collect();
            assert_near("a gradient", gradient, &twice);
        }
    });
}

/// Of no gradient but one; and of a layer that has neither biases nor norms.
#[test]
fn what_is_not_wanted_is_left_out() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let mha = MhaDesc::new().d_model(D_MODEL);
    let mut activations = Activations::new(&context, &desc(), &mha).unwrap();
    let mut shard = Shard::new(&context, &desc());
    let [w_q, w_k, w_v, w_o, ..] = &some_weights();
    let weights = MhaWeights::new(w_q, w_k, w_v, w_o);
    let args = MhaForwardArgs::new(&shard.x, weights, &mut shard.out);
    context
        .mha_forward(&desc(), &mha, args.activations(&mut activations))
        .unwrap();
    let wanted = MhaGradients {
        dw_v: Some((&mut shard.gradients[2]).into()),
        ..MhaGradients::default()
    };
    let args = MhaBackwardArgs::new(&shard.dout, &shard.x, weights)
        .activations(&activations)
        .gradients(wanted);
    context.mha_backward(&desc(), &mha, args).unwrap();
    assert!(shard.gradients[2].iter().all(|&g| g != 7.0));
}

/// Rows of a matrix that has the weights of q, k and v side by side.
#[test]
fn weights_have_strides() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let mut shard = Shard::new(&context, &desc());
    let lists = some_weights();
    let (widths, row) = ([32, 16, 12], 60);
    let mut together = vec![0f32; (D_MODEL * row) as usize];
    let mut first = 0;
    for (list, width) in lists.iter().zip(widths) {
        for (from, to) in list.chunks(width).zip(together.chunks_mut(row as usize)) {
            to[first..first + width].copy_from_slice(from);
        }
        first += width;
    }
    let part = |first: usize| Tensor::from(&together[first..]).strides(0, row, 0);
    let mha = mha().checkpoint(Checkpoint::Input);
    let apart = weights(&lists);
    let args = MhaForwardArgs::new(&shard.x, apart, &mut shard.out);
    context.mha_forward(&desc(), &mha, args).unwrap();
    let mut out = shard.out.clone();
    out.fill(0.0);
    let together = MhaWeights {
        w_q: part(0),
        w_k: part(32),
        w_v: part(48),
        ..apart
    };
    let args = MhaForwardArgs::new(&shard.x, together, &mut out);
    context.mha_forward(&desc(), &mha, args).unwrap();
    assert_near("out", &out, &shard.out);
}

fn refused(result: Result<()>, words: &[&str]) {
    assert_status(result, Status::InvalidArgument, words);
}

#[test]
fn wrong_arguments_are_refused_with_the_numbers() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let (desc, mha, lists) = (desc(), mha(), some_weights());
    let mut shard = Shard::new(&context, &desc);
    let mut activations = Activations::new(&context, &desc, &mha).unwrap();
    let half = vec![Bf16::default(); 480];

    let mut forward = |desc: &AttentionDesc,
                       mha: &MhaDesc,
                       x: Tensor<'_>,
                       weights: MhaWeights<'_>,
                       activations: Option<&mut Activations>,
                       words: &[&str]| {
        let args = MhaForwardArgs {
            activations,
            ..MhaForwardArgs::new(x, weights, &mut shard.out)
        };
        refused(context.mha_forward(desc, mha, args), words);
    };
    let (x, w) = (shard.x.clone(), weights(&lists));
    let x = Tensor::from(&x);
    let words = ["x holds BFLOAT16", "dtype is FLOAT32"];
    forward(&desc, &mha, (&half).into(), w, None, &words);
    let norms = w.norms(&half, &lists[9]);
    forward(&desc, &mha, x, norms, None, &["norm_q holds BFLOAT16"]);
    let none = MhaWeights { b_k: None, ..w };
    forward(&desc, &mha, x, none, None, &["b_k", "NULL"]);
    let plain = MhaDesc::new().d_model(D_MODEL);
    forward(&desc, &plain, x, w, None, &["b_q", "NULL"]);
    let short = MhaWeights::new(&lists[0][1..], &lists[1], &lists[2], &lists[3]);
    forward(&desc, &plain, x, short, None, &["w_q.size", "1276", "1280"]);
    forward(&desc, &mha, x, w, None, &["activations is NULL"]);
    let shorter = desc.clone().seqlen_q(TOKENS / 2);
    let few = &mut Activations::new(&context, &shorter, &mha).unwrap();
    forward(&desc, &mha, x, w, Some(few), &["activations_size"]);
    let wide = mha.clone().d_model(1 << 30);
    forward(&desc, &wide, x, w, None, &["d_model", "1073741824"]);
    let biased = desc.clone().has_key_bias(true);
    forward(&biased, &mha, x, w, None, &["has_key_bias"]);
    let error = Activations::new(&context, &biased, &mha).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);

    shard
        .forward(&context, &mha, &lists, &mut activations)
        .unwrap();
    let mut half = half;
    let mut args = shard.backward_args(&lists).activations(&activations);
    args.gradients.dw_k = Some((&mut half).into());
    let words = ["dw_k holds BFLOAT16; must be FLOAT32"];
    refused(context.mha_backward(&desc, &mha, args), &words);
    let args = MhaBackwardArgs {
        dx: Some((&mut half).into()),
        ..shard.backward_args(&lists).activations(&activations)
    };
    let words = ["dx holds BFLOAT16", "grad_dtype is FLOAT32"];
    refused(context.mha_backward(&desc, &mha, args), &words);
    let args = shard.backward_args(&lists);
    refused(
        context.mha_backward(&desc, &mha, args),
        &["activations is NULL"],
    );
    let input = mha.checkpoint(Checkpoint::Input);
    let args = shard.backward_args(&lists).activations(&activations);
    refused(
        context.mha_backward(&desc, &input, args),
        &["activations is set"],
    );
}

#[test]
fn layers_that_differ_are_a_mismatch() {
    let errors = on_ranks(2, |context, rank| {
        let mha = mha().rotary_base(if rank == 0 { 10_000.0 } else { 500.0 });
        let mut activations = Activations::new(&context, &desc(), &mha).unwrap();
        Shard::new(&context, &desc())
            .forward(&context, &mha, &some_weights(), &mut activations)
            .unwrap_err()
    });
    for error in errors {
        assert_eq!(error.status(), Status::Mismatch, "{error}");
        assert!(error.message().contains("rotary_base"), "{error}");
    }
}

#[test]
fn all_reduce_sums_over_ranks() {
    for world_size in [1, 2] {
        let lists = on_ranks(world_size, |context, rank| {
            let mut data: Vec<f32> = (0..1001).map(|i| number(rank as u64, i)).collect();
            context.all_reduce(&mut data).unwrap();
            context.all_reduce(&mut []).unwrap();
            data
        });
        for data in &lists {
            for (i, sum) in (0..).zip(data) {
                let expected = (0..world_size).map(|r| number(r as u64, i)).sum::<f32>();
                assert_eq!(*sum, expected, "{i} of {world_size} ranks");
            }
        }
    }
    let errors = on_ranks(2, |context, rank| {
        context
            .all_reduce(&mut vec![0.0; 10 + rank as usize])
            .unwrap_err()
    });
    for error in errors {
        assert_eq!(error.status(), Status::Mismatch, "{error}");
    }
}

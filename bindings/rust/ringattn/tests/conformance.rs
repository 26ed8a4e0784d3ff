//! Executes bindings/conformance/cases.json, as its README says, and compares with what C got.
//! RINGATTN_CONFORMANCE names another file of cases, RINGATTN_CONFORMANCE_RESULTS what C got; without
//! the latter, results are compared with the expected ones only, unless
//! RINGATTN_CONFORMANCE_REQUIRED is set.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Display;

use ringattn::*;
use serde_json::{json, Value};

#[path = "support/elements.rs"]
mod elements;
#[path = "generated/fields.rs"]
#[allow(dead_code)] // no case has some of the records
mod fields;
#[path = "support/json.rs"]
mod json;
use elements::Elements;

/// `f` of each case in a list; the names of those that failed, with the reason, fail the test.
fn for_each_case(list: &str, f: impl Fn(&str, &Value) -> Result<(), String>) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/cases.json");
    let path = std::env::var("RINGATTN_CONFORMANCE").unwrap_or(folder.into());
    let cases = read_json(&path);
    let cases = cases[list].as_array().expect("a list of cases");
    let run = |case: &Value| {
        let name = case["name"].as_str().expect("each case has a name");
        f(name, case)
            .err()
            .map(|reason| format!("{name}: {reason}"))
    };
    let failures: Vec<String> = cases.iter().filter_map(run).collect();
    println!("{} {list}, {} failed", cases.len(), failures.len());
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn read_json(path: &str) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn to_text(error: impl Display) -> String {
    error.to_string()
}

fn config_of(case: &Value) -> ContextConfig {
    let mut config = ContextConfig::new();
    for (field, value) in case["config"].as_object().into_iter().flatten() {
        fields::set_context_config(&mut config, field, value);
    }
    config
}

/// The description of a case, with what it leaves to the library made explicit; of a layer, if the
/// case has a mha.
struct Problem {
    desc: AttentionDesc,
    mha: Option<MhaDesc>,
    seqlen_kv: i64,
    num_heads_kv: i64,
    head_dim_v: i64,
}

/// Of a tensor: whose rows it has, its heads and their elements.
struct Kind {
    side: Side,
    heads: i64,
    dim: i64,
    dtype: DType,
}

impl Problem {
    fn of(case: &Value) -> Self {
        let mut desc = AttentionDesc::new();
        for (field, value) in case["desc"].as_object().into_iter().flatten() {
            fields::set_attention_desc(&mut desc, field, value);
        }
        let mha = case["mha"].as_object().map(|all| {
            let mut mha = MhaDesc::new();
            for (field, value) in all {
                fields::set_mha_desc(&mut mha, field, value);
            }
            mha
        });
        let or = |value, none, other| if value == none { other } else { value };
        Self {
            seqlen_kv: or(desc.seqlen_kv, -1, desc.seqlen_q),
            num_heads_kv: or(desc.num_heads_kv, 0, desc.num_heads_q),
            head_dim_v: or(desc.head_dim_v, 0, desc.head_dim),
            desc,
            mha,
        }
    }

    /// How many numbers each weight has, in the order of `WEIGHTS`; 0 where the layer has none.
    fn lengths(&self, mha: &MhaDesc) -> [i64; 10] {
        let (heads_q, heads_kv) = (self.desc.num_heads_q, self.num_heads_kv);
        let (dim, dim_v, n) = (self.desc.head_dim, self.head_dim_v, mha.d_model);
        let [q, k, v] = [heads_q * dim, heads_kv * dim, heads_kv * dim_v];
        let attended = heads_q * dim_v;
        let has = [mha.has_qkv_bias, mha.has_out_bias, mha.normalize_heads];
        let [b, o, norm] = has.map(i64::from);
        let [b_q, b_k, b_v, b_o] = [b * q, b * k, b * v, o * n];
        let norm = norm * dim;
        [
            n * q,
            n * k,
            n * v,
            attended * n,
            b_q,
            b_k,
            b_v,
            b_o,
            norm,
            norm,
        ]
    }

    fn kind(&self, name: &str) -> Kind {
        let of_query = |dim, dtype| (Side::Query, self.desc.num_heads_q, dim, dtype);
        let of_key = |dim, dtype| (Side::KeyValue, self.num_heads_kv, dim, dtype);
        let (side, heads, dim, dtype) = match name {
            "q" => of_query(self.desc.head_dim, self.desc.dtype),
            "k" => of_key(self.desc.head_dim, self.desc.dtype),
            "v" => of_key(self.head_dim_v, self.desc.dtype),
            "out" | "dout" => of_query(self.head_dim_v, self.desc.out_dtype),
            "lse" => of_query(1, DType::Float32),
            "key_bias" => (Side::KeyValue, 1, 1, DType::Float32),
            "dq" => of_query(self.desc.head_dim, self.desc.grad_dtype),
            "dk" => of_key(self.desc.head_dim, self.desc.grad_dtype),
            "dv" => of_key(self.head_dim_v, self.desc.grad_dtype),
            "x" => of_query(0, self.desc.dtype),
            "dx" => of_query(0, self.desc.grad_dtype),
            _ => panic!("no tensor {name}"),
        };
        let dtype = if dtype == DType::Same {
            self.desc.dtype
        } else {
            dtype
        };
        let (heads, dim) = match &self.mha {
            Some(mha) => (1, mha.d_model), // all are of tokens
            None => (heads, dim),
        };
        Kind {
            side,
            heads,
            dim,
            dtype,
        }
    }

    fn seqlen(&self, side: Side) -> i64 {
        if side == Side::Query {
            self.desc.seqlen_q
        } else {
            self.seqlen_kv
        }
    }

    /// A tensor of `rows` tokens, whose elements are `at` of their indices.
    fn elements(&self, name: &str, rows: i64, at: impl Fn(u64) -> f32) -> Elements {
        let kind = self.kind(name);
        Elements::new(
            kind.dtype,
            (self.desc.batch * rows * kind.heads * kind.dim) as usize,
            at,
        )
    }
}

// ---------------------------------------------------------------- results

type Tensors = BTreeMap<&'static str, Elements>;
const INPUTS: [&str; 4] = ["q", "k", "v", "dout"];
const OUTPUTS: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

/// Element i of tensor t, in the order q, k, v, dout, dq, dk, dv, key_bias, sinks, dsinks.
fn input(seed: u64, t: u64, i: u64) -> f32 {
    let mut z = ((seed * 16 + t) << 32)
        .wrapping_add(i)
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 57) as f32 / 64.0 - 1.0
}

/// lse [batch, heads, n] as a tensor [batch, n, heads, 1].
fn strides(name: &str, heads: i64, n: i64) -> [i64; 3] {
    if name == "lse" {
        [heads * n, 1, n]
    } else {
        [0, 0, 0]
    }
}

/// Sinks, or with `t` 9 their gradients, which begin with these numbers.
fn of_sinks(problem: &Problem, t: u64, at: impl Fn(u64, u64) -> f32) -> Vec<f32> {
    let len = problem.desc.num_heads_q * problem.desc.num_sinks;
    (0..len as u64).map(|i| at(t, i)).collect()
}

fn world_size_of(case: &Value) -> i32 {
    json::number(&case["world_size"])
}

fn seed_of(case: &Value) -> u64 {
    case["seed"].as_u64().expect("a seed")
}

fn join_group(case: &Value, id: &UniqueId, world_size: i32, rank: i32) -> Result<Context> {
    let config = config_of(case).rank(rank);
    Context::new(&config.world_size(world_size).unique_id(id))
}

/// A rank's shards of all tensors.
fn split(problem: &Problem, whole: &Tensors, world_size: i32, rank: i32) -> Result<Tensors> {
    let mut shards = Tensors::new();
    for (&name, whole) in whole {
        let kind = problem.kind(name);
        let rows = problem.desc.shard_length(world_size, rank, kind.side)?;
        let mut shard = problem.elements(name, rows, |_| 0.0);
        let [batch, seq, head] = strides(name, kind.heads, problem.seqlen(kind.side));
        let from = whole.tensor().strides(batch, seq, head);
        let [batch, seq, head] = strides(name, kind.heads, rows);
        let to = shard.tensor_mut().strides(batch, seq, head);
        let (side, num_heads, dim) = (kind.side, kind.heads, kind.dim);
        let args = SplitArgs {
            side,
            num_heads,
            dim,
            whole: from,
            shard: to,
        };
        problem.desc.split_sequence(world_size, rank, args)?;
        shards.insert(name, shard);
    }
    Ok(shards)
}

/// The other way round, of what a rank has.
fn join(
    problem: &Problem,
    shards: &Tensors,
    world_size: i32,
    rank: i32,
    whole: &mut Tensors,
) -> Result<()> {
    for (&name, shard) in shards {
        let kind = problem.kind(name);
        let rows = problem.desc.shard_length(world_size, rank, kind.side)?;
        let [batch, seq, head] = strides(name, kind.heads, rows);
        let from = shard.tensor().strides(batch, seq, head);
        let [batch, seq, head] = strides(name, kind.heads, problem.seqlen(kind.side));
        let to = whole.get_mut(name).expect("was inserted").tensor_mut();
        let to = to.strides(batch, seq, head);
        let (side, num_heads, dim) = (kind.side, kind.heads, kind.dim);
        let args = JoinArgs {
            side,
            num_heads,
            dim,
            shard: from,
            whole: to,
        };
        problem.desc.join_sequence(world_size, rank, args)?;
    }
    Ok(())
}

/// What `f` gives for each rank, on a thread of its own.
fn on_ranks<T: Send, E: Send>(
    world_size: i32,
    f: impl Fn(i32) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let f = &f;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| scope.spawn(move || f(rank)))
            .collect();
        let joined = ranks.into_iter().map(|rank| rank.join().unwrap());
        joined.collect()
    })
}

fn run_rank(
    case: &Value,
    problem: &Problem,
    whole: &Tensors,
    id: &UniqueId,
    rank: i32,
) -> Result<(Tensors, Vec<f32>)> {
    let context = join_group(case, id, world_size_of(case), rank)?;
    let desc = &problem.desc;
    let mut shards = split(problem, whole, world_size_of(case), rank)?;
    let [mut out, mut lse, mut dq, mut dk, mut dv] =
        OUTPUTS.map(|name| shards.remove(name).expect("was inserted"));
    let mut key_bias = shards.remove("key_bias");
    let key_bias = key_bias.as_mut().map(|bias| &*bias.floats());
    let [q, k, v, dout] = INPUTS.map(|name| shards[name].tensor());
    let seed = seed_of(case);
    let accumulate = case["accumulate"] == true;
    let sinks = of_sinks(problem, 8, |t, i| input(seed, t, i));
    let sinks = (!sinks.is_empty()).then_some(&sinks[..]);
    let is_begun = accumulate && rank == 0;
    let begin = |t, i| if is_begun { input(seed, t, i) } else { 0.0 };
    let mut dsinks = of_sinks(problem, 9, begin);
    let forward = ForwardArgs {
        key_bias,
        sinks,
        ..ForwardArgs::new(q, k, v, out.tensor_mut()).lse(lse.floats())
    };
    context.forward(desc, forward)?;
    let args = BackwardArgs {
        dout,
        q,
        k,
        v,
        out: out.tensor(),
        lse: lse.floats(),
        dq: dq.tensor_mut(),
        dk: dk.tensor_mut(),
        dv: dv.tensor_mut(),
        accumulate,
        key_bias,
        sinks,
        dsinks: sinks.is_some().then_some(&mut dsinks),
    };
    context.backward(desc, args)?;
    let outputs = OUTPUTS.into_iter().zip([out, lse, dq, dk, dv]).collect();
    Ok((outputs, dsinks))
}

/// Of each pair 1 where it is kept, else 0: `[batch, num_heads_q, seqlen_q, seqlen_kv]`.
fn dropout_mask(problem: &Problem) -> Result<Elements> {
    let (desc, keys) = (&problem.desc, problem.seqlen_kv);
    let mut all = Vec::new();
    for entry in 0..desc.batch {
        for head in 0..desc.num_heads_q {
            for query in 0..desc.seqlen_q {
                for part in [0..keys / 3, keys / 3..keys] {
                    all.extend(desc.dropout_mask(entry, head, query, part)?);
                }
            }
        }
    }
    let at = |i| f32::from(u8::from(all[i as usize]));
    Ok(Elements::new(DType::Float32, all.len(), at))
}

/// Whole tensors of what all ranks got.
fn run_result(case: &Value) -> Result<Tensors> {
    let problem = &Problem::of(case);
    let (world_size, seed) = (world_size_of(case), seed_of(case));
    let mut whole = Tensors::new();
    for (t, name) in (0..).zip(["q", "k", "v", "dout", "dq", "dk", "dv", "out", "lse"]) {
        let is_input = t < 4 || (t < 7 && case["accumulate"] == true);
        let at = |i| if is_input { input(seed, t, i) } else { 0.0 };
        let rows = problem.seqlen(problem.kind(name).side);
        whole.insert(name, problem.elements(name, rows, at));
    }
    if problem.desc.has_key_bias {
        let at = |i| input(seed, 7, i);
        whole.insert(
            "key_bias",
            problem.elements("key_bias", problem.seqlen_kv, at),
        );
    }
    let id = &UniqueId::new(Transport::Local, None)?;
    let of_ranks = on_ranks(world_size, |rank| run_rank(case, problem, &whole, id, rank))?;
    let mut shares = of_ranks.iter().map(|(_, dsinks)| dsinks);
    let mut dsinks = shares.next().expect("a rank").clone();
    for share in shares {
        for (sum, x) in dsinks.iter_mut().zip(share) {
            *sum += x;
        }
    }
    let dsinks = Elements::new(DType::Float32, dsinks.len(), |i| dsinks[i as usize]);
    whole.insert("dsinks", dsinks);
    if problem.desc.dropout_probability > 0.0 {
        whole.insert("dropout_mask", dropout_mask(problem)?);
    }
    for (rank, (shards, _)) in (0..).zip(&of_ranks) {
        join(problem, shards, world_size, rank, &mut whole)?;
    }
    Ok(whole)
}

fn check_result<Name: Borrow<str> + Ord>(
    name: &str,
    case: &Value,
    of_c: Option<&Value>,
    got: &BTreeMap<Name, Elements>,
) -> Result<(), String> {
    for (tensor, expected) in case["expected"].as_object().expect("expected results") {
        let tolerance: f32 = json::number(&expected["tolerance"]);
        let (at, values) = (expected["at"].as_array(), expected["values"].as_array());
        for (index, value) in at.expect("a list").iter().zip(values.expect("a list")) {
            let index = index.as_u64().expect("an index") as usize;
            let (got, expected) = (got[&**tensor].at(index), json::number::<f32>(value));
            let is_right = got == expected || (got - expected).abs() <= tolerance;
            if !is_right {
                return Err(format!(
                    "{tensor}[{index}] is {got}, not {expected} +- {tolerance}"
                ));
            }
        }
        let hash = got[&**tensor].hash();
        match of_c.map(|all| &all[name][tensor]) {
            Some(of_c) if *of_c != hash => {
                return Err(format!(
                    "the bytes of {tensor} are not those of C: {hash}, {of_c}"
                ))
            }
            _ => {}
        }
    }
    Ok(())
}

/// What `run` gets of each case in a list.
fn check_results<Name: Borrow<str> + Ord, E: Display>(
    list: &str,
    run: impl Fn(&Value) -> Result<BTreeMap<Name, Elements>, E>,
) {
    let path = std::env::var("RINGATTN_CONFORMANCE_RESULTS").ok();
    let is_required = std::env::var_os("RINGATTN_CONFORMANCE_REQUIRED").is_some();
    assert!(
        path.is_some() || !is_required,
        "RINGATTN_CONFORMANCE_RESULTS is not set"
    );
    let of_c = path.map(|path| read_json(&path));
    for_each_case(list, |name, case| {
        check_result(name, case, of_c.as_ref(), &run(case).map_err(to_text)?)
    });
}

#[test]
fn results() {
    check_results("results", run_result);
}

// ---------------------------------------------------------------- layers

/// Of a layer, with their gradients.
const WEIGHTS: [(&str, &str); 10] = [
    ("w_q", "dw_q"),
    ("w_k", "dw_k"),
    ("w_v", "dw_v"),
    ("w_o", "dw_o"),
    ("b_q", "db_q"),
    ("b_k", "db_k"),
    ("b_v", "db_v"),
    ("b_o", "db_o"),
    ("norm_q", "dnorm_q"),
    ("norm_k", "dnorm_k"),
];
/// In that order; without elements where the layer has none.
type Weights = [Strided; 10];

/// Weight n is tensor n + 1, whose elements are `at` of its number and their indices.
fn make_weights(lengths: [i64; 10], dtype: DType, at: impl Fn(u64, u64) -> f32) -> Weights {
    std::array::from_fn(|n| Strided {
        elements: Elements::new(dtype, lengths[n] as usize, |i| at(n as u64 + 1, i)),
        strides: [0; 3],
    })
}

fn read(weights: &Weights) -> MhaWeights<'_> {
    let [w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o, norm_q, norm_k] = weights;
    MhaWeights {
        w_q: w_q.tensor(),
        w_k: w_k.tensor(),
        w_v: w_v.tensor(),
        w_o: w_o.tensor(),
        b_q: b_q.some(),
        b_k: b_k.some(),
        b_v: b_v.some(),
        b_o: b_o.some(),
        norm_q: norm_q.some(),
        norm_k: norm_k.some(),
    }
}

fn written(gradients: &mut Weights) -> MhaGradients<'_> {
    let [dw_q, dw_k, dw_v, dw_o, db_q, db_k, db_v, db_o, dnorm_q, dnorm_k] = gradients;
    MhaGradients {
        dw_q: dw_q.some_mut(),
        dw_k: dw_k.some_mut(),
        dw_v: dw_v.some_mut(),
        dw_o: dw_o.some_mut(),
        db_q: db_q.some_mut(),
        db_k: db_k.some_mut(),
        db_v: db_v.some_mut(),
        db_o: db_o.some_mut(),
        dnorm_q: dnorm_q.some_mut(),
        dnorm_k: dnorm_k.some_mut(),
    }
}

fn run_layer_of_rank(
    case: &Value,
    problem: &Problem,
    mha: &MhaDesc,
    whole: &Tensors,
    weights: &Weights,
    id: &UniqueId,
    rank: i32,
) -> Result<(Tensors, Weights)> {
    let context = join_group(case, id, world_size_of(case), rank)?;
    let (desc, seed) = (&problem.desc, seed_of(case));
    let [accumulate, reduce] = ["accumulate", "reduce"].map(|name| case[name] == true);
    let mut shards = split(problem, whole, world_size_of(case), rank)?;
    let [mut out, mut dx] = ["out", "dx"].map(|name| shards.remove(name).expect("was inserted"));
    let is_begun = accumulate && rank == 0;
    let begin = |t, i| {
        if is_begun {
            input(seed, t + 16, i)
        } else {
            0.0
        }
    };
    let mut gradients = make_weights(problem.lengths(mha), DType::Float32, begin);
    let mut activations = Activations::new(&context, desc, mha)?;
    let (x, dout) = (shards["x"].tensor(), shards["dout"].tensor());
    let args = MhaForwardArgs::new(x, read(weights), out.tensor_mut());
    context.mha_forward(desc, mha, args.activations(&mut activations))?;
    let args = MhaBackwardArgs::new(dout, x, read(weights))
        .activations(&activations)
        .dx(dx.tensor_mut())
        .gradients(written(&mut gradients))
        .accumulate(accumulate)
        .reduce(reduce);
    context.mha_backward(desc, mha, args)?;
    if !reduce {
        for gradient in &mut gradients {
            if !gradient.elements.is_empty() {
                context.all_reduce(gradient.elements.floats())?;
            }
        }
    }
    Ok((Tensors::from([("out", out), ("dx", dx)]), gradients))
}

/// Whole tensors of what all ranks got.
fn run_layer(case: &Value) -> Result<Tensors> {
    let problem = &Problem::of(case);
    let mha = problem.mha.as_ref().expect("a mha");
    let (world_size, seed) = (world_size_of(case), seed_of(case));
    let make = |name, t: Option<u64>| {
        let at = |i| t.map_or(0.0, |t| input(seed, t, i));
        (name, problem.elements(name, problem.desc.seqlen_q, at))
    };
    let tokens = [
        ("x", Some(0)),
        ("dout", Some(11)),
        ("out", None),
        ("dx", None),
    ];
    let mut whole = Tensors::from(tokens.map(|(name, t)| make(name, t)));
    let at = |t, i| input(seed, t, i);
    let weights = make_weights(problem.lengths(mha), problem.desc.dtype, at);
    let id = &UniqueId::new(Transport::Local, None)?;
    let mut of_ranks = on_ranks(world_size, |rank| {
        run_layer_of_rank(case, problem, mha, &whole, &weights, id, rank)
    })?;
    for (rank, (shards, gradients)) in (0..).zip(&of_ranks) {
        join(problem, shards, world_size, rank, &mut whole)?;
        for (n, gradient) in gradients.iter().enumerate() {
            let of_first = &of_ranks[0].1[n].elements;
            assert_eq!(
                gradient.elements.hash(),
                of_first.hash(),
                "{}",
                WEIGHTS[n].1
            );
        }
    }
    let gradients = of_ranks.swap_remove(0).1;
    let named = WEIGHTS.iter().zip(gradients);
    whole.extend(named.map(|((_, name), gradient)| (*name, gradient.elements)));
    Ok(whole)
}

#[test]
fn layers() {
    check_results("layers", run_layer);
}

// ---------------------------------------------------------------- caches

/// A rank, between two calls of a case.
struct CacheUser<'a> {
    case: &'a Value,
    rank: i32,
    context: Context,
    cache: KvCache,
    results: BTreeMap<String, Elements>,
}

fn cache_desc_of(case: &Value) -> KvCacheDesc {
    let mut desc = KvCacheDesc::new();
    for (field, value) in case["cache"].as_object().into_iter().flatten() {
        fields::set_kv_cache_desc(&mut desc, field, value);
    }
    desc
}

fn sequences_of(call: &Value) -> Vec<Sequence> {
    let numbers = json::list(&call["sequences"]).expect("sequences");
    numbers.into_iter().map(Sequence).collect()
}

/// A tensor of `len` numbers, unless the call says of how many.
fn of_call(call: &Value, name: &str, dtype: DType, len: i64, at: impl Fn(u64) -> f32) -> Elements {
    let len = call["elements"][name].as_i64().unwrap_or(len);
    Elements::new(dtype, len as usize, at)
}

impl CacheUser<'_> {
    fn append(&mut self, call: &Value, seed: u64) -> Result<()> {
        let desc = self.cache.desc();
        let (sequences, num_tokens) = (sequences_of(call), json::number(&call["num_tokens"]));
        let heads = sequences.len() as i64 * num_tokens * desc.num_heads_kv;
        let tensor =
            |name, t, dim| of_call(call, name, desc.dtype, heads * dim, |i| input(seed, t, i));
        let dim_v = match desc.head_dim_v {
            0 => desc.head_dim,
            dim_v => dim_v,
        };
        let (k, v) = (tensor("k", 1, desc.head_dim), tensor("v", 2, dim_v));
        let [lengths, positions] = ["lengths", "positions"].map(|name| json::list(&call[name]));
        let args = AppendArgs {
            lengths: lengths.as_deref(),
            positions: positions.as_deref(),
            ..AppendArgs::new(&sequences, num_tokens, k.tensor(), v.tensor())
        };
        self.context.append(&mut self.cache, args)
    }

    fn decode(&mut self, call: &Value, seed: u64, n: usize) -> Result<()> {
        let mut case = json!({"desc": self.case["desc"]});
        for (field, value) in call["desc"].as_object().into_iter().flatten() {
            case["desc"][field] = value.clone();
        }
        let problem = Problem::of(&case);
        let (desc, sequences) = (&problem.desc, sequences_of(call));
        let tensor = |name, t: Option<u64>| {
            let kind = problem.kind(name);
            let len = desc.batch * desc.seqlen_q * kind.heads * kind.dim;
            let at = |i| t.map_or(0.0, |t| input(seed, t, i));
            of_call(call, name, kind.dtype, len, at)
        };
        let (q, mut out, mut lse) = (
            tensor("q", Some(0)),
            tensor("out", None),
            tensor("lse", None),
        );
        let len = desc.num_heads_q * desc.num_sinks;
        let mut sinks = of_call(call, "sinks", DType::Float32, len, |i| input(seed, 8, i));
        let args = DecodeArgs {
            sinks: (!sinks.is_empty()).then_some(&*sinks.floats()),
            ..DecodeArgs::new(&sequences, q.tensor(), out.tensor_mut()).lse(lse.floats())
        };
        self.context.decode(&mut self.cache, desc, args)?;
        let schedule = self.context.statistics()?.schedule;
        assert_eq!(schedule, json::choice(&call["schedule"]), "call {n}");
        self.results.insert(format!("out_{n}"), out);
        self.results.insert(format!("lse_{n}"), lse);
        Ok(())
    }

    /// The numbers that a call gives.
    fn run(&mut self, call: &Value, seed: u64, n: usize) -> Result<Vec<i64>> {
        let argument = |name: &str| json::number::<i64>(&call[name]);
        let sequence = || Sequence(argument("sequence"));
        let cache = &mut self.cache;
        match call["call"].as_str().expect("a call") {
            "create_sequence" => return Ok(vec![cache.create_sequence()?.0]),
            "fork_sequence" => return Ok(vec![cache.fork_sequence(sequence())?.0]),
            "get_sequence_length" => return Ok(vec![cache.sequence_length(sequence())?]),
            "get_lost_tokens" => return Ok(vec![cache.lost_tokens(sequence(), argument("from"))?]),
            "truncate_sequence" => cache.truncate_sequence(sequence(), argument("length"))?,
            "free_sequence" => cache.free_sequence(sequence())?,
            "append" => self.append(call, seed)?,
            "decode" => self.decode(call, seed, n)?,
            "move_kv_cache" => {
                cache.move_to(&self.context, &former_ranks(call).expect("a list"))?
            }
            "get_kv_cache_statistics" => {
                let s = cache.statistics()?;
                let pages = [s.used_pages, s.free_pages, s.least_free_pages, s.lost_pages];
                let all = [s.num_sequences, s.num_tokens].into_iter().chain(pages);
                return Ok(all.chain([s.memory as i64]).collect());
            }
            call => panic!("no call {call}"),
        }
        Ok(Vec::new())
    }

    /// That call, which must give what it says, or be refused as it says.
    fn check(&mut self, call: &Value, seed: u64, n: usize) -> Result<(), String> {
        let result = self.run(call, seed, n);
        if !call["status"].is_null() {
            return check_refusal(call, result);
        }
        let given = result.map_err(to_text)?;
        for (i, expected) in call["gives"].as_array().into_iter().flatten().enumerate() {
            let of_rank = expected.get(self.rank as usize).unwrap_or(expected);
            if *of_rank != given[i] {
                return Err(format!("number {i} is {}, not {of_rank}", given[i]));
            }
        }
        Ok(())
    }
}

/// Of a call that moves the cache.
fn former_ranks(call: &Value) -> Option<Vec<i32>> {
    json::list(&call["former_ranks"])
}

/// All calls of a case on a rank. `ids`: of the first group of ranks, and of those after each move.
fn run_cache_of_rank(
    case: &Value,
    ids: &[UniqueId],
    rank: i32,
) -> Result<BTreeMap<String, Elements>, String> {
    let mut ids = ids.iter();
    let mut join = |world_size, rank| {
        let id = ids.next().expect("an id for each group");
        join_group(case, id, world_size, rank).map_err(to_text)
    };
    let context = join(world_size_of(case), rank)?;
    let cache = KvCache::new(&context, &cache_desc_of(case)).map_err(to_text)?;
    let results = BTreeMap::new();
    let mut user = CacheUser {
        case,
        rank,
        context,
        cache,
        results,
    };
    let calls = case["calls"].as_array().expect("calls").iter();
    for (n, (call, seed)) in calls.zip(seed_of(case)..).enumerate() {
        if let Some(former) = former_ranks(call) {
            let Some(rank) = former.iter().position(|&rank| rank == user.rank) else {
                break; // gone
            };
            user.rank = rank as i32;
            user.context = join(former.len() as i32, user.rank)?;
        }
        let rank = user.rank;
        let place = |reason| format!("call {n}, rank {rank}: {reason}");
        user.check(call, seed, n).map_err(place)?;
    }
    Ok(user.results)
}

/// The results of all ranks, which are the same.
fn run_cache(case: &Value) -> Result<BTreeMap<String, Elements>, String> {
    let calls = case["calls"].as_array().expect("calls").iter();
    let num_groups = 1 + calls.filter_map(former_ranks).count();
    let ids = (0..num_groups).map(|_| UniqueId::new(Transport::Local, None));
    let ids = ids.collect::<Result<Vec<_>>>().map_err(to_text)?;
    let of_ranks = on_ranks(world_size_of(case), |rank| {
        run_cache_of_rank(case, &ids, rank)
    })?;
    let mut results: BTreeMap<String, Elements> = BTreeMap::new();
    for (name, own) in of_ranks.into_iter().flatten() {
        let hash = own.hash();
        let first = results.entry(name.clone()).or_insert(own);
        if first.hash() != hash {
            return Err(format!("{name} is not the same on every rank"));
        }
    }
    Ok(results)
}

#[test]
fn caches() {
    check_results("caches", run_cache);
}

// ---------------------------------------------------------------- errors

/// A tensor with strides.
struct Strided {
    elements: Elements,
    strides: [i64; 3],
}

impl Strided {
    /// Zeros of a call that is to fail: as many as there must be, but for what the case says.
    fn zeros(case: &Value, name: &str, dtype: DType, len: i64) -> Self {
        let change = &case["tensors"][name];
        let number = |field: &str, other| change[field].as_i64().unwrap_or(other);
        let strides = ["batch_stride", "seq_stride", "head_stride"].map(|field| number(field, 0));
        let elements = Elements::new(dtype, number("elements", len) as usize, |_| 0.0);
        Self { elements, strides }
    }

    fn tensor(&self) -> Tensor<'_> {
        let [batch, seq, head] = self.strides;
        self.elements.tensor().strides(batch, seq, head)
    }

    fn tensor_mut(&mut self) -> TensorMut<'_> {
        let [batch, seq, head] = self.strides;
        self.elements.tensor_mut().strides(batch, seq, head)
    }

    /// None without elements.
    fn some(&self) -> Option<Tensor<'_>> {
        (!self.elements.is_empty()).then(|| self.tensor())
    }

    fn some_mut(&mut self) -> Option<TensorMut<'_>> {
        (!self.elements.is_empty()).then(|| self.tensor_mut())
    }
}

/// Calls of a case that has a mha.
fn run_layer_call(case: &Value, problem: &Problem, mha: &MhaDesc, context: &Context) -> Result<()> {
    let desc = &problem.desc;
    let needs = context.mha_requirements(desc, mha);
    let is_right = needs.is_ok();
    let tokens = |name| {
        let len = desc.batch * desc.seqlen_q * mha.d_model;
        Strided::zeros(
            case,
            name,
            problem.kind(name).dtype,
            if is_right { len } else { 1 },
        )
    };
    let lengths = if is_right {
        problem.lengths(mha)
    } else {
        [1; 10]
    };
    let zeros = |n: usize, name, dtype| Strided::zeros(case, name, dtype, lengths[n]);
    let weights = std::array::from_fn(|n| zeros(n, WEIGHTS[n].0, desc.dtype));
    let mut gradients = std::array::from_fn(|n| zeros(n, WEIGHTS[n].1, DType::Float32));
    let has_activations = is_right && case["arguments"]["activations"] != 0;
    let activations = has_activations.then(|| Activations::new(context, desc, mha));
    let mut activations = activations.transpose()?;
    let (x, dout) = (tokens("x"), tokens("dout"));
    let (mut out, mut dx) = (tokens("out"), tokens("dx"));
    match case["call"].as_str().expect("a call") {
        "get_mha_requirements" => needs.map(|_| ()),
        "mha_forward" => {
            let args = MhaForwardArgs::new(x.tensor(), read(&weights), out.tensor_mut());
            let activations = activations.as_mut();
            context.mha_forward(
                desc,
                mha,
                MhaForwardArgs {
                    activations,
                    ..args
                },
            )
        }
        "mha_backward" => {
            let args = MhaBackwardArgs::new(dout.tensor(), x.tensor(), read(&weights))
                .dx(dx.tensor_mut())
                .gradients(written(&mut gradients));
            let activations = activations.as_ref();
            context.mha_backward(
                desc,
                mha,
                MhaBackwardArgs {
                    activations,
                    ..args
                },
            )
        }
        call => panic!("no call {call}"),
    }
}

fn run_call(case: &Value) -> Result<()> {
    let arguments = &case["arguments"];
    let argument = |name: &str, other| arguments[name].as_i64().unwrap_or(other);
    let call = case["call"].as_str().expect("a call");
    if call == "create_unique_id" {
        let address = json::text(&arguments["bind_address"]);
        let transport = json::choice(&arguments["transport"]);
        return UniqueId::new(transport, address.as_deref()).map(|_| ());
    }
    let (config, problem) = (config_of(case), Problem::of(case));
    let desc = &problem.desc;
    let world_size = argument("world_size", 1) as i32;
    let rank = argument("rank", 0) as i32;
    let side = match &arguments["side"] {
        Value::Null => Side::Query,
        side => json::choice(side),
    };
    let float = |name, len| Strided::zeros(case, name, DType::Float32, len);
    match call {
        "estimate_memory" => return estimate_memory(&config, desc).map(|_| ()),
        "estimate_time" => {
            let mut rates = MachineRates::new();
            for (field, value) in case["rates"].as_object().into_iter().flatten() {
                fields::set_machine_rates(&mut rates, field, value);
            }
            return estimate_time(&config, desc, &rates).map(|_| ());
        }
        "get_shard_length" => return desc.shard_length(world_size, rank, side).map(|_| ()),
        "get_shard_position" => {
            let index = argument("index", 0);
            return desc
                .shard_position(world_size, rank, side, index)
                .map(|_| ());
        }
        "get_shard_positions" => {
            let first = argument("first", 0);
            let tokens = first..first + argument("count", 1);
            return desc
                .shard_positions(world_size, rank, side, tokens)
                .map(|_| ());
        }
        "get_dropout_mask" => {
            let first = argument("first_key", 0);
            let keys = first..first + argument("count", 1);
            let [entry, head, query] = ["entry", "head", "query"].map(|name| argument(name, 0));
            return desc.dropout_mask(entry, head, query, keys).map(|_| ());
        }
        "split_sequence" | "join_sequence" => {
            let (num_heads, dim) = (argument("num_heads", 1), argument("dim", 1));
            let row = (desc.batch * num_heads * dim).max(1);
            let length = desc.shard_length(world_size, rank, side).unwrap_or(1);
            let mut whole = float("whole", problem.seqlen(side) * row);
            let mut shard = float("shard", length * row);
            if call == "split_sequence" {
                let (whole, shard) = (whole.tensor(), shard.tensor_mut());
                let args = SplitArgs {
                    side,
                    num_heads,
                    dim,
                    whole,
                    shard,
                };
                return desc.split_sequence(world_size, rank, args);
            }
            let (whole, shard) = (whole.tensor_mut(), shard.tensor());
            let args = JoinArgs {
                side,
                num_heads,
                dim,
                whole,
                shard,
            };
            return desc.join_sequence(world_size, rank, args);
        }
        "merge_attention" => {
            let (batch, seqlen) = (argument("batch", 1), argument("seqlen", 0));
            let (num_heads, head_dim_v) = (argument("num_heads", 1), argument("head_dim_v", 0));
            let rows = (batch * seqlen * num_heads).max(1);
            let len = (rows * head_dim_v).max(1);
            let (out_a, mut lse_a) = (float("out_a", len), float("lse_a", rows));
            let (out_b, mut lse_b) = (float("out_b", len), float("lse_b", rows));
            let (mut out, mut lse) = (float("out", len), float("lse", rows));
            return merge_attention(MergeArgs {
                batch,
                seqlen,
                num_heads,
                head_dim_v,
                a: Some((out_a.tensor(), lse_a.elements.floats())),
                b: (out_b.tensor(), lse_b.elements.floats()),
                out: out.tensor_mut(),
                lse: lse.elements.floats(),
            });
        }
        _ => {}
    }

    let context = Context::new(&config)?;
    if call.ends_with("_after_abort") {
        context.abort_handle().abort()?;
    }
    if let Some(mha) = &problem.mha {
        return run_layer_call(case, &problem, mha, &context);
    }
    let is_right = desc.shard_length(1, 0, Side::Query).is_ok();
    let tensor = |name: &str| {
        let kind = problem.kind(name);
        let len = desc.batch * problem.seqlen(kind.side) * kind.heads * kind.dim;
        Strided::zeros(case, name, kind.dtype, if is_right { len } else { 1 })
    };
    match call {
        "create_context" => Ok(()),
        "create_kv_cache" => KvCache::new(&context, &cache_desc_of(case)).map(|_| ()),
        "check_support" => context.check_support(desc).map(|_| ()),
        "get_memory_requirements" => context.memory_requirements(desc).map(|_| ()),
        "run_self_test" => context.run_self_test(argument("num_problems", 1), argument("seed", 1)),
        "all_reduce_after_abort" => context.all_reduce(&mut [0.0; 4]),
        "forward" | "forward_after_abort" => {
            let (q, k, v) = (tensor("q"), tensor("k"), tensor("v"));
            let (mut out, mut lse) = (tensor("out"), tensor("lse"));
            let args = ForwardArgs::new(q.tensor(), k.tensor(), v.tensor(), out.tensor_mut());
            context.forward(desc, args.lse(lse.elements.floats()))
        }
        "backward" => {
            let (q, k, v, dout) = (tensor("q"), tensor("k"), tensor("v"), tensor("dout"));
            let (out, mut lse) = (tensor("out"), tensor("lse"));
            let (mut dq, mut dk, mut dv) = (tensor("dq"), tensor("dk"), tensor("dv"));
            let args = BackwardArgs {
                dout: dout.tensor(),
                q: q.tensor(),
                k: k.tensor(),
                v: v.tensor(),
                out: out.tensor(),
                lse: lse.elements.floats(),
                dq: dq.tensor_mut(),
                dk: dk.tensor_mut(),
                dv: dv.tensor_mut(),
                accumulate: argument("accumulate", 0) != 0,
                key_bias: None,
                sinks: None,
                dsinks: None,
            };
            context.backward(desc, args)
        }
        _ => panic!("no call {call}"),
    }
}

/// Requires that a call failed as the case, or the call of a cache, says.
fn check_refusal<T>(case: &Value, result: Result<T>) -> Result<(), String> {
    let Err(error) = result else {
        return Err("it succeeded".into());
    };
    if case["status"] != error.status().name() {
        return Err(format!("not {}, but {error}", case["status"]));
    }
    for word in case["words"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
    {
        if !error.message().contains(word) {
            return Err(format!("no '{word}' in: {error}"));
        }
    }
    Ok(())
}

#[test]
fn errors() {
    for_each_case("errors", |_, case| check_refusal(case, run_call(case)));
}

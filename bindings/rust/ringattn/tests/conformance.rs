//! Executes bindings/conformance/cases.json, as its README says, and compares with what C got.
//! RINGATTN_CONFORMANCE names another file of cases, RINGATTN_CONFORMANCE_RESULTS what C got; without
//! the latter, results are compared with the expected ones only, unless
//! RINGATTN_CONFORMANCE_REQUIRED is set.

use std::collections::BTreeMap;
use std::fmt::Display;

use ringattn::*;
use serde_json::Value;

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

/// The description of a case, with what it leaves to the library made explicit.
struct Problem {
    desc: AttentionDesc,
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
        let or = |value, none, other| if value == none { other } else { value };
        Self {
            seqlen_kv: or(desc.seqlen_kv, -1, desc.seqlen_q),
            num_heads_kv: or(desc.num_heads_kv, 0, desc.num_heads_q),
            head_dim_v: or(desc.head_dim_v, 0, desc.head_dim),
            desc,
        }
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
            _ => panic!("no tensor {name}"),
        };
        let dtype = if dtype == DType::Same {
            self.desc.dtype
        } else {
            dtype
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

fn run_rank(
    case: &Value,
    problem: &Problem,
    whole: &Tensors,
    id: &UniqueId,
    rank: i32,
) -> Result<(Tensors, Vec<f32>)> {
    let world_size = json::number(&case["world_size"]);
    let config = config_of(case)
        .rank(rank)
        .world_size(world_size)
        .unique_id(id);
    let context = Context::new(&config)?;
    let desc = &problem.desc;
    let mut shards = Tensors::new();
    let bias = desc.has_key_bias.then_some(&"key_bias");
    for &name in INPUTS.iter().chain(&OUTPUTS).chain(bias) {
        let kind = problem.kind(name);
        let rows = desc.shard_length(world_size, rank, kind.side)?;
        let mut shard = problem.elements(name, rows, |_| 0.0);
        let [batch, seq, head] = strides(name, kind.heads, problem.seqlen(kind.side));
        let from = whole[name].tensor().strides(batch, seq, head);
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
        desc.split_sequence(world_size, rank, args)?;
        shards.insert(name, shard);
    }
    let [mut out, mut lse, mut dq, mut dk, mut dv] =
        OUTPUTS.map(|name| shards.remove(name).expect("was inserted"));
    let mut key_bias = shards.remove("key_bias");
    let key_bias = key_bias.as_mut().map(|bias| &*bias.floats());
    let [q, k, v, dout] = INPUTS.map(|name| shards[name].tensor());
    let seed = case["seed"].as_u64().expect("a seed");
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
    let seed = case["seed"].as_u64().expect("a seed");
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
    let world_size: i32 = json::number(&case["world_size"]);
    let of_ranks = std::thread::scope(|scope| {
        let run = |rank| {
            let whole = &whole;
            scope.spawn(move || run_rank(case, problem, whole, id, rank))
        };
        let ranks: Vec<_> = (0..world_size).map(run).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap())
            .collect::<Result<Vec<_>>>()
    })?;
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
        for name in OUTPUTS {
            let kind = problem.kind(name);
            let rows = problem.desc.shard_length(world_size, rank, kind.side)?;
            let [batch, seq, head] = strides(name, kind.heads, rows);
            let from = shards[name].tensor().strides(batch, seq, head);
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
    }
    Ok(whole)
}

fn check_result(name: &str, case: &Value, of_c: Option<&Value>) -> Result<(), String> {
    let got = run_result(case).map_err(to_text)?;
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

#[test]
fn results() {
    let path = std::env::var("RINGATTN_CONFORMANCE_RESULTS").ok();
    let is_required = std::env::var_os("RINGATTN_CONFORMANCE_REQUIRED").is_some();
    assert!(
        path.is_some() || !is_required,
        "RINGATTN_CONFORMANCE_RESULTS is not set"
    );
    let of_c = path.map(|path| read_json(&path));
    for_each_case("results", |name, case| {
        check_result(name, case, of_c.as_ref())
    });
}

// ---------------------------------------------------------------- errors

/// A tensor of a call that is to fail.
struct Zeros {
    elements: Elements,
    strides: [i64; 3],
}

impl Zeros {
    /// As long as it must be, but for what the case says.
    fn new(case: &Value, name: &str, dtype: DType, len: i64) -> Self {
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
    let float = |name, len| Zeros::new(case, name, DType::Float32, len);
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
    let is_right = desc.shard_length(1, 0, Side::Query).is_ok();
    let tensor = |name: &str| {
        let kind = problem.kind(name);
        let len = desc.batch * problem.seqlen(kind.side) * kind.heads * kind.dim;
        Zeros::new(case, name, kind.dtype, if is_right { len } else { 1 })
    };
    match call {
        "create_context" => Ok(()),
        "check_support" => context.check_support(desc).map(|_| ()),
        "get_memory_requirements" => context.memory_requirements(desc).map(|_| ()),
        "run_self_test" => context.run_self_test(argument("num_problems", 1), argument("seed", 1)),
        "forward" | "forward_after_abort" => {
            if call == "forward_after_abort" {
                context.abort_handle().abort()?;
            }
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

fn check_error(case: &Value) -> Result<(), String> {
    let Err(error) = run_call(case) else {
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
    for_each_case("errors", |_, case| check_error(case));
}

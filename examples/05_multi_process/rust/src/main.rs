//! One rank, which is this process: forward and backward of a causal sequence that many processes
//! share, on one machine or several.
//!
//! All that they need of each other is the text that `--make-id` prints. ../run.sh starts some, and
//! hands it on in a file.

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use ringattn::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
One rank of a group of processes.

usage: example_05_multi_process --make-id [--bind ADDRESS]
       example_05_multi_process --rank N --world-size N --id-file FILE [--bind ADDRESS]
                                [--timeout MS] [--tokens N] [--repeats N]
";

#[derive(Clone)]
struct Options {
    makes_id: bool,
    rank: i32,
    world_size: i32,
    id: Option<String>,
    bind: Option<String>,
    timeout_ms: i64,
    tokens: i64,
    repeats: i32,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        makes_id: false,
        rank: 0,
        world_size: 1,
        id: None,
        bind: None,
        timeout_ms: 30000,
        tokens: 1024,
        repeats: 1,
    };
    while let Some(name) = arguments.next() {
        if name == "--make-id" {
            options.makes_id = true;
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        match name.as_str() {
            "--rank" => options.rank = value.parse()?,
            "--world-size" => options.world_size = value.parse()?,
            "--id" => options.id = Some(value),
            "--id-file" => options.id = Some(std::fs::read_to_string(value)?.trim().into()),
            "--bind" => options.bind = Some(value),
            "--timeout" => options.timeout_ms = value.parse()?,
            "--tokens" => options.tokens = value.parse()?,
            "--repeats" => options.repeats = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

/// Joins the group: returns when all ranks have come.
fn join(options: &Options) -> ringattn::Result<Context> {
    let mut config = ContextConfig::new()
        .rank(options.rank)
        .world_size(options.world_size)
        .timeout_ms(options.timeout_ms)
        .transport(Transport::Zeromq);
    if let Some(id) = &options.id {
        config = config.unique_id(id.as_str());
    }
    if let Some(address) = &options.bind {
        config = config.bind_address(address.as_str());
    }
    Context::new(&config)
}

/// What a rank has computed: out, dq, dk and dv of its tokens, [tokens, heads, head_dim] each.
struct Results {
    of: [Vec<f32>; 4],
    positions: Vec<i64>, // of its tokens in the whole sequence
    milliseconds: f64,   // of a forward and a backward call
}

/// Collective: forward and backward, so many times. Each element of an input is a function of its
/// token's position, so that every process makes its own part.
fn compute(context: &Context, tokens: i64, repeats: i32) -> Result<Results> {
    let (heads, heads_kv, dim) = (4, 2, 64);
    let desc = AttentionDesc::new()
        .seqlen_q(tokens)
        .num_heads_q(heads)
        .num_heads_kv(heads_kv)
        .head_dim(dim)
        .mask(Mask::Causal)
        .sharding(Sharding::Zigzag); // equal work for all ranks under this mask
    let info = context.info()?;
    let positions = desc.shard_positions(info.world_size, info.rank, Side::Query, ..)?;
    let input = |tensor: i32, heads: i64| -> Vec<f32> {
        let row = |&position: &i64| {
            let angle = 0.7 * f64::from(tensor + 1) * (position + 1) as f64;
            (0..heads * dim).map(move |i| (angle + i as f64).sin() as f32)
        };
        positions.iter().flat_map(row).collect()
    };
    let [q, k, v, dout] =
        [(0, heads), (1, heads_kv), (2, heads_kv), (3, heads)].map(|(t, n)| input(t, n));
    let [mut out, mut dq] = [(); 2].map(|()| vec![0.0; q.len()]);
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; k.len()]);
    let mut lse = vec![0.0; positions.len() * heads as usize];
    let begin = Instant::now();
    for _ in 0..repeats {
        context.forward(&desc, ForwardArgs::new(&q, &k, &v, &mut out).lse(&mut lse))?;
        let args = BackwardArgs {
            dout: (&dout).into(),
            q: (&q).into(),
            k: (&k).into(),
            v: (&v).into(),
            out: (&out).into(),
            lse: &lse,
            dq: (&mut dq).into(),
            dk: (&mut dk).into(),
            dv: (&mut dv).into(),
            accumulate: false,
            key_bias: None,
            sinks: None,
            dsinks: None,
        };
        context.backward(&desc, args)?;
    }
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3 / f64::from(repeats);
    Ok(Results {
        of: [out, dq, dk, dv],
        positions,
        milliseconds,
    })
}

/// Largest difference of a rank's tokens to those of `whole`, as a part of the largest number of a
/// tensor.
fn compare(own: &Results, whole: &Results) -> f64 {
    let mut worst = 0.0;
    for (own_tensor, tensor) in own.of.iter().zip(&whole.of) {
        let width = tensor.len() / whole.positions.len();
        let largest = tensor.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (row, &position) in own_tensor.chunks(width).zip(&own.positions) {
            for (a, b) in row.iter().zip(&tensor[position as usize * width..]) {
                let apart = f64::from((a - b).abs() / largest);
                if apart.is_nan() || apart > worst {
                    worst = if apart.is_nan() { f64::INFINITY } else { apart };
                }
            }
        }
    }
    worst
}

fn run(options: &Options) -> Result<()> {
    let (rank, world_size) = (options.rank, options.world_size);
    let expected = compute(&Context::new(&ContextConfig::new())?, options.tokens, 1)?; // by this process alone

    let context = join(options)?;
    println!(
        "rank {rank} of {world_size} is process {}",
        std::process::id()
    );
    let found = compute(&context, options.tokens, options.repeats)?;
    let difference = compare(&found, &expected);
    println!(
        "rank {rank} of {world_size}: {} of {} tokens, forward and backward in {:.1} ms, difference to one rank {difference:.1e}",
        found.positions.len(),
        options.tokens,
        found.milliseconds
    );
    if difference > 1e-5 {
        return Err("that is too much; at most 1e-05".into());
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).and_then(|options| {
        if options.makes_id {
            let id = UniqueId::new(Transport::Zeromq, options.bind.as_deref())?;
            println!("{}", id.as_str());
            return Ok(());
        }
        run(&options).map_err(|error| {
            format!("rank {} of {}: {error}", options.rank, options.world_size).into()
        })
    });
    if let Err(error) = done {
        let line = format!("{error}\n");
        eprint!("{line}"); // at once, among those of other processes
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

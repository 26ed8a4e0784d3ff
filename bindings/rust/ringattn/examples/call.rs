//! What a call costs: forward of 64 tokens on one rank, again and again. Prints a line of JSON with
//! the median and the mean of their times.
//!
//!     cargo run --release --example call -- [--calls N]

use std::time::Instant;

use ringattn::{AttentionDesc, Context, ContextConfig, ForwardArgs, Result};

/// The first calls plan, touch all memory, and are not counted.
const FIRST: usize = 2000;

fn main() -> Result<()> {
    let mut calls = 30_000_usize;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--calls" => {
                let value = arguments.next().and_then(|n| n.parse().ok());
                calls = value
                    .filter(|&n| n > 0)
                    .expect("--calls needs a positive number");
            }
            _ => panic!("no option {argument}; there is --calls N"),
        }
    }

    let context = Context::new(&ContextConfig::new().num_threads(1))?;
    let desc = AttentionDesc::new().seqlen_q(64).head_dim(64);
    let tensor = |n: usize| {
        (0..64 * 64)
            .map(|i| (i % n) as f32 / n as f32)
            .collect::<Vec<_>>()
    };
    let (q, k, v) = (tensor(7), tensor(5), tensor(3));
    let (mut out, mut lse) = (vec![0f32; 64 * 64], vec![0f32; 64]);
    let mut times = Vec::with_capacity(calls);
    for call in 0..FIRST + calls {
        let start = Instant::now();
        context.forward(&desc, ForwardArgs::new(&q, &k, &v, &mut out).lse(&mut lse))?;
        if call >= FIRST {
            times.push(start.elapsed().as_nanos() as f64);
        }
    }
    let mean = times.iter().sum::<f64>() / calls as f64;
    times.sort_by(f64::total_cmp);
    println!(
        "{{\"language\": \"rust\", \"median_ns\": {:.1}, \"mean_ns\": {mean:.1}}}",
        times[calls / 2]
    );
    Ok(())
}

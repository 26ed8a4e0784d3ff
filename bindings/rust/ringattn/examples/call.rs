//! What a call costs: forward of 64 tokens on one rank, again and again. Prints a line of JSON with
//! the median over rounds of the time per call.
//!
//!     cargo run --release --example call -- [--rounds N]

use std::time::Instant;

use ringattn::{AttentionDesc, Context, ContextConfig, ForwardArgs, Result};

const CALLS: u32 = 2000;

fn main() -> Result<()> {
    let mut rounds = 21;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let value = arguments.next().and_then(|n| n.parse().ok());
                rounds = value
                    .filter(|&n| n > 0)
                    .expect("--rounds needs a positive number");
            }
            _ => panic!("no option {argument}; there is --rounds N"),
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
    let mut round = || -> Result<f64> {
        let start = Instant::now();
        for _ in 0..CALLS {
            context.forward(&desc, ForwardArgs::new(&q, &k, &v, &mut out).lse(&mut lse))?;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(CALLS))
    };
    round()?; // the first plans, and touches all memory
    let mut times = (0..rounds).map(|_| round()).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    println!(
        "{{\"language\":\"rust\",\"ns_per_call\":{:.1}}}",
        times[times.len() / 2]
    );
    Ok(())
}

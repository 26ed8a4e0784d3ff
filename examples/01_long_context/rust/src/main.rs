//! One untrained attention head reads a book, on ranks that each hold a part of it.
//!
//! * `induction_head.rs`: what the head looks at, and its output computed directly, in fp64
//! * `ranks.rs`: the same output computed by libringattn: every call of the library
//! * `main.rs`: how well the head guesses the next byte; the table; the JSON file
//!
//! The last 2,048 bytes of what is read are guessed, each from the `context` bytes before it, for
//! longer and longer contexts. Every context is computed by one rank and by `--ranks` ranks, which
//! are compared with each other and with fp64.

mod induction_head;
mod ranks;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use induction_head::{Head, ALPHABET};
use ranks::{get_estimate, get_target, Ranks, SCORED};
use ringattn::Sharding;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
One untrained attention head reads a book, on several ranks.

usage: example_01_long_context [text] [--length N] [--ranks N] [--sharding S] [--output FOLDER]

  text          the book: a text file (build/demo/bible.txt)
  --length      bytes of it to read; 0: all (131072)
  --ranks       ranks that share them (4)
  --sharding    which bytes a rank owns: contiguous, zigzag or striped (zigzag)
  --output      folder for context.json (build/demo)
";

struct Options {
    text: String,
    length: usize,
    ranks: i32,
    sharding: Sharding,
    output: String,
}

impl Options {
    /// `None` where help is all that is asked for.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            text: "build/demo/bible.txt".into(),
            // Ends in Genesis 33, a place neither easy nor hard: of the bytes there 68 % are guessed
            // right at this context, and between 58 and 72 % at eight other places of the book.
            length: 131072,
            ranks: 4,
            sharding: Sharding::Zigzag,
            output: "build/demo".into(),
        };
        while let Some(argument) = arguments.next() {
            if argument == "--help" || argument == "-h" {
                return Ok(None);
            }
            if !argument.starts_with("--") {
                options.text = argument;
                continue;
            }
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_string(), Some(value.to_string())),
                None => (argument, arguments.next()),
            };
            let value = value.ok_or(format!("{name} needs a value"))?;
            let wrong = |must: &str| format!("{name} is {value}; must be {must}");
            match name.as_str() {
                "--length" => options.length = value.parse().map_err(|_| wrong("0 or more"))?,
                "--ranks" => {
                    let ranks = value.parse().ok().filter(|n| (1..=4096).contains(n));
                    options.ranks = ranks.ok_or_else(|| wrong("1 .. 4096"))?;
                }
                "--sharding" => {
                    let sharding = value.to_uppercase().parse();
                    options.sharding =
                        sharding.map_err(|_| wrong("contiguous, zigzag or striped"))?;
                }
                "--output" => options.output = value,
                _ => return Err(format!("no option {name}\n\n{USAGE}").into()),
            }
        }
        Ok(Some(options))
    }

    fn sharding_name(&self) -> String {
        self.sharding.name().to_lowercase()
    }
}

/// One context length. Memory is in bytes.
#[derive(Default)]
struct Row {
    context: usize,
    accuracy: f64,          // share of the bytes that were the head's first guess
    bits_per_byte: f64,     // 7 for a uniform guess among 128
    seconds: f64,           // of the attention call on all ranks
    tokens_per_second: f64, // scored tokens
    memory_per_rank: usize, // tensors and workspace
    memory_one_rank: usize, // the same where one rank does it all
    max_difference_one_rank: f64,
    max_difference_fp64: f64, // on 64 of the scored bytes
}

/// The whole file; bytes outside the alphabet become its last letter.
fn read_text(path: &str) -> Result<Vec<u8>> {
    let mut text = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let outside = text
        .iter_mut()
        .filter(|byte| usize::from(**byte) >= ALPHABET);
    let count = outside.map(|byte| *byte = ALPHABET as u8 - 1).count();
    if count > 0 {
        eprintln!(
            "note: {count} bytes of {path} are not ASCII and count as one and the same letter"
        );
    }
    Ok(text)
}

/// 1 Ki, 4 Ki, 16 Ki ... up to half the length, and the whole length.
fn get_contexts(length: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1024), |context| Some(context * 4));
    powers
        .take_while(|&context| context <= length / 2)
        .chain([length])
        .collect()
}

// ---------------------------------------------------------------- scores

/// With 2 % of the uniform distribution mixed in, so that no byte is impossible.
fn score(text: &[u8], length: usize, out: &[f32], row: &mut Row) {
    for (i, distribution) in out.chunks(ALPHABET).enumerate() {
        let truth = usize::from(text[get_target(length, i)]);
        let guess = (1..ALPHABET).fold(0, |best, byte| {
            if distribution[byte] > distribution[best] {
                byte
            } else {
                best
            }
        });
        let probability = f64::from(distribution[truth]);
        row.accuracy += f64::from(u8::from(guess == truth)) / SCORED as f64;
        row.bits_per_byte -= (0.98 * probability + 0.02 / ALPHABET as f64).log2() / SCORED as f64;
    }
}

fn get_max_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs())
        .fold(0.0, f64::max)
}

/// On every 32nd row.
fn get_max_difference_fp64(
    head: &Head,
    text: &[u8],
    length: usize,
    context: usize,
    out: &[f32],
) -> f64 {
    let step = SCORED / 64;
    let targets: Vec<usize> = (0..SCORED)
        .step_by(step)
        .map(|i| get_target(length, i))
        .collect();
    let expected = head.attend_fp64(text, &targets, context);
    let ours = out.chunks(ALPHABET).step_by(step);
    let pairs = ours
        .zip(&expected)
        .flat_map(|(ours, expected)| ours.iter().zip(expected));
    pairs
        .map(|(&ours, expected)| (f64::from(ours) - expected).abs())
        .fold(0.0, f64::max)
}

// ---------------------------------------------------------------- output

/// A bar on stderr, drawn anew for each step; without a terminal, a line per step.
struct Progress {
    terminal: bool,
    total: usize,
    done: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            total,
            done: 0,
        }
    }

    fn begin(&self, step: &str) {
        if !self.terminal {
            return eprintln!("{step} ...");
        }
        let bar = "#".repeat(40 * self.done / self.total);
        eprint!(
            "\r\x1b[K[{bar:.<40}] {:>3} %  {step}",
            100 * self.done / self.total
        );
    }

    /// Wipes the bar, so that other output can follow.
    fn end(&mut self, amount: usize) {
        self.done += amount;
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// 1234567 -> 1,234,567
fn group_digits(number: usize) -> String {
    let digits = number.to_string();
    let comma = |i: usize| {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            ","
        } else {
            ""
        }
    };
    digits
        .chars()
        .enumerate()
        .map(|(i, digit)| format!("{}{digit}", comma(i)))
        .collect()
}

fn format_memory(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// As C writes it: 1.2e-06.
fn format_exponent(number: f64) -> String {
    let text = format!("{number:.1e}");
    let (mantissa, exponent) = text.split_once('e').expect("it was asked for");
    let exponent: i32 = exponent.parse().expect("it is a number");
    format!(
        "{mantissa}e{}{:02}",
        if exponent < 0 { '-' } else { '+' },
        exponent.abs()
    )
}

fn print_columns(columns: [impl Display; 9]) -> Result<()> {
    let [a, b, c, d, e, f, g, h, i] = columns;
    println!("{a:>9}  {b:>8}  {c:>9}  {d:>8}  {e:>8}  {f:>11}  {g:>11}  {h:>11}  {i:>10}");
    Ok(io::stdout().flush()?)
}

fn print_heading(options: &Options, length: usize) -> Result<()> {
    println!(
        "One untrained attention head reads {} bytes of {} and guesses the last {}.",
        group_digits(length),
        options.text,
        group_digits(SCORED)
    );
    println!(
        "ranks: {}, sharding: {}\n",
        options.ranks,
        options.sharding_name()
    );
    #[rustfmt::skip]
    let heading = [
        ["", "guessed", "bits per", "", "", "memory", "memory with", "difference", "difference"],
        ["context", "right", "byte", "seconds", "tokens/s", "per rank", "one rank", "to one rank", "to fp64"],
    ];
    heading.into_iter().try_for_each(print_columns)
}

fn print_row(row: &Row) -> Result<()> {
    print_columns([
        group_digits(row.context),
        format!("{:.1} %", 100.0 * row.accuracy),
        format!("{:.2}", row.bits_per_byte),
        format!("{:.2}", row.seconds),
        format!("{:.0}", row.tokens_per_second),
        format_memory(row.memory_per_rank),
        format_memory(row.memory_one_rank),
        format_exponent(row.max_difference_one_rank),
        format_exponent(row.max_difference_fp64),
    ])
}

/// A JSON object of fields that are JSON.
fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[\n  {}\n]", items.collect::<Vec<_>>().join(",\n  "))
}

fn string(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

fn row_object(row: &Row) -> String {
    object(&[
        ("context", row.context.to_string()),
        ("accuracy", row.accuracy.to_string()),
        ("bits_per_byte", row.bits_per_byte.to_string()),
        ("seconds", row.seconds.to_string()),
        ("tokens_per_second", row.tokens_per_second.to_string()),
        ("memory_per_rank", row.memory_per_rank.to_string()),
        ("memory_one_rank", row.memory_one_rank.to_string()),
        (
            "max_difference_one_rank",
            row.max_difference_one_rank.to_string(),
        ),
        ("max_difference_fp64", row.max_difference_fp64.to_string()),
    ])
}

// ---------------------------------------------------------------- the demo

fn run(options: &Options) -> Result<()> {
    let text = read_text(&options.text)?;
    let length = match options.length {
        0 => text.len().saturating_sub(1), // the last byte is guessed, not read
        length => length,
    };
    if length < SCORED || length >= text.len() {
        return Err(format!(
            "--length is {length}; {} has {} bytes, which allows {SCORED} to {}",
            options.text,
            text.len(),
            text.len().saturating_sub(1)
        )
        .into());
    }
    let head = Head::new();
    let contexts = get_contexts(length);
    let mut progress = Progress::new(2 * contexts.iter().sum::<usize>());

    // One rank goes first and is gone when the others come: the tensors of the sequence are in
    // memory once, not twice.
    let mut alone = Vec::new();
    progress.begin("one rank: preparing");
    let mut one = Ranks::new(&head, &text, length, 1, options.sharding)?;
    for &context in &contexts {
        progress.begin(&format!("one rank: context {context}"));
        alone.push((one.forward(context)?, one.get_memory(context)?));
        progress.end(context);
    }
    drop(one);

    print_heading(options, length)?;
    progress.begin(&format!("{} ranks: preparing", options.ranks));
    let mut ranks = Ranks::new(&head, &text, length, options.ranks, options.sharding)?;
    let mut rows = Vec::new();
    for (&context, (of_one, memory_of_one)) in contexts.iter().zip(&alone) {
        progress.begin(&format!("{} ranks: context {context}", options.ranks));
        let start = Instant::now();
        let out = ranks.forward(context)?;
        let seconds = start.elapsed().as_secs_f64();
        let mut row = Row {
            context,
            seconds,
            tokens_per_second: SCORED as f64 / seconds,
            memory_per_rank: ranks.get_memory(context)?,
            memory_one_rank: *memory_of_one,
            max_difference_one_rank: get_max_difference(&out, of_one),
            max_difference_fp64: get_max_difference_fp64(&head, &text, length, context, &out),
            ..Row::default()
        };
        score(&text, length, &out, &mut row);
        progress.end(context);
        print_row(&row)?;
        rows.push(row);
    }

    println!("\nmemory per rank at {} bytes", group_digits(length));
    let mut memory = Vec::new();
    for world_size in [1, 2, 4, 8, 16] {
        let bytes = get_estimate(length, world_size, options.sharding)?;
        let plural = if world_size == 1 { ' ' } else { 's' };
        println!("{world_size:>4} rank{plural}  {:>11}", format_memory(bytes));
        memory.push(object(&[
            ("world_size", world_size.to_string()),
            ("bytes", bytes.to_string()),
        ]));
    }

    let path = Path::new(&options.output).join("context.json");
    let json = object(&[
        ("text", string(&options.text)),
        ("length", length.to_string()),
        ("scored", SCORED.to_string()),
        ("ranks", options.ranks.to_string()),
        ("sharding", string(&options.sharding_name())),
        ("rows", array(rows.iter().map(row_object))),
        ("memory", array(memory.into_iter())),
    ]);
    std::fs::create_dir_all(&options.output)
        .and_then(|()| std::fs::write(&path, json + "\n"))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    println!("\nwrote {}", path.display());
    Ok(())
}

fn main() -> ExitCode {
    let result = Options::parse(std::env::args().skip(1)).and_then(|options| match options {
        Some(options) => run(&options),
        None => {
            print!("{USAGE}");
            Ok(())
        }
    });
    if let Err(error) = result {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

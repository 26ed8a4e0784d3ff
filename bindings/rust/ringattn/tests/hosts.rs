//! What a host program relies on: its signals, its environment and its memory are its own, and misuse
//! that compiles is an error or nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringattn::*;

#[path = "support/ranks.rs"]
mod ranks;
use ranks::on_ranks;

/// What is of the whole process is measured by one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A line of a file in /proc/PID, as a number in the given base.
fn proc_number(file: &str, key: &str, base: u32) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let line = text
        .lines()
        .find(|line| line.starts_with(key))
        .expect("the line exists");
    let value = line[key.len()..]
        .split_whitespace()
        .next()
        .expect("it has a value");
    u64::from_str_radix(value, base).expect("it is a number")
}

/// Blocked, ignored and caught signals of this thread, among 1 .. 31; what is beyond is libc's.
fn signals() -> [u64; 3] {
    ["SigBlk:", "SigIgn:", "SigCgt:"].map(|key| signals_of("thread-self", key))
}

fn signals_of(process: &str, key: &str) -> u64 {
    proc_number(&format!("/proc/{process}/status"), key, 16) & 0x7fff_ffff
}

fn environment() -> BTreeSet<(OsString, OsString)> {
    std::env::vars_os().collect()
}

/// As it was when the program was started, before the library was loaded.
fn first_environment() -> BTreeSet<(OsString, OsString)> {
    let text = std::fs::read("/proc/self/environ").unwrap();
    let entries = text
        .split(|&byte| byte == 0)
        .filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let equals = entry
                .iter()
                .position(|&byte| byte == b'=')
                .expect("NAME=value");
            let name = OsString::from_vec(entry[..equals].to_vec());
            (name, OsString::from_vec(entry[equals + 1..].to_vec()))
        })
        .collect()
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const TOKENS: i64 = 96;
const DIM: i64 = 16;

fn desc() -> AttentionDesc {
    AttentionDesc::new()
        .seqlen_q(TOKENS)
        .head_dim(DIM)
        .mask(Mask::Causal)
}

/// Forward on this rank; the last row of its shard must be the mean of the positions that it sees.
fn attend(context: &Context, rank: i32) -> Result<()> {
    let world_size = context.info()?.world_size;
    let desc = desc();
    let positions = desc.shard_positions(world_size, rank, Side::KeyValue, ..)?;
    let v: Vec<f32> = positions
        .iter()
        .flat_map(|&p| [p as f32; DIM as usize])
        .collect();
    let zeros = vec![0f32; v.len()];
    let mut out = vec![0f32; v.len()];
    context.forward(&desc, ForwardArgs::new(&zeros, &zeros, &v, &mut out))?;
    let mean = *positions.last().expect("shards are not empty") as f32 / 2.0;
    assert!(
        (out[out.len() - 1] - mean).abs() < 1e-4,
        "{} is not {mean}",
        out[out.len() - 1]
    );
    Ok(())
}

#[test]
fn signals_and_environment_are_the_hosts() {
    let _alone = alone();
    // What Rust's runtime does, and nobody else: SIGPIPE is ignored, SIGSEGV and SIGBUS are caught.
    let bit = |signal| 1u64 << (signal - 1);
    let parent = unsafe { libc::getppid() };
    let inherited = signals_of(&parent.to_string(), "SigIgn:");
    let [blocked, ignored, caught] = signals();
    assert_eq!(
        blocked, 0,
        "signals that are blocked since the library was loaded"
    );
    assert_eq!(
        ignored & !inherited,
        bit(libc::SIGPIPE) & !inherited,
        "signals that are ignored"
    );
    assert_eq!(
        caught,
        bit(libc::SIGSEGV) | bit(libc::SIGBUS),
        "signals that are caught"
    );
    assert_eq!(environment(), first_environment());

    let before = signals();
    on_ranks(3, |context, rank| {
        for _ in 0..5 {
            attend(&context, rank).unwrap();
        }
        assert_eq!(signals(), before, "while it is used");
        drop(context);
        assert_eq!(signals(), before, "when it is closed");
    });
    assert_eq!(signals(), before);
    assert_eq!(environment(), first_environment());
}

static TICKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn tick(_: libc::c_int) {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn profiling_goes_on_during_calls() {
    let _alone = alone();
    let set_timer = |microseconds| {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        let done = unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) };
        assert_eq!(done, 0);
    };
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tick as *const () as usize;
    action.sa_flags = libc::SA_RESTART;
    let mut former = action;
    unsafe { assert_eq!(libc::sigaction(libc::SIGPROF, &action, &mut former), 0) };
    set_timer(1000);
    on_ranks(2, |context, rank| {
        let start = TICKS.load(Ordering::Relaxed);
        // Each rank sees the same ticks at about the same time, but must make as many calls.
        for _ in 0..10_000 {
            attend(&context, rank).unwrap();
        }
        assert!(
            TICKS.load(Ordering::Relaxed) > start + 5,
            "no ticks while ranks compute"
        );
    });
    let mut now = action;
    unsafe {
        assert_eq!(
            libc::sigaction(libc::SIGPROF, std::ptr::null(), &mut now),
            0
        )
    };
    assert_eq!(
        now.sa_sigaction, action.sa_sigaction,
        "the handler is the host's"
    );
    let (closed, start) = (TICKS.load(Ordering::Relaxed), Instant::now());
    while TICKS.load(Ordering::Relaxed) == closed {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "no ticks after the contexts are closed"
        );
    }
    set_timer(0);
    unsafe {
        assert_eq!(
            libc::sigaction(libc::SIGPROF, &former, std::ptr::null_mut()),
            0
        )
    };
}

fn resident_kilobytes() -> u64 {
    proc_number("/proc/self/status", "VmRSS:", 10)
}

#[test]
fn ten_thousand_contexts_leave_nothing() {
    let _alone = alone();
    let config = ContextConfig::new().num_threads(1);
    let make = |count| {
        for _ in 0..count {
            let context = Context::new(&config).unwrap();
            drop(context.abort_handle());
            attend(&context, 0).unwrap();
        }
    };
    make(500);
    let before = resident_kilobytes();
    make(10_000);
    let after = resident_kilobytes();
    assert!(after <= before + 2048, "{before} KiB became {after} KiB");
}

#[test]
fn another_thread_may_drop_a_context() {
    on_ranks(2, |context, rank| {
        attend(&context, rank).unwrap();
        thread::spawn(move || drop(context)).join().unwrap();
    });
    // And nobody must.
    std::mem::forget(Context::new(&ContextConfig::new()).unwrap());
}

#[test]
fn a_rank_that_leaves_is_named() {
    let left = on_ranks(2, |context, rank| match rank {
        0 => None,
        _ => Some(attend(&context, rank).unwrap_err()),
    });
    let error = left[1].as_ref().unwrap();
    assert_eq!(
        (error.status(), error.rank()),
        (Status::PeerLost, Some(0)),
        "{error}"
    );
}

/// A ring over ZeroMQ, of ranks here and of one in another process.
const FELLOWS: i32 = 3;

/// A rank is at work, or why it will not be.
type Begins = mpsc::Sender<std::result::Result<(), String>>;

fn join(id: &str, world_size: i32, rank: i32) -> Result<Context> {
    let config = ContextConfig::new()
        .transport(Transport::Zeromq)
        .world_size(world_size)
        .rank(rank)
        .unique_id(id)
        .timeout_ms(60_000)
        .num_threads(1);
    Context::new(&config)
}

/// What the other process does: it reads its rank and the id, says that it is at work, and ends with
/// the one that started it.
#[test]
#[ignore = "of peers_in_other_processes_end"]
fn fellow() {
    let mut orders = std::io::stdin().lines().map(|line| line.unwrap());
    let (rank, id) = (orders.next().unwrap(), orders.next().unwrap());
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let rank = rank.parse().unwrap();
    let context = join(&id, FELLOWS, rank).unwrap();
    attend(&context, rank).unwrap();
    println!("works");
    while attend(&context, rank).is_ok() {}
}

/// A process that is over when this is dropped.
struct Fellow(Child);

impl Fellow {
    fn new(rank: i32, id: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fellow", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_ref().unwrap(), "{rank}\n{id}").unwrap();
        Self(child)
    }

    fn listen(&mut self, begins: Begins) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        thread::spawn(move || {
            let mut lines = lines.map_while(|line| line.ok());
            let works = lines.any(|line| line == "works");
            let _ = begins.send(works.then_some(()).ok_or("the peer has ended".to_string()));
        });
    }

    fn send(&self, signal: libc::c_int) {
        unsafe { assert_eq!(libc::kill(self.0.id() as libc::pid_t, signal), 0) };
    }
}

impl Drop for Fellow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes calls, or only asks, until that fails.
fn work(id: &str, rank: i32, is_idle: bool, begins: Begins) -> Error {
    let context = join(id, FELLOWS, rank);
    let context = match context.and_then(|context| attend(&context, rank).map(|()| context)) {
        Ok(context) => context,
        Err(error) => {
            let _ = begins.send(Err(error.to_string()));
            return error;
        }
    };
    let _ = begins.send(Ok(()));
    drop(begins);
    loop {
        let done = if is_idle {
            thread::sleep(Duration::from_millis(1));
            context.async_error()
        } else {
            attend(&context, rank)
        };
        if let Err(error) = done {
            return error;
        }
    }
}

/// The peer is killed while this process's ranks call, or stopped while one of them only asks; other
/// threads panic and catch it meanwhile. Threads are not waited for before all are at work: one that
/// fails there must not leave this to wait for those that wait for it.
#[test]
fn peers_in_other_processes_end() {
    if !capabilities().unwrap().has_zeromq {
        return;
    }
    let _alone = alone(); // what panics print is kept
    for (victim, signal) in [(0, libc::SIGKILL), (1, libc::SIGSTOP)] {
        let id = UniqueId::new(Transport::Zeromq, None).unwrap();
        let mut fellow = Fellow::new(victim, id.as_str());
        let (begins, begun) = mpsc::channel();
        fellow.listen(begins.clone());
        let ranks: Vec<_> = (0..FELLOWS)
            .filter(|&rank| rank != victim)
            .map(|rank| {
                let (id, begins) = (id.as_str().to_string(), begins.clone());
                let is_idle = signal == libc::SIGSTOP && rank != 0;
                thread::spawn(move || work(&id, rank, is_idle, begins))
            })
            .collect();
        drop(begins);
        for _ in 0..FELLOWS {
            let news = begun.recv().expect("a rank panicked");
            news.expect("all ranks are at work");
        }
        let caught = AtomicU64::new(0);
        let errors: Vec<Error> = thread::scope(|scope| {
            let (is_over, over) = mpsc::channel::<()>();
            scope.spawn(|| {
                let over = over; // until the other end is dropped
                while over.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    std::panic::catch_unwind(|| panic!("on purpose")).unwrap_err();
                    caught.fetch_add(1, Ordering::Relaxed);
                }
            });
            while caught.load(Ordering::Relaxed) < 100 {
                thread::yield_now(); // the ring runs
            }
            fellow.send(signal);
            let errors = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
            drop(is_over);
            errors
        });
        for error in errors {
            let is_lost =
                error.status() == Status::PeerLost || error.message().contains("PEER_LOST");
            assert!(
                is_lost && error.rank() == Some(victim),
                "rank {victim} ended: {error}"
            );
        }
        // This process can do all that it could.
        let id = UniqueId::new(Transport::Zeromq, None).unwrap();
        thread::scope(|scope| {
            for rank in 0..2 {
                let id = id.as_str();
                scope.spawn(move || attend(&join(id, 2, rank).unwrap(), rank).unwrap());
            }
        });
    }
}

#[test]
fn abort_from_other_threads_ends_a_call() {
    let mut group = on_ranks(2, |context, _| context);
    let (second, first) = (group.pop().unwrap(), group.pop().unwrap());
    let handle = second.abort_handle();
    let waiting = thread::spawn(move || {
        let error = attend(&second, 1).unwrap_err(); // the other rank never comes
        (error, second)
    });
    thread::sleep(Duration::from_millis(20)); // so that it waits, as a rule
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| handle.abort().unwrap());
        }
    });
    assert_eq!(handle.async_error().unwrap_err().status(), Status::Aborted);
    let (error, _second) = waiting.join().unwrap();
    assert_eq!(error.status(), Status::Aborted, "{error}");
    assert_eq!(error.rank(), Some(1));
    let error = attend(&first, 0).unwrap_err();
    assert_eq!(error.status(), Status::InvalidState, "{error}");
}

#[test]
fn abort_after_drop_is_an_error() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let handle = context.abort_handle();
    assert!(handle.async_error().is_ok() && context.async_error().is_ok());
    drop(context);
    let error = handle.abort().unwrap_err();
    assert_eq!(error.status(), Status::InvalidState);
    assert!(error.message().contains("dropped"), "{error}");
    assert_eq!(
        handle.clone().async_error().unwrap_err().status(),
        Status::InvalidState
    );
}

#[test]
fn aborts_race_with_drops() {
    let config = ContextConfig::new().num_threads(1);
    for _ in 0..200 {
        let context = Context::new(&config).unwrap();
        let handle = context.abort_handle();
        let aborting = thread::spawn(move || while handle.abort().is_ok() {});
        drop(context);
        aborting.join().unwrap();
    }
}

#[test]
fn wrong_tensors_are_refused_with_the_numbers() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let desc = desc();
    let len = (TOKENS * DIM) as usize;
    let right = vec![0f32; len];
    let mut out = vec![0f32; len];
    let mut refused = |q: Tensor<'_>, lse: Option<&mut [f32]>, words: &[&str]| {
        let args = ForwardArgs {
            lse,
            ..ForwardArgs::new(q, &right, &right, &mut out)
        };
        let error = context.forward(&desc, args).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(
            words.iter().all(|word| error.message().contains(word)),
            "{words:?}: {error}"
        );
    };
    refused((&right[1..]).into(), None, &["q.size", "6140", "6144"]);
    refused(Tensor::from(&right[..0]), None, &["q.data is NULL"]);
    refused(
        Tensor::from(&right).strides(0, DIM + 1, DIM),
        None,
        &["q.size", "6144"],
    );
    refused(
        Tensor::from(&right).strides(i64::MAX, i64::MAX, i64::MAX),
        None,
        &["q."],
    );
    refused(
        (&right).into(),
        Some(&mut [0.0; TOKENS as usize - 1]),
        &["lse_size", "380", "384"],
    );
    refused((&right).into(), Some(&mut []), &["lse_size", "384"]);
    refused(
        (&vec![Bf16::default(); len]).into(),
        None,
        &["q holds BFLOAT16", "dtype is FLOAT32"],
    );
    refused(
        (&vec![F16::default(); len]).into(),
        None,
        &["q holds FLOAT16", "dtype is FLOAT32"],
    );
    // A stride that repeats, and rows that are longer than they must be, are right.
    let q = Tensor::from(&right[..DIM as usize]).strides(0, Stride::Repeat as i64, DIM);
    context
        .forward(&desc, ForwardArgs::new(q, &right, &right, &mut out))
        .unwrap();
    let mut wide = vec![7f32; 2 * len];
    let to = TensorMut::from(&mut wide).strides(0, 2 * DIM, DIM);
    context
        .forward(&desc, ForwardArgs::new(&right, &right, &right, to))
        .unwrap();
    assert!(wide
        .chunks(DIM as usize)
        .skip(1)
        .step_by(2)
        .flatten()
        .all(|&x| x == 7.0));
}

#[test]
fn wrong_records_are_refused_with_the_numbers() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let refused = |desc: AttentionDesc, words: &str| {
        let error = context.check_support(&desc).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.message().contains(words), "{words}: {error}");
    };
    refused(
        desc().batch(3).kv_lengths([1, 2]),
        "kv_lengths has 2 entries; must have batch = 3",
    );
    refused(
        desc().document_offsets_kv([0, 1]),
        "document_offsets_kv has 2 entries; must have num",
    );
    refused(desc().document_offsets_q([]), "num_documents is -1");
    refused(desc().dtype(DType::Unknown), "dtype is -2147483648");
    let error = Context::new(&ContextConfig::new().engine("sca\0lar")).unwrap_err();
    assert_eq!(
        error.message(),
        "engine has a NUL byte at 3; must have none"
    );
    assert_eq!("ZIGZAG".parse(), Ok(Sharding::Zigzag));
    let error = "CIRCULAR".parse::<Mask>().unwrap_err();
    assert_eq!(
        error.message(),
        "mask is CIRCULAR; must be one of FULL, CAUSAL"
    );
    assert_eq!(Status::from_raw(77), Status::Unknown);
}

#[test]
fn ranges_of_positions() {
    let desc = desc().sharding(Sharding::Zigzag);
    let all = desc.shard_positions(2, 1, Side::Query, ..).unwrap();
    assert_eq!(
        all.len() as i64,
        desc.shard_length(2, 1, Side::Query).unwrap()
    );
    assert_eq!(
        desc.shard_positions(2, 1, Side::Query, 3..=5).unwrap(),
        all[3..=5]
    );
    assert_eq!(desc.shard_position(2, 1, Side::Query, 5).unwrap(), all[5]);
    let backwards = all.len() as i64..3;
    for range in [-1..2, 40..i64::MAX, i64::MIN..0, backwards] {
        let error = desc
            .shard_positions(2, 1, Side::Query, range.clone())
            .unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{range:?}");
    }
    // What cannot be is refused, and what memory is too small for is an error, not the end.
    let long = AttentionDesc::new().seqlen_q(1 << 46).head_dim(1);
    let of = |range| long.shard_positions(1, 0, Side::Query, range).unwrap_err();
    assert_eq!(of(i64::MIN..i64::MAX).status(), Status::InvalidArgument);
    assert_eq!(of(-1..1 << 46).status(), Status::InvalidArgument);
    assert_eq!(of(0..1 << 46).status(), Status::OutOfMemory);
}

#[test]
fn ranks_without_tokens() {
    // 2 tokens on 4 ranks: the last two have none, and their slices are empty.
    let desc = AttentionDesc::new().seqlen_q(2).head_dim(4);
    on_ranks(4, |context, rank| {
        let len = desc.shard_length(4, rank, Side::Query).unwrap() as usize;
        assert_eq!(len, usize::from(rank < 2));
        let ones = vec![1f32; 4 * len];
        let (mut out, mut lse) = (vec![0f32; 4 * len], vec![0f32; len]);
        context
            .forward(
                &desc,
                ForwardArgs::new(&ones, &ones, &ones, &mut out).lse(&mut lse),
            )
            .unwrap();
        assert_eq!(out, ones);
        let (mut dq, mut dk, mut dv) = (ones.clone(), ones.clone(), ones.clone());
        let args = BackwardArgs {
            dout: (&ones).into(),
            q: (&ones).into(),
            k: (&ones).into(),
            v: (&ones).into(),
            out: (&out).into(),
            lse: &lse,
            dq: (&mut dq).into(),
            dk: (&mut dk).into(),
            dv: (&mut dv).into(),
            accumulate: true,
            key_bias: None,
            sinks: None,
            dsinks: None,
        };
        context.backward(&desc, args).unwrap();
        assert_eq!(dv, vec![2f32; 4 * len]);
        assert_eq!(context.statistics().unwrap().steps > 0, len > 0);
    });
}

#[test]
fn the_log_goes_to_the_callback_of_now() {
    let _alone = alone();
    let lines: Arc<Mutex<Vec<(LogLevel, String)>>> = Arc::default();
    let to = lines.clone();
    let push = move |level, line: &str| to.lock().unwrap().push((level, line.to_string()));
    set_log(LogLevel::Debug, Some(Box::new(push))).unwrap();
    drop(Context::new(&ContextConfig::new()).unwrap());
    set_log(LogLevel::Debug, Some(Box::new(|_, _| panic!("on purpose")))).unwrap();
    assert_eq!(
        Arc::strong_count(&lines),
        1,
        "the former callback is dropped"
    );
    drop(Context::new(&ContextConfig::new()).unwrap()); // the panic stays on its side
    set_log(LogLevel::Debug, None).unwrap();
    let lines = lines.lock().unwrap();
    assert!(lines
        .iter()
        .any(|(level, line)| *level == LogLevel::Debug && line.contains("engine")));
}

#[test]
fn lists_say_how_many_there_are() {
    let desc = AttentionDesc::new().seqlen_q(9).head_dim(4);
    let refused = |desc: AttentionDesc, words: &str| {
        let error = desc.shard_length(1, 0, Side::Query).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(words), "{error}");
    };
    refused(
        desc.clone().mask_slices([0, 9, 0, 9, 0, 1, 2]),
        "mask_slices has 7 entries; must have 5",
    );
    refused(
        desc.clone().segment_lengths([4, 9]).dilations([1]),
        "dilations has 1 entries; must have num_branches = 2",
    );
    refused(
        desc.clone().alibi_slopes([0.5, 0.25]),
        "alibi_slopes has 2 entries; must have num_heads_q = 1",
    );
    let empty = desc.mask_slices([]).segment_lengths([]).dilations([]);
    assert_eq!(empty.shard_length(1, 0, Side::Query).unwrap(), 9);
}

#[test]
fn interleaved_gradients_by_address() {
    let context = Context::new(&ContextConfig::new()).unwrap();
    let desc = AttentionDesc::new().seqlen_q(2).head_dim(1);
    let (ones, lse) = ([1f32; 2], [3f32.ln() * 0.0 + 1.0 + 2f32.ln(); 2]);
    let mut buffer = [9f32; 6]; // [2 tokens, dq dk dv, 1]
    let base = buffer.as_mut_ptr();
    let part = |i: usize| unsafe { TensorMut::from_raw_parts(base.add(i), 6 - i) }.strides(0, 3, 1);
    let args = BackwardArgs {
        dout: (&ones).into(),
        q: (&ones).into(),
        k: (&ones).into(),
        v: (&ones).into(),
        out: (&ones).into(),
        lse: &lse,
        dq: part(0),
        dk: part(1),
        dv: part(2),
        accumulate: false,
        key_bias: None,
        sinks: None,
        dsinks: None,
    };
    context.backward(&desc, args).unwrap();
    for (i, gradient) in buffer.iter().enumerate() {
        let expected = if i % 3 == 2 { 1.0 } else { 0.0 };
        assert!((gradient - expected).abs() < 1e-6, "{buffer:?}");
    }
}

#[test]
fn device_calls_on_the_cpu_backend() {
    use ringattn::device::*;
    let context = Context::new(&ContextConfig::new()).unwrap();
    let desc = AttentionDesc::new().seqlen_q(2).head_dim(1);
    let memory = |list: &mut [f32]| DeviceMemory {
        address: list.as_mut_ptr().cast(),
        size: std::mem::size_of_val(list),
    };
    let (mut ones, mut out, mut lse) = ([1f32; 2], [0f32; 2], [0f32; 2]);
    let of_ones = memory(&mut ones);
    let needed = context
        .memory_requirements(&desc)
        .unwrap()
        .forward_workspace;
    let mut workspace = vec![0u8; needed + 64];
    let offset = workspace.as_ptr().align_offset(64);
    let workspace = &mut workspace[offset..offset + needed];
    let workspace = DeviceMemory {
        address: workspace.as_mut_ptr().cast(),
        size: needed,
    };
    let args = DeviceForwardArgs {
        q: DeviceTensor::new(&of_ones),
        k: DeviceTensor::new(&of_ones),
        v: DeviceTensor::new(&of_ones).strides(0, 1, 1),
        out: DeviceTensor::new(&memory(&mut out)),
        lse: Some(memory(&mut lse)),
        key_bias: None,
        sinks: None,
        workspace: Some(workspace),
        stream: std::ptr::null_mut(),
    };
    unsafe { context.forward_device(&desc, &args).unwrap() };
    assert_eq!(out, [1.0; 2]);
    let short = DeviceForwardArgs {
        workspace: Some(DeviceMemory {
            size: 1,
            ..workspace
        }),
        ..args
    };
    let error = unsafe { context.forward_device(&desc, &short).unwrap_err() };
    assert!(error.message().contains("workspace_size is 1"), "{error}");
    let mut grads = [[5f32; 2]; 3];
    let [dq, dk, dv] = grads
        .each_mut()
        .map(|list| DeviceTensor::new(&memory(list)));
    let args = DeviceBackwardArgs {
        dout: args.q,
        q: args.q,
        k: args.q,
        v: args.q,
        out: args.out,
        lse: memory(&mut lse),
        dq,
        dk,
        dv,
        accumulate: false,
        key_bias: None,
        sinks: None,
        dsinks: None,
        workspace: None,
        stream: std::ptr::null_mut(),
    };
    unsafe { context.backward_device(&desc, &args).unwrap() };
    assert!((grads[2][1] - 1.0).abs() < 1e-6, "{grads:?}");
}

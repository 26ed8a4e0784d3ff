"""What holds on a real GPU, and how fast it is: ./dev gpu-check [STAGE...].

Every stage is a process of its own, which ends when its time is over. What it finds is a list of bars: a bar that does not hold, or a
stage that cannot run, makes the whole fail. OUTPUT/gpu_check.json, and the list that is printed last, also keep what earlier calls have
found in other stages, as long as GPU and commit are the same; OUTPUT/STAGE.log has what a stage's programs have printed.

Needs Python 3.11 and its standard library; `speed` needs PyTorch, whose wheels may bring NCCL, cuDNN and cuBLAS for the library too. The
programs and the library are in one folder, made by ./dev gpu-check --pack, where there need be no GPU.
"""

import argparse
import ctypes
import json
import operator
import os
import pathlib
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
for folder in ("tests/gpu", "tests/benchmark", "tests/oracle"):
    sys.path.insert(0, str(ROOT / folder))
import ringattn_ctypes  # noqa: E402
from gpu import Gpu, Host  # noqa: E402
from report import Column, Report, progress, read_cpu_name  # noqa: E402

MIB = 1 << 20


class NotRun(Exception):
    """Why a stage cannot run here."""


# ---------------------------------------------------------------- the machine

class Machine:
    """The library, and the memory of the GPU, or of the host with --backend cpu."""

    def __init__(self, options):
        self.options = options
        self.is_cuda = options.backend == "cuda"
        for library in options.folder.glob("libtbb.so*"):  # of the folder rather than of the system
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.api = ringattn_ctypes.load(str(options.ringattn), str(ROOT / "include/ringattn/ringattn.h"))
        self.capabilities = self.api.make("ra_capabilities")
        self.api.call("ra_get_capabilities", self.capabilities)
        if not self.is_cuda:
            self.place = Host()
            self.where = {"cpu": read_cpu_name(), "threads": self.capabilities.hardware_threads}
            return
        try:
            self.place = Gpu(0, options.driver)
        except (OSError, RuntimeError) as failure:
            raise NotRun(f"no NVIDIA GPU: {failure}") from failure
        if not self.capabilities.has_cuda:
            raise NotRun(self.reason())
        self.where = {"gpu": self.place.name, "driver": self.driver()}

    def reason(self):
        """Why the library does not take the GPU, in its own words."""
        try:
            self.api.functions.ra_destroy_context(self.api.call("ra_create_context", self.config(0, 1)))
        except self.api.Error as error:
            return str(error)
        return "the library reports no CUDA device, but makes a context for one"

    def driver(self):
        try:
            text = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True,
                                  text=True, timeout=20, check=True).stdout
            return f"{text.splitlines()[0].strip()}, {self.place.driver_version}"
        except (OSError, subprocess.SubprocessError, IndexError):
            return self.place.driver_version

    def config(self, rank, world_size, **fields):
        backend = self.api.RA_BACKEND_CUDA if self.is_cuda else self.api.RA_BACKEND_CPU
        return self.api.make("ra_context_config", rank=rank, world_size=world_size, backend=backend, timeout_ms=60_000,
                             num_threads=0 if self.is_cuda else 1, **fields)


class Ranks:
    """Contexts of one group in this process, each on a thread of its own."""

    def __init__(self, machine, world_size, transport=None, engine=None):
        self.machine, self.world_size = machine, world_size
        api = machine.api
        transport = api.RA_TRANSPORT_LOCAL if transport is None else transport
        unique_id = api.ra_unique_id()
        api.call("ra_create_unique_id", unique_id, transport, None)
        self.contexts = [None] * world_size
        self.contexts = self.run(lambda rank, _: api.call(
            "ra_create_context", machine.config(rank, world_size, transport=transport, unique_id=unique_id.text, engine=engine)))

    def run(self, body):
        """body(rank, context) of every rank, at the same time."""
        results, failures = [None] * self.world_size, []

        def work(rank):
            try:
                self.machine.place.enter()
                results[rank] = body(rank, self.contexts[rank])
            except Exception as failure:  # pylint: disable=broad-except
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for context in self.contexts:
            self.machine.api.functions.ra_destroy_context(context)


class Shard:
    """One rank's tensors of a problem, bfloat16, with its arguments for both passes."""

    def __init__(self, machine, desc, world_size, rank, stream):
        api, self.place = machine.api, machine.place
        length = api.call("ra_get_shard_length", desc, world_size, rank, api.RA_SIDE_QUERY)
        of_queries = 2 * desc.batch * length * desc.num_heads_q * desc.head_dim
        of_keys = 2 * desc.batch * length * desc.num_heads_kv * desc.head_dim
        self.data = {name: self.place.allocate(of_keys if "k" in name or "v" in name else of_queries)
                     for name in ("q", "k", "v", "dout", "out", "dq", "dk", "dv")}
        self.data["lse"] = self.place.allocate(4 * desc.batch * length * desc.num_heads_q)
        draw = random.Random(rank)
        pattern = b"".join(struct.pack("<f", draw.gauss(0, 1))[2:] for _ in range(4999))  # of bfloat16; 4999 is prime
        for name in ("q", "k", "v", "dout"):
            size = of_keys if name in "kv" else of_queries
            self.place.write(self.data[name], (pattern * (size // len(pattern) + 1))[:size])

        def arguments(kind, *names):
            tensors = {name: api.ra_tensor(self.data[name], 0, 0, 0) for name in names}
            made = api.make(kind, **tensors)
            made.lse, made.stream = self.data["lse"], stream
            return made

        self.forward = arguments("ra_forward_args", "q", "k", "v", "out")
        self.backward = arguments("ra_backward_args", "q", "k", "v", "out", "dout", "dq", "dk", "dv")

    def free(self):
        for data in self.data.values():
            self.place.free(data)


def describe(machine, tokens, heads, heads_kv, dim):
    api = machine.api
    return api.make("ra_attention_desc", seqlen_q=tokens, seqlen_kv=tokens, num_heads_q=heads, num_heads_kv=heads_kv, head_dim=dim,
                    head_dim_v=dim, dtype=api.RA_DTYPE_BFLOAT16, mask=api.RA_MASK_CAUSAL, sharding=api.RA_SHARDING_ZIGZAG)


# ---------------------------------------------------------------- stages of programs

def run_program(stage, command, seconds, **environment):
    """Its exit status, and all that it printed, which goes to the stage's log too. NotRun: it takes too long, or is not there."""
    command = [str(word) for word in command]
    progress(f"{stage.name}: {' '.join(command)}")
    with open(stage.options.output / f"{stage.name}.log", "a+", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        begin = log.tell()
        try:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False,
                                    env=os.environ | environment).returncode
        except subprocess.TimeoutExpired as failure:
            raise NotRun(f"{pathlib.Path(command[0]).name} took more than {seconds} s") from failure
        except OSError as failure:
            raise NotRun(str(failure)) from failure
        log.seek(begin)
        return status, log.read()


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing"


def run_tests(stage, title, tests, seconds, command=(), **environment):
    """Tests of GoogleTest: a bar for how many fail."""
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "tests.json"
        status, text = run_program(stage, [*command, stage.options.tests, f"--gtest_filter={tests}", f"--gtest_output=json:{found}"],
                                   seconds, **environment)
        if not found.exists():
            raise NotRun(f"{title}: status {status}, {last_line(text)}")
        suites = json.loads(found.read_text(encoding="utf-8"))["testsuites"]
    cases = [case for suite in suites for case in suite["testsuite"]]
    ran = [case for case in cases if case["result"] == "COMPLETED"]
    skipped = sum(case["result"] == "SKIPPED" for case in cases)
    failed = [case for case in ran if case.get("failures")]
    if not ran:
        raise NotRun(f"{title}: no tests ran, {skipped} skipped")
    stage.report.note(f"{title}: {len(ran)} tests, {len(failed)} failed, {skipped} skipped")
    for case in failed:
        stage.report.note(f"  {case['classname']}.{case['name']}: {case['failures'][0]['failure'][:500]}")
    stage.report.add_bar(f"{title}: tests that fail", len(failed), "<=", 0)
    return status


# What is left of the tests is kernels by themselves, so that a test which is added is run.
INSTRUCTIONS, RINGS = "Instructions.*", "All/*:Large/*"


def instructions(stage):
    """each function of lib/engine/cuda/device against the PTX ISA"""
    run_tests(stage, "instructions", INSTRUCTIONS, 60)


def kernels(stage):
    """all kernels against fp64: dtypes, masks, head dims, ragged sizes, layouts"""
    run_tests(stage, "kernels", f"-{INSTRUCTIONS}:{RINGS}", 300)


def backend(stage):
    """rings of ranks through the C API against fp64, and in CUDA graphs, with the library's engine and the portable one"""
    for title, engine in (("backend", ""), ("backend, portable engine", "portable")):
        run_tests(stage, title, RINGS, 150, RINGATTN_TEST_ENGINE=engine)


def sanitizer(stage):
    """compute-sanitizer's memcheck and racecheck over small shapes"""
    tool = shutil.which("compute-sanitizer") or next(
        (str(path) for path in pathlib.Path("/usr/local").glob("cuda*/bin/compute-sanitizer")), None)
    if tool is None:
        raise NotRun("no compute-sanitizer in PATH or /usr/local/cuda*/bin")
    found_something = 86
    for check, tests in (("memcheck", "-All/*nccl*:All/BackendGraph.*:Large/*"),
                         ("racecheck", "Instructions.*:Merge.*:Portable*Hold*:PortableForward.IsWithin*")):
        status = run_tests(stage, check, tests, 270,
                           [tool, "--tool", check, "--error-exitcode", found_something, "--report-api-errors", "no"],
                           RINGATTN_TEST_BRIEF="1")
        stage.report.add_bar(f"{check}: found something", int(status == found_something), "<=", 0)


# ---------------------------------------------------------------- transports

def self_test(stage, title, ranks):
    problems = 4 if stage.options.quick else 100
    try:
        ranks.run(lambda rank, context: stage.machine.api.call("ra_run_self_test", context, problems, 1))
        stage.report.note(f"{title}: {problems} random problems within the tolerance")
        stage.report.add_bar(f"{title}: self-test fails", 0, "<=", 0)
    except stage.machine.api.Error as error:
        stage.report.note(f"{title}: {error}")
        stage.report.add_bar(f"{title}: self-test fails", 1, "<=", 0)


def transports(stage):
    """ranks of one process on one GPU, and one rank over NCCL: random problems against fp64"""
    api = stage.machine.api
    for world_size in (1, 3) if stage.options.quick else (1, 2, 3, 4, 8):
        for title, engine in (("", None), (", portable engine", b"portable"))[:1 if stage.options.quick else 2]:
            with Ranks(stage.machine, world_size, engine=engine) as ranks:
                self_test(stage, f"local, ranks: {world_size}{title}", ranks)
    if not stage.machine.is_cuda:
        return
    if not stage.machine.capabilities.has_nccl:
        try:
            api.call("ra_create_unique_id", api.ra_unique_id(), api.RA_TRANSPORT_NCCL, None)
        except api.Error as error:
            stage.report.add_missing("NCCL, 1 rank", str(error))
        return
    with Ranks(stage.machine, 1, api.RA_TRANSPORT_NCCL) as ranks:
        self_test(stage, "NCCL, 1 rank", ranks)


def processes(stage):
    """two processes that share the GPU, over NCCL and the loopback interface: results, and what one knows of the other's end"""
    # NCCL takes two processes on one GPU for a mistake, unless they say that they are on different machines.
    alike = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_NET": "Socket", "NCCL_IB_DISABLE": "1", "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        shared = pathlib.Path(folder)

        def start(rank, command):
            log = open(shared / f"{rank}.log", "w+", encoding="utf-8", errors="replace")  # closed with the process's end
            return subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT,
                                    env=os.environ | alike | {"NCCL_HOSTID": f"ringattn{rank}"}), log

        def run_both(title, command, expected=(0, 0)):
            progress(f"{stage.name}: {title}")
            running = [start(rank, command(rank)) for rank in range(2)]
            end = time.monotonic() + 120

            def as_expected():
                return all(process.poll() in (None, status) for (process, _), status in zip(running, expected))

            try:
                while any(process.poll() is None for process, _ in running) and time.monotonic() < end and as_expected():
                    time.sleep(0.1)
            finally:
                for process, _ in running:
                    if process.poll() is None:
                        process.kill()
                    process.wait()
            statuses = [process.returncode for process, _ in running]
            for rank, (_, log) in enumerate(running):
                log.seek(0)
                text = log.read()
                log.close()
                with open(stage.options.output / f"{stage.name}.log", "a", encoding="utf-8") as kept:
                    kept.write(f"{title}, process {rank}: status {statuses[rank]}\n{text}\n")
                stage.report.note(f"{title}, process {rank}: status {statuses[rank]}, {last_line(text)}")
            stage.report.add_bar(f"{title}: processes that fail", sum(map(operator.ne, statuses, expected)), "<=", 0)

        def worker(meeting):
            return lambda rank: [sys.executable, __file__, "--worker", rank, "--shared", shared, "--meeting", meeting, *stage.arguments]

        if stage.machine.capabilities.has_zeromq:
            run_both("control plane, self-test", worker("joined"))
            run_both("control plane, a rank is killed", worker("killed"), (0, -signal.SIGKILL))
        else:
            stage.report.add_missing("control plane", "ZeroMQ or libsodium is not here")
        if not stage.machine.is_cuda:
            return
        run_both("self-test", worker("own"))
        example = stage.options.folder / "example_02_gpu_ring"
        run_both("example", lambda rank: [example, "--transport", "nccl", "--ranks", 2, "--rank", rank, "--id", shared / "example_id",
                                          "--tokens", 4096, "--repeats", 1])


def work(options):
    """One of the processes of `processes`: rank --worker of two."""
    machine = Machine(options)
    api, shared = machine.api, pathlib.Path(options.shared)
    transport = api.RA_TRANSPORT_NCCL if machine.is_cuda else api.RA_TRANSPORT_ZEROMQ
    id_file, death = shared / f"{options.meeting}_id", shared / "death"
    unique_id = api.ra_unique_id()
    if options.worker == 0:
        api.call("ra_create_unique_id", unique_id, transport, None if options.meeting == "own" else b"127.0.0.1")
        part = id_file.with_suffix(".part")
        part.write_bytes(unique_id.text)
        part.rename(id_file)
    while not id_file.exists():
        time.sleep(0.01)
    config = machine.config(options.worker, 2, transport=transport, unique_id=id_file.read_bytes())
    context = api.call("ra_create_context", config)
    if options.meeting != "killed":
        api.call("ra_run_self_test", context, 50, 1)
        print("50 random problems within the tolerance")
    else:
        api.call("ra_run_self_test", context, 5, 1)
        if options.worker == 1:
            death.write_text(str(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            api.call("ra_run_self_test", context, 1000, 1)
            sys.exit("a rank was killed, and nobody noticed")
        except api.Error as error:
            late = time.time() - float(death.read_text(encoding="utf-8"))
            print(f"{error}; {late:.3f} s after rank 1 was killed")
            if error.status != api.RA_STATUS_PEER_LOST or error.rank != 1 or late > 1:
                sys.exit(1)
    api.functions.ra_destroy_context(context)


# ---------------------------------------------------------------- speed

SPEED_COLUMNS = [
    Column("shape", "batch x heads x tokens x dim", width=24),
    Column("mask", "mask", width=6),
    Column("direction", "pass", width=8),
    Column("cudnn_seconds", "cuDNN", "ms", "{:.3f}", 1e-3, 8),
    Column("flash_seconds", "FLASH", "ms", "{:.3f}", 1e-3, 8),
    Column("ours_seconds", "ours", "ms", "{:.3f}", 1e-3, 8),
    Column("portable_seconds", "portable", "ms", "{:.3f}", 1e-3, 8),
    Column("ours_flops", "ours", "TFLOP/s", "{:.0f}", 1e12),
    Column("cudnn_ratio", "ours to", "cuDNN", "{:.3f}"),
    Column("flash_ratio", "portable", "to FLASH", "{:.3f}", 1, 8),
    Column("error", "error", "x cuDNN", "{:.2f}"),
]


def speed(stage):
    """bfloat16 beside PyTorch's FLASH_ATTENTION and CUDNN_ATTENTION, in turns on the same tensors; medians"""
    try:
        import torch  # pylint: disable=import-outside-toplevel
        import sdpa  # pylint: disable=import-outside-toplevel
    except ImportError as failure:
        raise NotRun(f"no PyTorch: {failure}") from failure
    if not stage.machine.is_cuda or not torch.cuda.is_available():
        raise NotRun(f"PyTorch {torch.__version__} has no GPU")
    kinds = torch.nn.attention.SDPBackend
    report = stage.report
    report.file["peer"] = f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    lengths = (2048, 4096) if stage.options.quick else (2048, 4096, 8192, 16384, 32768)
    shapes = [sdpa.Shape(max(1, 16384 // tokens), 2048 // dim, tokens, dim, heads_kv)
              for dim in (64, 128) for heads_kv in (0, 2048 // dim // 8) for tokens in lengths]
    rows = [sdpa.Row(shape, "bfloat16", causal, backward) for shape in shapes for causal in (False, True) for backward in (False, True)]
    libraries = {name: sdpa.Library(stage.machine.api, engine, 0, "cuda") for name, engine in (("ours", None), ("portable", "portable"))}

    def peer(case, kind):
        """None: PyTorch has no such kernel for this."""
        try:
            side = sdpa.PeerSide(case, kind)
            side.run()
            torch.cuda.synchronize()
            return side
        except RuntimeError:
            return None

    def seconds_of(side, count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        side.run()  # so that the GPU has work while the others are enqueued
        begin.record()
        for _ in range(count):
            side.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    report.begin_table("speed", SPEED_COLUMNS)
    found = []
    for number, row in enumerate(rows):
        progress(f"[{number + 1:>3} / {len(rows)}]  {row}")
        case = sdpa.Case(row, "cuda")
        sides = {"cudnn": peer(case, kinds.CUDNN_ATTENTION), "flash": peer(case, kinds.FLASH_ATTENTION)}
        sides |= {name: sdpa.OurSide(library, case) for name, library in libraries.items()}
        sides = {name: side for name, side in sides.items() if side is not None}
        least = 0.005 if stage.options.quick else 0.015
        counts = {name: max(1, round(least / max(seconds_of(side, 1), 1e-6))) for name, side in sides.items()}
        samples = [{name: seconds_of(side, counts[name]) for name, side in sides.items()} for _ in range(3 if stage.options.quick else 5)]
        median = {name: statistics.median(sample[name] for sample in samples) for name in sides}

        def ratio(peer_name, own_name):
            if peer_name not in sides:
                return None
            return statistics.median(sample[peer_name] / sample[own_name] for sample in samples)

        error = None
        reference = sides.get("cudnn", sides.get("flash"))
        if reference is not None and row.shape.tokens <= 2048:
            peer_error, own_error = case.error(reference.results, sides["ours"].results)
            error = own_error / peer_error
        ratios = {"cudnn": ratio("cudnn", "ours"), "flash": ratio("flash", "portable")}
        found.append((row, ratios, error))
        report.add_row(str(row.shape), row.mask, row.direction, median.get("cudnn"), median.get("flash"), median["ours"],
                       median["portable"], row.flops / median["ours"], ratios["cudnn"], ratios["flash"], error)
        del sides, case, reference
        torch.cuda.empty_cache()
    for library in libraries.values():
        library.close()

    for name, peer_name, direction, bar in (("forward over cuDNN", "cudnn", "forward", 0.95),
                                            ("backward over cuDNN", "cudnn", "backward", 0.90),
                                            ("portable engine, forward over FLASH", "flash", "forward", 0.9),
                                            ("portable engine, backward over FLASH, which is not deterministic", "flash", "backward", 0.8)):
        ratios = [ratios[peer_name] for row, ratios, _ in found if row.direction == direction and ratios[peer_name] is not None]
        if ratios:
            report.add_bar(f"{name}, worst shape", min(ratios), ">=", stage.bar(bar))
        else:
            report.add_missing(name, f"{report.file['peer']} has no such kernel here")
    errors = [error for _, _, error in found if error is not None]
    if errors:
        report.add_bar("error over PyTorch's, worst shape", max(errors), "<=", 2)


# ---------------------------------------------------------------- ring, memory

def seconds_of_ring(stage, world_size, desc, passes, repeats):
    """Of one call of each pass, by all ranks, until the device is done."""
    machine = stage.machine
    samples = []
    begin_together = threading.Barrier(world_size)
    with Ranks(machine, world_size) as ranks:

        def body(rank, context):
            try:
                measure(rank, context)
            except Exception:
                begin_together.abort()
                raise

        def measure(rank, context):
            with machine.place.stream() as stream:
                shard = Shard(machine, desc, world_size, rank, stream)
                arguments = {"ra_forward": shard.forward, "ra_backward": shard.backward}
                for sample in range(4):  # the first is not counted
                    machine.place.wait(stream)
                    begin_together.wait()
                    begin = time.perf_counter()
                    for _ in range(repeats):
                        for name in ("ra_forward", "ra_backward")[:passes]:
                            machine.api.call(name, context, desc, arguments[name])
                    machine.place.wait(stream)
                    begin_together.wait()
                    if rank == 0 and sample > 0:
                        samples.append((time.perf_counter() - begin) / repeats)
                shard.free()

        ranks.run(body)
    return statistics.median(samples)


def ring(stage):
    """what a ring of ranks on one GPU keeps of the speed of one rank, on the same problem"""
    world_size, tokens, heads, heads_kv, dim = (3, 384, 2, 1, 32) if stage.options.quick else (8, 65536, 16, 16, 128)
    desc = describe(stage.machine, tokens, heads, heads_kv, dim)
    stage.report.begin_table(f"ring: {tokens} tokens, causal, zigzag, {heads}:{heads_kv} heads of {dim}, bfloat16", [
        Column("direction", "pass", width=18),
        Column("ranks", "ranks"),
        Column("one_seconds", "one rank", "ms", "{:.3f}", 1e-3, 9),
        Column("ring_seconds", "the ring", "ms", "{:.3f}", 1e-3, 9),
        Column("efficiency", "efficiency", "", "{:.3f}"),
    ])
    for passes, direction in ((1, "forward"), (2, "forward + backward")):
        progress(f"ring: {direction}")
        one, many = (seconds_of_ring(stage, ranks, desc, passes, 1 if stage.options.quick else 4) for ranks in (1, world_size))
        stage.report.add_row(direction, world_size, one, many, one / many)
        stage.report.add_bar(f"ring of {world_size} ranks, {direction}: efficiency", one / many, ">=", stage.bar(0.92))


def memory(stage):
    """the device memory that calls take, beside what ra_get_memory_requirements says"""
    machine = stage.machine
    if not machine.is_cuda:
        raise NotRun("measured on GPUs only; bench_memory does it for the host")
    tokens, heads, heads_kv, dim = (4096, 2, 1, 32) if stage.options.quick else (65536, 16, 4, 128)
    stage.report.begin_table(f"memory: {tokens} tokens, causal, zigzag, {heads}:{heads_kv} heads of {dim}, bfloat16", [
        Column("ranks", "ranks"),
        Column("formula", "formula", "MiB", "{:.1f}", MIB, 9),
        Column("measured", "measured", "MiB", "{:.1f}", MIB, 9),
        Column("ratio", "ratio", "", "{:.3f}"),
    ])
    seconds_of_ring(stage, 2, describe(machine, 128, heads, heads_kv, dim), 2, 1)  # kernels are loaded when first used
    for world_size in (1, 3) if stage.options.quick else (1, 2, 8):
        desc = describe(machine, tokens, heads, heads_kv, dim)
        with Ranks(machine, world_size) as ranks:
            before = machine.place.used()

            def body(rank, context):
                needs = machine.api.make("ra_memory_requirements")
                machine.api.call("ra_get_memory_requirements", context, desc, needs)
                with machine.place.stream() as stream:
                    shard = Shard(machine, desc, world_size, rank, stream)
                    machine.api.call("ra_forward", context, desc, shard.forward)
                    machine.api.call("ra_backward", context, desc, shard.backward)
                    machine.place.wait(stream)
                return shard, needs.backward_tensors + max(needs.forward_workspace, needs.backward_workspace)

            found = ranks.run(body)
            measured, formula = machine.place.used() - before, sum(needs for _, needs in found)
            for shard, _ in found:
                shard.free()
        stage.report.add_row(world_size, formula, measured, measured / formula)
        stage.report.add_bar(f"memory of {world_size} ranks over the formula", measured / formula, "<=", 1.05)


# ---------------------------------------------------------------- layers

class Layer:
    """One rank's tensors of a layer of multi-head attention, bfloat16, with its arguments for both passes."""

    def __init__(self, machine, context, desc, mha, stream):
        api, self.place = machine.api, machine.place
        tokens, d_model = desc.batch * desc.seqlen_q, mha.d_model
        q, k = desc.num_heads_q * desc.head_dim, desc.num_heads_kv * desc.head_dim
        needs = api.make("ra_mha_requirements")
        api.call("ra_get_mha_requirements", context, desc, mha, needs)
        self.flops = {"forward": needs.forward_flops, "backward": needs.backward_flops}
        counts = {"x": tokens * d_model, "w_q": d_model * q, "w_k": d_model * k, "w_v": d_model * k, "w_o": q * d_model}
        self.sizes = {name: 2 * count for name, count in counts.items()}
        self.sizes |= {name: self.sizes["x"] for name in ("out", "dout", "dx")}
        self.sizes |= {f"d{name}": 4 * counts[name] for name in ("w_q", "w_k", "w_v", "w_o")}
        self.sizes["activations"] = needs.activations
        self.data = {name: self.place.allocate(size) for name, size in self.sizes.items()}
        draw = random.Random(1)
        for name in (*counts, "dout"):
            of = d_model ** -0.5 if name.startswith("w") else 1
            pattern = b"".join(struct.pack("<f", draw.gauss(0, of))[2:] for _ in range(4999))
            self.place.write(self.data[name], (pattern * (self.sizes[name] // len(pattern) + 1))[:self.sizes[name]])

        def arguments(kind, *names):
            tensors = {name: api.ra_tensor(self.data[name], 0, 0, 0) for name in (*counts, *names)}
            return api.make(kind, stream=stream, activations=self.data["activations"], activations_size=needs.activations, **tensors)

        self.arguments = {"forward": arguments("ra_mha_forward_args", "out"),
                          "backward": arguments("ra_mha_backward_args", "dout", "dx", "dw_q", "dw_k", "dw_v", "dw_o")}

    def results(self):
        return [self.place.read(self.data[name], self.sizes[name]) for name in ("out", "dx", "dw_q", "dw_k", "dw_v", "dw_o")]

    def free(self):
        for data in self.data.values():
            self.place.free(data)


def layers(stage):
    """layers of multi-head attention: the same bits again, and how long they take beside their attention"""
    machine, api = stage.machine, stage.machine.api
    stage.report.begin_table("layers: causal, bfloat16, rotary, one rank", [
        Column("shape", "d_model, heads, tokens", width=26),
        Column("direction", "pass", width=8),
        Column("layer_seconds", "layer", "ms", "{:.3f}", 1e-3, 9),
        Column("attention_seconds", "attention", "ms", "{:.3f}", 1e-3, 9),
        Column("flops", "layer", "TFLOP/s", "{:.1f}", 1e12),
    ])
    different = 0
    for d_model, heads, heads_kv, dim, tokens in ((128, 4, 2, 32, 256),) if stage.options.quick else (
            (2048, 16, 16, 128, 16384), (4096, 32, 8, 128, 16384), (4096, 32, 8, 128, 65536)):
        desc = describe(machine, tokens, heads, heads_kv, dim)
        mha = api.make("ra_mha_desc", d_model=d_model, rotary=api.RA_ROTARY_HALVES)

        def body(rank, context):
            def seconds_of(calls):
                samples = []
                for sample in range(4):  # the first is not counted
                    machine.place.wait(stream)
                    begin = time.perf_counter()
                    for name, *arguments in calls:
                        api.call(name, context, desc, *arguments)
                    machine.place.wait(stream)
                    samples += [time.perf_counter() - begin] * (sample > 0)
                return statistics.median(samples)

            with machine.place.stream() as stream:
                layer, shard = Layer(machine, context, desc, mha, stream), Shard(machine, desc, 1, rank, stream)
                seconds = {"forward": (seconds_of([("ra_mha_forward", mha, layer.arguments["forward"])]),
                                       seconds_of([("ra_forward", shard.forward)])),
                           "backward": (seconds_of([("ra_mha_backward", mha, layer.arguments["backward"])]),
                                        seconds_of([("ra_backward", shard.backward)]))}
                found = []
                for _ in range(2):
                    api.call("ra_mha_forward", context, desc, mha, layer.arguments["forward"])
                    api.call("ra_mha_backward", context, desc, mha, layer.arguments["backward"])
                    machine.place.wait(stream)
                    found.append(layer.results())
                flops = layer.flops
                layer.free()
                shard.free()
                return seconds, flops, sum(map(operator.ne, *found))

        with Ranks(machine, 1) as ranks:
            (seconds, flops, unlike), = ranks.run(body)
        different += unlike
        for direction, (whole, attention) in seconds.items():
            stage.report.add_row(f"{d_model}, {heads}:{heads_kv} of {dim}, {tokens}", direction, whole, attention, flops[direction] / whole)
    stage.report.add_bar("layers: results that differ in repetition", different, "<=", 0)


# ---------------------------------------------------------------- the whole

# By name: the stage, and the seconds that it may take.
STAGES = {
    "instructions": (instructions, 90),
    "kernels": (kernels, 330),
    "backend": (backend, 320),
    "transports": (transports, 200),
    "processes": (processes, 270),
    "sanitizer": (sanitizer, 570),
    "speed": (speed, 400),
    "ring": (ring, 120),
    "memory": (memory, 120),
    "layers": (layers, 180),
}
OF_PROGRAMS = ("instructions", "kernels", "backend", "sanitizer")


class Stage:
    """One stage in its own process; bars and rows go to --child FILE."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.arguments = as_arguments(options)
        self.machine = None if options.stand_in_tests and name in OF_PROGRAMS else Machine(options)
        self.report = Report(name, self.machine.where if self.machine else {}, options.quick)

    def bar(self, of_time):
        """Times of small problems on shared machines are no measure."""
        return 0 if self.options.quick else of_time


def run_stage(name, options):
    found = {"rows": [], "bars": []}
    try:
        stage = Stage(name, options)
        found = stage.report.file
        STAGES[name][0](stage)
    except NotRun as failure:
        found["bars"].append({"name": name, "not_run": str(failure), "holds": False})
        print(f"{name}: not run: {failure}")
    pathlib.Path(options.child).write_text(json.dumps(found), encoding="utf-8")


def as_arguments(options):
    arguments = ["--backend", options.backend, "--folder", options.folder, "--library", options.ringattn, "--driver", options.driver,
                 "--tests", options.tests, "--output", options.output]
    return [str(word) for word in arguments] + ["--quick"] * options.quick + ["--stand-in-tests"] * options.stand_in_tests


def run_child(name, options):
    """What the stage has found; what went wrong with it is a bar that does not hold."""
    seconds = STAGES[name][1]
    with tempfile.TemporaryDirectory() as folder:
        child = pathlib.Path(folder) / "found.json"
        command = [sys.executable, "-u", __file__, name, "--child", str(child), *as_arguments(options)]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            status = process.wait(seconds)
            reason = f"its process ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
        except subprocess.TimeoutExpired:
            reason = f"took more than {seconds} s"
        finally:
            if process.poll() is None:  # its own programs too
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if child.exists():
            return json.loads(child.read_text(encoding="utf-8"))
    print(f"{name}: not run: {reason}")
    return {"rows": [], "bars": [{"name": name, "not_run": reason, "holds": False}]}


def use_wheels():
    """Libraries that PyTorch has brought along, where the environment names none."""
    for variable, file in (("RINGATTN_NCCL_LIBRARY", "nvidia/nccl/lib/libnccl.so.2"),
                           ("RINGATTN_CUDNN_LIBRARY", "nvidia/cudnn/lib/libcudnn.so.9"),
                           ("RINGATTN_CUBLAS_LIBRARY", "nvidia/cu13/lib/libcublas.so.13")):
        path = next((path for entry in sys.path if entry and (path := pathlib.Path(entry) / file).exists()), None)
        if path is not None:
            os.environ.setdefault(variable, str(path))


def merge(report, path, names):
    """Keeps what an earlier run has found in other stages, on the same GPU and commit."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if any(key in report.file and old.get(key) != report.file[key] for key in ("gpu", "cpu", "commit", "quick")):
        return
    for key in ("rows", "bars"):
        kept = [entry for entry in old[key] if entry["stage"] not in names]
        report.file[key] = sorted(kept + report.file[key], key=lambda entry: list(STAGES).index(entry["stage"]))
    for key, value in old.items():
        report.file.setdefault(key, value)


def main():
    about = "\n".join(f"  {name:13} {function.__doc__}" for name, (function, _) in STAGES.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"stages, all of them by default:\n{about}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="those to run")
    parser.add_argument("--without", action="append", default=[], metavar="STAGE", help="a stage to leave out; may be repeated")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "build/bench", help="folder of gpu_check.json and the logs")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build/gpu-check", help="what --pack has made")
    parser.add_argument("--quick", action="store_true", help="small problems; nothing is asked of times")
    parser.add_argument("--backend", choices=("cuda", "cpu"), default="cuda", help="cpu: what of it can be tried without a GPU")
    parser.add_argument("--library", dest="ringattn", type=pathlib.Path, help="libringattn.so (default: that of the folder)")
    parser.add_argument("--tests", type=pathlib.Path, help="the program with the tests (default: that of the folder)")
    parser.add_argument("--driver", default="libcuda.so.1", help=argparse.SUPPRESS)
    parser.add_argument("--stand-in-tests", action="store_true", help=argparse.SUPPRESS)  # they need no GPU
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shared", help=argparse.SUPPRESS)
    parser.add_argument("--meeting", choices=("own", "joined", "killed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in (*options.stages, *options.without):
        if name not in STAGES:
            parser.error(f"no stage {name}; there are: {' '.join(STAGES)}")
    options.folder, options.output = options.folder.resolve(), options.output.resolve()
    options.ringattn = (options.ringattn or next(iter(options.folder.glob("libringattn.so.*")), options.folder / "libringattn.so")).resolve()
    options.tests = (options.tests or options.folder / "gpu_tests").resolve()
    if options.worker is not None:
        return work(options)
    if options.child:
        return run_stage(options.stages[0], options)

    if not options.ringattn.exists():
        sys.exit(f"gpu_check.py: no {options.ringattn}; ./dev gpu-check --pack makes it")
    options.output.mkdir(parents=True, exist_ok=True)
    commit = options.folder / "commit"
    if commit.exists():
        os.environ.setdefault("RINGATTN_COMMIT", commit.read_text(encoding="utf-8").strip())
    os.environ["LD_LIBRARY_PATH"] = f"{options.folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    use_wheels()
    names = [name for name in STAGES if name in (options.stages or STAGES) and name not in options.without]
    where, found = {}, []
    for name in names:
        print(f"\n== {name}: {STAGES[name][0].__doc__}", flush=True)
        (options.output / f"{name}.log").unlink(missing_ok=True)
        result = run_child(name, options)
        where |= {key: result[key] for key in ("gpu", "driver", "cpu", "threads", "peer") if key in result}
        found += [(key, {"stage": name} | entry) for key in ("rows", "bars") for entry in result[key]]
    print()
    report = Report("gpu_check", where, options.quick)
    for key, entry in found:
        report.file[key].append(entry)
    holds = all(bar["holds"] for bar in report.file["bars"])
    merge(report, options.output / "gpu_check.json", names)
    report.finish(options.output)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()

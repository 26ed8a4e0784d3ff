"""Speed and error of the C API against PyTorch's scaled_dot_product_attention: one process, equal tensors, alternating.

    ratio    median over the pairs of (PyTorch's seconds) / (ours); a pair is one sample of each, one after the other
    GFLOP/s  4 flops for each visible pair, head and dimension forward, 10 backward
    of peak  ours over the rate of fused multiply-adds on registers alone, as it was between the pairs, times the threads
    error    RMS of the output, or of dq, dk and dv together, against float64 on the same inputs; ours over PyTorch's

Between two samples nothing runs for a while, and the first call is not counted: threads of either side wait for work in a loop at
first, and would take it from the other.
Backward, only the backward pass is in the time: PyTorch's graph is kept from one call to the next.
Draws peers.png beside peers.json.
"""

import argparse
import ctypes
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
import time

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from report import Column, Report, progress  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
import ringattn_ctypes  # noqa: E402

IDLE_SECONDS = 0.02
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    tokens: int
    dim: int
    heads_kv: int = 0  # 0: as many as heads
    dim_v: int = 0  # 0: dim

    @property
    def kv(self):
        return self.heads_kv or self.heads

    @property
    def v(self):
        return self.dim_v or self.dim

    def __str__(self):
        heads = f"{self.heads}:{self.kv}" if self.heads_kv else f"{self.heads}"
        dim = f"{self.dim}/{self.dim_v}" if self.dim_v else f"{self.dim}"
        return f"{self.batch} x {heads} x {self.tokens} x {dim}"

    def flops(self, causal):
        """Forward."""
        pairs = self.tokens * (self.tokens + 1) / 2 if causal else self.tokens**2
        return 2.0 * self.batch * self.heads * (self.dim + self.v) * pairs


LONG = [
    Shape(1, 4, 4096, 128),
    Shape(1, 1, 8192, 128),
    Shape(1, 8, 4096, 64),
    Shape(1, 1, 8192, 64),
    Shape(1, 32, 4096, 128, heads_kv=8),
]
SHORT = [Shape(2, 16, 512, 64), Shape(8, 8, 128, 64)]
RAGGED = [
    Shape(1, 4, tokens, dim, dim_v=dim_v)
    for dim, dim_v in ((40, 0), (72, 0), (96, 0), (192, 128))
    for tokens in (1, 2, 3, 7, 16, 17, 33, 64, 100, 129, 200, 257)
]


@dataclasses.dataclass(frozen=True)
class Row:
    shape: Shape
    dtype: str
    causal: bool
    backward: bool
    threads: int

    @property
    def mask(self):
        return "causal" if self.causal else "full"

    @property
    def direction(self):
        return "backward" if self.backward else "forward"

    @property
    def flops(self):
        return self.shape.flops(self.causal) * (2.5 if self.backward else 1)

    def __str__(self):
        return f"{self.shape}, {self.dtype}, {self.mask}, {self.direction}, {self.threads} thread(s)"


def combine(shapes, quick):
    """Every combination that the bars speak of."""
    rows = itertools.product((1,) if quick else (1, 2), shapes, TORCH_DTYPES, (False, True), (False, True))
    return [Row(shape, dtype, causal, backward, threads) for threads, shape, dtype, causal, backward in rows
            if not quick or shape.tokens * shape.heads <= 8192]


class Ours:
    def __init__(self, api, engine, threads):
        self.api = api
        config = api.make("ra_context_config", num_threads=threads, world_size=1)
        config.engine = engine.encode() if engine else None
        self.context = api.call("ra_create_context", config)

    def close(self):
        self.api.functions.ra_destroy_context(self.context)

    def describe(self, row):
        api, shape = self.api, row.shape
        dtypes = {"float32": api.RA_DTYPE_FLOAT32, "bfloat16": api.RA_DTYPE_BFLOAT16}
        return api.make("ra_attention_desc", batch=shape.batch, seqlen_q=shape.tokens, seqlen_kv=shape.tokens,
                        num_heads_q=shape.heads, num_heads_kv=shape.kv, head_dim=shape.dim, head_dim_v=shape.v,
                        dtype=dtypes[row.dtype], mask=api.RA_MASK_CAUSAL if row.causal else api.RA_MASK_FULL)

    def arguments(self, kind, lse, **tensors):
        """Tensors are [batch, heads, tokens, dim] to PyTorch; both sides work on the same memory."""
        views = {name: self.api.ra_tensor(t.data_ptr(), t.stride(0), t.stride(2), t.stride(1)) for name, t in tensors.items()}
        arguments = self.api.make(kind, **views)
        arguments.lse = lse.data_ptr()
        return arguments


class Case:
    """Inputs, the outputs of both sides, and how each side computes them."""

    def __init__(self, ours, row):
        shape = row.shape
        generator = torch.Generator().manual_seed(1)

        def draw(heads, dim):
            values = torch.randn(shape.batch, heads, shape.tokens, dim, generator=generator)
            return values.to(TORCH_DTYPES[row.dtype])

        self.row = row
        self.inputs = [draw(shape.heads, shape.dim), draw(shape.kv, shape.dim), draw(shape.kv, shape.v)]
        self.dout = draw(shape.heads, shape.v)
        q, k, v = self.inputs
        self.out, self.lse = torch.empty_like(self.dout), torch.empty(shape.batch, shape.heads, shape.tokens)
        self.gradients = [torch.empty_like(t) for t in self.inputs]
        dq, dk, dv = self.gradients
        desc = ours.describe(row)
        forward = ours.arguments("ra_forward_args", self.lse, q=q, k=k, v=v, out=self.out)
        backward = ours.arguments("ra_backward_args", self.lse, q=q, k=k, v=v, out=self.out, dout=self.dout, dq=dq, dk=dk, dv=dv)
        self.our_forward = lambda: ours.api.call("ra_forward", ours.context, desc, forward)
        self.our_backward = lambda: ours.api.call("ra_backward", ours.context, desc, backward)

        self.our_forward()
        if row.backward:
            self.leaves = [t.clone().requires_grad_() for t in self.inputs]
            self.graph = self.attend(*self.leaves)
        self.sides = (self.peer_backward, self.our_backward) if row.backward else (self.peer_forward, self.our_forward)

    def attend(self, *inputs):
        return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=self.row.causal,
                                                                enable_gqa=self.row.shape.heads_kv != 0)

    def peer_forward(self):
        with torch.no_grad():
            self.peer_results = [self.attend(*self.inputs)]

    def peer_backward(self):
        self.peer_results = torch.autograd.grad(self.graph, self.leaves, self.dout, retain_graph=True)

    def errors(self):
        """RMS against float64 of PyTorch's and of our results, over the first group of heads of the first batch entry."""
        group = self.row.shape.heads // self.row.shape.kv
        sizes = (group, 1, 1)
        inputs = [t[:1, :n].double().requires_grad_(self.row.backward) for t, n in zip(self.inputs, sizes)]
        expected = [self.attend(inputs[0], *(t.expand(-1, group, -1, -1) for t in inputs[1:]))]
        ours = [self.out]
        if self.row.backward:
            expected = torch.autograd.grad(expected[0], inputs, self.dout[:1, :group].double())
            ours = self.gradients

        def rms(results):
            cut = [r[:1, : e.shape[1]].double() - e for r, e in zip(results, expected)]
            return float(torch.sqrt(sum((c**2).sum() for c in cut) / sum(c.numel() for c in cut)))

        return rms(self.peer_results), rms(ours)


def seconds_of(call, count):
    time.sleep(IDLE_SECONDS)
    call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def measure(case, pairs, least_seconds, fma_rate):
    """Medians of: PyTorch's seconds, ours, their ratio, the peak of one thread."""
    peer, ours = case.sides
    ours()
    count = max(1, round(least_seconds / max(seconds_of(peer, 1), 1e-6)))
    samples = [(seconds_of(peer, count), seconds_of(ours, count), fma_rate()) for _ in range(pairs)]
    return [statistics.median(values) for values in zip(*((p, o, p / o, rate) for p, o, rate in samples))]


# Least ratio to PyTorch, and least share of the FMA peak, of long shapes, by head_dim where one number is not for all.
BARS = {
    "amx": {"float32 forward": ({64: 1.5, 128: 1.6}, None), "float32 backward": (1.3, None),
            "bfloat16 forward": ({64: 2.5, 128: 2.0}, None), "bfloat16 backward": ({64: 5.5, 128: 3.7}, None)},
    "avx512": {"float32 forward": (1.15, 0.80), "float32 backward": (1.1, 0.70), "bfloat16 forward": (1.3, None),
               "bfloat16 backward": (1.5, None)},
    "avx2": {"float32 forward": (None, 0.75), "float32 backward": (None, 0.65)},
}
BARS["avx512_bf16"] = BARS["avx512"]


def bars(report, rows, engine):
    def values(key, **wanted):
        return [r[key] for r in rows if all(r[k] == v for k, v in wanted.items())]

    long_shapes = {str(shape): shape.dim for shape in LONG}
    long_rows = [r for r in rows if r["shape"] in long_shapes and r["threads"] == 1]
    for name, (ratio, share) in BARS.get(engine, {}).items():
        chosen = [r for r in long_rows if name == f"{r['dtype']} {r['direction']}"]
        for dim, least in ratio.items() if isinstance(ratio, dict) else [(None, ratio)]:
            of_dim = [r["ratio"] for r in chosen if dim in (None, long_shapes[r["shape"]])]
            if of_dim and least:
                where = f" with head_dim {dim}" if dim else ""
                report.add_bar(f"{name}, worst long shape{where} over PyTorch", min(of_dim), ">=", least)
        if chosen and share:
            report.add_bar(f"{name}, worst long shape of the FMA peak", min(r["share_of_peak"] for r in chosen), ">=", share)
    if engine == "avx512_bf16":
        seconds = {(r["dtype"], r["shape"], r["mask"]): r["ours_seconds"] for r in long_rows if r["direction"] == "forward"}
        gains = [seconds["float32", *row] / own for (dtype, *row), own in seconds.items()
                 if dtype == "bfloat16" and ("float32", *row) in seconds]
        if gains:
            report.add_bar("bfloat16 forward, worst long shape over our float32", min(gains), ">=", 1.4)
    report.add_bar("worst of all shapes over PyTorch", min(values("ratio")), ">=", 1.0)
    errors = [r["error"] for r in rows if r["dtype"] == "float32" and r["shape"] in long_shapes]
    if errors:
        report.add_bar("float32, worst error over PyTorch's", max(errors), "<=", 1.5)


def keep_others(report, path):
    """Puts the rows of an earlier run's file around those that were measured again."""
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key in ("cpu", "engine", "commit", "quick", "peer"):
        if earlier[key] != report.file[key]:
            sys.exit(f"{path} has {key} {earlier[key]}, and this run {report.file[key]}")

    def identity(row):
        return tuple(row[key] for key in ("table", "shape", "dtype", "mask", "direction", "threads"))

    again = {identity(row): row for row in report.file["rows"]}
    report.file["rows"] = [again.get(identity(row), row) for row in earlier["rows"]]


def draw(report, path):
    rows = [r for r in report.file["rows"] if r["threads"] == 1 and r["table"] != "short and ragged"]
    panels = [(dtype, direction) for dtype in TORCH_DTYPES for direction in ("forward", "backward")]
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 8), constrained_layout=True)
    for axis, (dtype, direction) in zip(axes.flat, panels):
        chosen = [r for r in rows if r["dtype"] == dtype and r["direction"] == direction]
        y = range(len(chosen))
        axis.barh([i - 0.2 for i in y], [r["ours_gflops"] / 1e9 for r in chosen], 0.4, label="libringattn", color="#2060a0")
        axis.barh([i + 0.2 for i in y], [r["peer_gflops"] / 1e9 for r in chosen], 0.4, label="PyTorch", color="#c0c0c0")
        if chosen and chosen[0]["peak"]:
            axis.axvline(statistics.median(r["peak"] for r in chosen) / 1e9, color="#a02020", linestyle="--", label="FMA peak, float32")
        axis.set_yticks(list(y), [f"{r['shape']}, {r['mask']}" for r in chosen], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{dtype}, {direction}")
        axis.set_xlabel("GFLOP/s, 1 thread")
    axes.flat[0].legend(loc="lower right", fontsize=8)
    about = report.file
    figure.suptitle(f"{about['cpu']}, engine {about['engine']}, PyTorch {torch.__version__}; batch x heads x tokens x head_dim")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller measurements, within a minute")
    parser.add_argument("--engine", help="one of ours, such as avx2; default: the library's choice")
    parser.add_argument("--pairs", type=int, help="that count (default 7, with --quick 3)")
    parser.add_argument("--only", default="", help="rows whose name contains all of these words")
    parser.add_argument("--again", action="store_true", help="keep the other rows that an earlier run of this commit left in the folder")
    parser.add_argument("--output", default="build/bench", help="folder of peers.json and peers.png")
    options = parser.parse_args()
    pairs = options.pairs or (3 if options.quick else 7)
    least_seconds = 0.02 if options.quick else 0.1

    api = ringattn_ctypes.load(str(ROOT / "build/release/lib/libringattn.so"), str(ROOT / "include/ringattn/ringattn.h"))
    capabilities = api.make("ra_capabilities")
    api.call("ra_get_capabilities", capabilities)
    engine = options.engine or capabilities.engines.decode().split(",")[0]
    lanes = {"avx512": 16, "avx512_bf16": 16, "avx2": 8}.get(engine, 0)  # of the peak of float32, that of amx is another
    peaks = ctypes.CDLL(str(ROOT / "build/release/tests/benchmark/libpeaks.so"))
    peaks.ringattn_measure_fma_rate.restype = ctypes.c_double

    report = Report("peers", engine, capabilities.hardware_threads, options.quick)
    report.file["peer"] = f"PyTorch {torch.__version__}"
    report.note(f"PyTorch {torch.__version__}; medians of {pairs} alternating pairs of at least {least_seconds * 1e3:.0f} ms")
    columns = [
        Column("shape", "batch x heads x tokens x dim", width=22),
        Column("dtype", "dtype", width=8),
        Column("mask", "mask", width=6),
        Column("direction", "pass", width=8),
        Column("threads", "threads"),
        Column("peer_seconds", "PyTorch", "ms", "{:.3f}", 1e-3, 9),
        Column("ours_seconds", "ours", "ms", "{:.3f}", 1e-3, 9),
        Column("peer_gflops", "PyTorch", "GFLOP/s", "{:.1f}", 1e9),
        Column("ours_gflops", "ours", "GFLOP/s", "{:.1f}", 1e9),
        Column("ratio", "ratio", "", "{:.3f}"),
        Column("share_of_peak", "of peak", "", "{:.3f}"),
        Column("error", "error", "x PyTorch", "{:.2f}"),
        Column("peak", "peak", "GFLOP/s", "{:.1f}", 1e9),
    ]
    tables = {
        "long": combine(LONG, options.quick),
        "short": combine(SHORT, options.quick),
        "short and ragged": [Row(s, d, c, b, 1) for s in RAGGED[:: 6 if options.quick else 1] for d in TORCH_DTYPES
                             for c in (False, True) for b in (False, True)],
    }
    words = options.only.split()
    for title, rows in tables.items():
        rows = [row for row in rows if all(word in str(row) for word in words)]
        if not rows:
            continue
        report.begin_table(title, columns)
        for threads in sorted({row.threads for row in rows}):
            torch.set_num_threads(threads)
            ours = Ours(api, options.engine, threads)
            for number, row in enumerate(r for r in rows if r.threads == threads):
                progress(f"[{number + 1:>3} / {len(rows)}]  {row}")
                case = Case(ours, row)
                peer, own, ratio, fma = measure(case, pairs, least_seconds, lambda: peaks.ringattn_measure_fma_rate(lanes))
                peer_error, own_error = case.errors()
                peak = fma * threads if row.dtype == "float32" or engine != "avx512_bf16" else None
                report.add_row(str(row.shape), row.dtype, row.mask, row.direction, threads, peer, own, row.flops / peer,
                               row.flops / own, ratio, row.flops / own / peak if peak else None,
                               own_error / peer_error if peer_error > 0 else None, peak or None)
            ours.close()
    if not report.file["rows"]:
        sys.exit("peers.py: no row has these words in its name")
    output = pathlib.Path(options.output)
    if options.again:
        keep_others(report, output / "peers.json")
    bars(report, report.file["rows"], engine)
    holds = report.finish(output)
    draw(report, output / "peers.png")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()

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
from report import Column, Report, progress, read_cpu_name  # noqa: E402
from sdpa import TORCH_DTYPES, Case, Library, OurSide, PeerSide, Row, Shape  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
import ringattn_ctypes  # noqa: E402

IDLE_SECONDS = 0.02


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


def combine(shapes, quick):
    """Every combination that the bars speak of."""
    rows = itertools.product((1,) if quick else (1, 2), shapes, TORCH_DTYPES, (False, True), (False, True))
    return [Row(shape, dtype, causal, backward, threads) for threads, shape, dtype, causal, backward in rows
            if not quick or shape.tokens * shape.heads <= 8192]


def seconds_of(call, count):
    time.sleep(IDLE_SECONDS)
    call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def measure(peer, ours, pairs, least_seconds, fma_rate):
    """Medians of: PyTorch's seconds, ours, their ratio, the peak of one thread."""
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

    report = Report("peers", {"cpu": read_cpu_name(), "engine": engine, "threads": capabilities.hardware_threads}, options.quick)
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
            library = Library(api, options.engine, threads)
            for number, row in enumerate(r for r in rows if r.threads == threads):
                progress(f"[{number + 1:>3} / {len(rows)}]  {row}")
                case = Case(row)
                ours, theirs = OurSide(library, case), PeerSide(case)
                peer, own, ratio, fma = measure(theirs.run, ours.run, pairs, least_seconds,
                                                lambda: peaks.ringattn_measure_fma_rate(lanes))
                peer_error, own_error = case.error(theirs.results, ours.results)
                peak = fma * threads if row.dtype == "float32" or engine != "avx512_bf16" else None
                report.add_row(str(row.shape), row.dtype, row.mask, row.direction, threads, peer, own, row.flops / peer,
                               row.flops / own, ratio, row.flops / own / peak if peak else None,
                               own_error / peer_error if peer_error > 0 else None, peak or None)
            library.close()
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

"""What LongNet's pattern costs as the sequence grows: ./dev bench dilated [--quick]

Segments of 2,048 tokens times 1, 2, 4, ... up to the sequence, dilations of 1, 2, 4, ... (Ding et al. 2023), 8 heads of 64 dimensions, causal,
contiguous shards. What is computed and sent is what ra_estimate_memory says of 4 ranks; the time of a forward pass is measured on one rank, in
alternation with exact attention as far as that takes seconds only, and is the median of several.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from report import Column, Report, progress, read_cpu_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
import ringattn_ctypes  # noqa: E402

HEADS, HEAD_DIM, SEGMENT, RANKS = 8, 64, 2048, 4


class Pattern:
    """A description and the lists that it points to."""

    def __init__(self, api, tokens, is_dilated):
        branches = max(1, (tokens // SEGMENT).bit_length()) if is_dilated else 0
        self.lists = [np.array([of_first << i for i in range(branches)], np.int64) for of_first in (SEGMENT, 1)]
        segments, dilations = (x.ctypes.data if is_dilated else None for x in self.lists)
        self.desc = api.make("ra_attention_desc", seqlen_q=tokens, num_heads_q=HEADS, head_dim=HEAD_DIM, mask=api.RA_MASK_CAUSAL,
                             num_branches=branches, segment_lengths=segments, dilations=dilations)


def estimate(api, pattern):
    """What all ranks compute and send together: visible pairs and bytes."""
    pairs = hop_bytes = 0
    for rank in range(RANKS):
        config = api.make("ra_context_config", rank=rank, world_size=RANKS)
        requirements = api.make("ra_memory_requirements")
        api.call("ra_estimate_memory", config, pattern.desc, requirements)
        pairs += requirements.visible_pairs
        hop_bytes += requirements.forward_hop_bytes
    return pairs, hop_bytes


def forward_seconds(api, context, pattern, tensors):
    q, k, v, out, lse = tensors
    args = api.make("ra_forward_args", lse=lse.ctypes.data, **{
        name: api.ra_tensor(x.ctypes.data, 0, 0, 0, x.nbytes) for name, x in (("q", q), ("k", k), ("v", v), ("out", out))})
    begin = time.perf_counter()
    api.call("ra_forward", context, pattern.desc, args)
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench dilated")
    parser.add_argument("--quick", action="store_true", help="times up to 32Ki tokens only")
    parser.add_argument("--longest", type=int, help="times up to so many tokens; default 256Ki")
    parser.add_argument("--output", default="build/bench", help="folder of dilated.json")
    options = parser.parse_args()
    longest = options.longest or (32 if options.quick else 256) * 1024
    most_exact = min(longest, 16 * 1024 if options.quick else 64 * 1024)

    progress("building")
    subprocess.run(["cmake", "--build", ROOT / "build" / "release", "--target", "ringattn"], check=True, stdout=subprocess.DEVNULL)
    api = ringattn_ctypes.load(str(ROOT / "build" / "release" / "lib" / "libringattn.so"), str(ROOT / "include" / "ringattn" / "ringattn.h"))
    context = api.call("ra_create_context", api.make("ra_context_config"))
    info = api.make("ra_context_info")
    api.call("ra_get_context_info", context, info)
    report = Report("dilated", {"cpu": read_cpu_name(), "engine": info.engine.decode(), "threads": info.num_threads}, options.quick)
    report.begin_table(
        f"LongNet's pattern: segments {SEGMENT} * 2^i, dilations 2^i, causal; {HEADS} heads of {HEAD_DIM}, float32",
        [
            Column("tokens", "tokens", "Ki", "{:.0f}", 1024),
            Column("flops_per_token", "flops/token", "million", "{:.2f}", 1e6, 11),
            Column("bytes_per_token", f"sent, P = {RANKS}", "bytes/token", "{:.0f}", 1, 11),
            Column("seconds", "forward", "s", "{:.3f}", 1, 9),
            Column("us_per_token", "per token", "us", "{:.2f}", 1e-6, 9),
            Column("exact_flops_per_token", "exact: flops/token", "million", "{:.1f}", 1e6, 18),
            Column("exact_bytes_per_token", "sent", "bytes/token", "{:.0f}", 1, 11),
            Column("exact_seconds", "forward", "s", "{:.3f}", 1, 9),
        ],
    )
    flops_per_token = {}
    random = np.random.default_rng(1)
    for doubling in range(8):
        tokens = 8 * 1024 << doubling
        patterns = [Pattern(api, tokens, is_dilated) for is_dilated in (True, False)]
        (pairs, sent), (exact_pairs, exact_sent) = (estimate(api, p) for p in patterns)
        flops = [2 * 2 * HEAD_DIM * x / tokens for x in (pairs, exact_pairs)]
        flops_per_token[tokens] = flops[0]
        seconds = [None, None]
        if tokens <= longest:
            progress(f"{tokens // 1024} Ki tokens")
            tensors = [random.standard_normal((tokens, HEADS, HEAD_DIM), np.float32) for _ in range(3)]
            tensors += [np.zeros((tokens, HEADS, HEAD_DIM), np.float32), np.zeros((HEADS, tokens), np.float32)]
            measured = ([], [])
            for _ in range(3):
                for n, pattern in enumerate(patterns):
                    if n == 0 or tokens <= most_exact:
                        measured[n].append(forward_seconds(api, context, pattern, tensors))
            seconds = [statistics.median(x) if x else None for x in measured]
        report.add_row(tokens, flops[0], sent / tokens, seconds[0], seconds[0] and seconds[0] / tokens, flops[1], exact_sent / tokens, seconds[1])
    api.functions.ra_destroy_context(context)
    *_, half, whole = flops_per_token.values()
    report.add_bar("flops per token, 1Mi tokens over 512Ki", whole / half, "<=", 1.01)
    sys.exit(0 if report.finish(pathlib.Path(options.output)) else 1)


if __name__ == "__main__":
    main()

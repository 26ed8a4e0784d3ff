"""Writes the README's performance table from the results that are kept, or with --check says whether it is the one there.

Kept are, for each processor, tests/benchmark/results/PROCESSOR/peers.json, and ring.json where a ring was measured, with pictures.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmark" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- performance: by tests/benchmark/performance_table.py -->\n", "<!-- end of performance -->\n"
SHAPES = ("1 x 1 x 8192 x 64", "1 x 1 x 8192 x 128")


def describe(results, folder):
    """One processor's table: rates of one thread, and their ratios, for a full and for a causal mask."""
    rows = {
        (r["shape"], r["dtype"], r["direction"], r["mask"]): r for r in results["rows"] if r["threads"] == 1
    }
    lines = [
        f"{results['cpu']}, engine `{results['engine']}`, {results['peer']}, one thread, one head of 8,192 tokens; commit "
        f"{results['commit']}, {results['date'][:10]} ([all shapes]({folder}/peers.json), [picture]({folder}/peers.png)):",
        "",
        "| dtype | pass | head_dim | full: GFLOP/s | PyTorch | ratio | causal: GFLOP/s | PyTorch | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype in ("float32", "bfloat16"):
        for direction in ("forward", "backward"):
            for shape in SHAPES:
                cells = [dtype, direction, shape.rsplit(" ", 1)[1]]
                for mask in ("full", "causal"):
                    row = rows[shape, dtype, direction, mask]
                    cells += [f"{row['ours_gflops'] / 1e9:.0f}", f"{row['peer_gflops'] / 1e9:.0f}", f"{row['ratio']:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def describe_worst(results):
    rows = results["rows"]
    worst = min(rows, key=lambda r: r["ratio"])
    slower = sum(r["ratio"] < 1 for r in rows)
    return [
        "",
        f"Of all {len(rows)} rows {slower} are slower than PyTorch; the worst is {worst['ratio']:.2f}: {worst['shape']}, "
        f"{worst['dtype']}, {worst['mask']}, {worst['direction']}.",
    ]


def describe_ring(results, folder):
    """What ranks of one thread reach of one rank with as many threads."""
    lines = [
        "",
        f"Ranks of one thread beside one rank with as many threads, 16,384 tokens, zigzag; commit {results['commit']} "
        f"([figures]({folder}/ring.json)):",
        "",
        "| ranks | mask | pass | ratio |",
        "|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(f"| {row['ranks']:.0f} | {row['mask']} | {row['pass']} | {row['ratio']:.2f} |")
    return lines


def make_table():
    tables = []
    for path in sorted(RESULTS.glob("*/peers.json")):
        folder = path.parent.relative_to(ROOT)
        results = json.loads(path.read_text(encoding="utf-8"))
        lines = describe(results, folder) + describe_worst(results)
        if (ring := path.with_name("ring.json")).exists():
            lines += describe_ring(json.loads(ring.read_text(encoding="utf-8")), folder)
        tables.append("\n".join(lines))
    return "\n\n".join(tables or ["No figures are kept yet."]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the README's table is another")
    options = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = before + BEGIN + make_table() + END + after
    if not options.check:
        README.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit("performance_table.py: README.md has another table than tests/benchmark/results: run this without --check")


if __name__ == "__main__":
    main()

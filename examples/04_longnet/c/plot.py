#!/usr/bin/env python3
"""Draws what example_04_longnet found out: plot.py longnet.json longnet.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLORS = {"exact": "#c8561b", "window": "#7a7a7a", "longnet": "#1f5fa8"}
LABELS = {"exact": "exact: all bytes before", "window": "window: the last 4,096", "longnet": "LongNet"}
GRID = "#e6e6e6"


def format_count(n):
    for unit, size in ((" Mi", 2**20), (" Ki", 2**10)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


def format_seconds(seconds):
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"


def set_ticks(axis, values, format_tick):
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))


def rows_of(result, pattern):
    return [row for row in result["rows"] if row["pattern"] == pattern]


def draw_time(axes, result):
    """Measured, and for exact attention beyond its prefix what quadratic growth makes of it."""
    longest = max(row["length"] for row in result["rows"])
    for pattern, color in COLORS.items():
        rows = rows_of(result, pattern)
        axes.plot([r["length"] for r in rows], [r["seconds"] for r in rows], "o-", color=color, label=LABELS[pattern])
    last = rows_of(result, "exact")[-1]
    if longest > last["length"]:
        at_end = last["seconds"] * (longest / last["length"]) ** 2
        axes.plot([last["length"], longest], [last["seconds"], at_end], "--", color=COLORS["exact"], label="exact, by quadratic growth")
        axes.annotate(format_seconds(at_end), (longest, at_end), xytext=(-6, 6), textcoords="offset points", ha="right", color=COLORS["exact"])
    last = rows_of(result, "longnet")[-1]
    axes.annotate(format_seconds(last["seconds"]), (last["length"], last["seconds"]), xytext=(0, -20), textcoords="offset points",
                  ha="right", color=COLORS["longnet"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    set_ticks(axes.xaxis, sorted({r["length"] for r in rows_of(result, "longnet")}), format_count)
    set_ticks(axes.yaxis, [0.01, 0.1, 1, 10, 60, 600, 3600, 36000, 360000], format_seconds)
    axes.set_xlabel("bytes that are read")
    axes.set_ylabel("time of a forward pass")
    axes.set_title(f"Time grows with the text, not with its square\n({result['ranks']} ranks on one machine)")
    axes.legend(frameon=False, loc="upper left")


def draw_bits(axes, result):
    """Along the book, by the pass that read most of it."""
    part = result["length"] / result["parts"] / 2**20
    for pattern, color in COLORS.items():
        bits = rows_of(result, pattern)[-1]["bits_along_the_book"]
        axes.step([n * part for n in range(len(bits) + 1)], [*bits, *bits[-1:]], where="post", color=color, label=LABELS[pattern])
    axes.set_xlim(0, result["parts"] * part)
    axes.set_ylim(0, 7)
    axes.set_xlabel("place in the book (Mi bytes)")
    axes.set_ylabel("bits per byte (7: a guess among 128)")
    axes.set_title("How well the next byte is guessed,\nbyte by byte from those before it")
    axes.legend(frameon=False, loc="upper right")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        result = json.load(file)

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
    figure.suptitle("A book at full length through LongNet's pattern", fontsize=15, fontweight="bold")
    draw_time(left, result)
    draw_bits(right, result)
    figure.savefig(sys.argv[2], dpi=150)


if __name__ == "__main__":
    main()

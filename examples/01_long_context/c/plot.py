#!/usr/bin/env python3
"""Draws what example_01_long_context found out: plot.py context.json context.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

BLUE, ORANGE, GREEN, GREY, GRID = "#1f5fa8", "#c8561b", "#2b7a4b", "#7a7a7a", "#e6e6e6"


def format_count(n):
    for unit, size in ((" Mi", 2**20), (" Ki", 2**10)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


def format_memory(mebibytes):
    return f"{mebibytes / 1024:.3g} GiB" if mebibytes >= 1000 else f"{mebibytes:.3g} MiB"


def set_ticks(axis, values, format_tick):
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))


def label_points(axes, xs, ys, labels, offset, color):
    for x, y, label in zip(xs, ys, labels):
        axes.annotate(label, (x, y), xytext=offset, textcoords="offset points", ha="center", color=color)


def draw_scores(upper, lower, result):
    contexts = [row["context"] for row in result["rows"]]
    accuracy = [100 * row["accuracy"] for row in result["rows"]]
    bits = [row["bits_per_byte"] for row in result["rows"]]

    upper.plot(contexts, accuracy, "o-", color=BLUE)
    label_points(upper, contexts, accuracy, [f"{a:.0f} %" for a in accuracy], (0, 9), BLUE)
    upper.set_ylim(0, 100)
    upper.set_ylabel("guessed right (%)")
    upper.set_title("The further back the head looks,\nthe better it guesses the next byte")

    lower.plot(contexts, bits, "o-", color=ORANGE)
    label_points(lower, contexts, bits, [f"{b:.2f}" for b in bits], (0, 9), ORANGE)
    lower.set_ylim(0, max(6, 1.2 * max(bits)))
    lower.set_ylabel("bits per byte")
    lower.set_xlabel("context (bytes the head sees)")

    for axes in (upper, lower):
        axes.set_xscale("log", base=2)
        set_ticks(axes.xaxis, contexts, format_count)
        axes.set_xlim(contexts[0] / 1.5, contexts[-1] * 1.5)
    upper.tick_params(labelbottom=False)


def draw_memory(axes, result):
    sizes = [entry["world_size"] for entry in result["memory"]]
    mebibytes = [entry["bytes"] / 2**20 for entry in result["memory"]]

    axes.plot(sizes, [mebibytes[0] / size for size in sizes], "--", color=GREY, label="ideal: 1 / ranks")
    axes.plot(sizes, mebibytes, "o-", color=GREEN, label="tensors and workspace")
    for size, m in zip(sizes, mebibytes):
        axes.annotate(format_memory(m), (size, m), xytext=(8, 5), textcoords="offset points", color=GREEN)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    set_ticks(axes.xaxis, sizes, lambda size: f"{size:g}")
    set_ticks(axes.yaxis, [2.0**n for n in range(-6, 24)], format_memory)
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.9)
    axes.set_ylim(mebibytes[0] / sizes[-1] / 1.6, mebibytes[0] * 1.6)
    axes.set_xlabel("ranks")
    axes.set_ylabel("memory per rank")
    title = "The more ranks, the less memory on each"
    axes.set_title(f"{title}\n({result['length']:,} tokens, {result['sharding']} sharding)")
    axes.legend(frameon=False, loc="lower left")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        result = json.load(file)

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True})
    figure = plt.figure(figsize=(12.5, 5.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
    axes = figure.subplot_mosaic([["accuracy", "memory"], ["bits", "memory"]])
    figure.suptitle("One untrained attention head reads a book", fontsize=15, fontweight="bold")
    draw_scores(axes["accuracy"], axes["bits"], result)
    draw_memory(axes["memory"], result)
    figure.savefig(sys.argv[2], dpi=150)


if __name__ == "__main__":
    main()

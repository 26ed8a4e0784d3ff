#!/usr/bin/env python3
"""Draws the losses of one run of example_06_train or more: plot.py RUN/loss.json... loss.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS, GREY, GRID = ("#1f5fa8", "#c8561b", "#2b7a4b", "#7d4fa0"), "#7a7a7a", "#e6e6e6"


def draw(axes, result, color, label):
    """Faint, the loss of each step; with dots, that of the held-out part."""
    shape = result["settings"]["shape"]
    million = shape["batch"] * shape["context"] / 1e6
    axes.plot([million * n for n in range(len(result["training"]))], result["training"], color=color, alpha=0.3, linewidth=1)
    axes.plot([million * step for step, _ in result["validation"]], [bits for _, bits in result["validation"]], "o-", color=color,
              markersize=4, label=label)


def main():
    *runs, picture = sys.argv[1:]
    if not runs:
        sys.exit(__doc__)
    results = []
    for run in runs:
        with open(run, encoding="utf-8") as file:
            results.append(json.load(file))

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True})
    figure, axes = plt.subplots(figsize=(8.5, 5.2), layout="constrained")
    for result, color in zip(results, COLORS * len(results)):
        label = "held-out part" if len(results) == 1 else f"context {result['settings']['shape']['context']:,}"
        draw(axes, result, color, label)
    baseline = results[0]["baseline"]
    axes.axhline(baseline, color=GREY, linestyle="--", label="Markov chain of order 1")
    worst = max(bits for result in results for _, bits in result["validation"])
    best = min(bits for result in results for _, bits in result["validation"])
    axes.set_ylim(min(best, baseline) - 0.3, max(worst, baseline) + 0.6)
    axes.set_xlabel("million bytes trained on")
    axes.set_ylabel("bits per byte")
    axes.set_title("A language model of a book (faint: the loss of each step)")
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()

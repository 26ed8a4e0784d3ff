"""Draws loss.json of one or more runs: bits per byte of the held-out part against the bytes trained on.

    plot.py RUN/loss.json... picture.png
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main():
    *runs, picture = sys.argv[1:]
    if not runs:
        sys.exit(__doc__)
    figure, axes = plt.subplots(figsize=(8, 5))
    baseline = None
    for run in runs:
        data = json.loads(pathlib.Path(run).read_text())
        baseline = data["baseline"]
        tokens = [row["tokens"] / 1e6 for row in data["rows"]]
        label = f"context {data['context']:,}, {data['ranks']} rank{'s' if data['ranks'] > 1 else ''}"
        (line,) = axes.plot(tokens, [row["validation"] for row in data["rows"]], label=label)
        axes.plot(tokens, [row["training"] for row in data["rows"]], color=line.get_color(), alpha=0.3, linewidth=0.8)
    axes.axhline(baseline, color="gray", linestyle="--", label="from the byte before")
    axes.set(xlabel="million bytes", ylabel="bits per byte", title="A language model over bytes; faint: of what it is trained on")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()

"""What a call costs more than in C, in each language that has a binding: ./dev bench bindings [--quick]

Each language's program makes the same calls, ra_forward over 64 tokens, and prints the median time of one. They are run in turns, C
between the others, several times; the figure is the median of the differences.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from report import Column, Report, progress, read_cpu_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release" / "bindings"
BARS = {"rust": 1000, "go": 2000, "java": 5000}  # ns


def measure(command, rounds):
    run = subprocess.run([*command, "--rounds", str(rounds)], check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(run.stdout)["ns_per_call"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench bindings")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", default="build/bench", help="folder of bindings.json")
    options = parser.parse_args()
    commands = json.loads((BUILD / "bench.json").read_text())  # language -> command, of those that were built
    turns, rounds = (3, 5) if options.quick else (11, 15)

    report = Report("bindings", {"cpu": read_cpu_name()}, options.quick)
    times = {language: [] for language in commands}
    more = {language: [] for language in commands}
    for turn in range(turns):
        for language, command in commands.items():
            progress(f"turn {turn + 1} of {turns}: {language}")
            base = measure(commands["c"], rounds)
            times[language].append(measure(command, rounds) if language != "c" else base)
            more[language].append(times[language][-1] - base)
    report.begin_table(
        "forward of 64 tokens, a head of 64 dimensions, one thread",
        [
            Column("language", "language", format="{}"),
            Column("ns", "a call", "us", "{:.2f}", 1e3),
            Column("more_ns", "more than C", "us", "{:.2f}", 1e3),
        ],
    )
    for language in commands:
        report.add_row(language, statistics.median(times[language]), statistics.median(more[language]))
    for language, most in BARS.items():
        if language in commands:
            report.add_bar(f"{language}, ns more than C", statistics.median(more[language]), "<=", most)
    sys.exit(0 if report.finish(pathlib.Path(options.output)) else 1)


if __name__ == "__main__":
    main()

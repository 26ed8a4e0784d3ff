"""What a call costs more than in C, in each language that has a binding: ./dev bench bindings [--quick]

Each language's program makes the same calls, ra_forward over 64 tokens, and prints the median and the mean of their times. They are run in
turns, C between the others, several times; the figures are the medians of the differences. A call's cost is the median's: the mean has also
what the system and the language's runtime do now and then in all long calls, such as Go's taking the processor from a goroutine whose
calls of C have lasted 10 ms together.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from report import Column, Report, progress, read_cpu_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINDINGS = ROOT / "bindings"
BUILD = ROOT / "build" / "release"
STAGE = BUILD / "bindings" / "stage"
BARS = {"rust": 1000, "go": 2000, "java": 5000}  # ns


def tool(arguments, folder, environment):
    """What a build prints; its complaints where it fails."""
    run = subprocess.run([str(a) for a in arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}\n{run.stdout}{run.stderr}")
    return run.stdout


def build_programs(environment):
    """Language -> command, for those whose tools are here."""
    tool(["cmake", "--install", BUILD, "--prefix", STAGE], ROOT, environment)
    commands = {"c": [BUILD / "bindings" / "call"]}
    if shutil.which("cargo"):
        target = BUILD / "bindings" / "rust" / "target"
        messages = tool(
            ["cargo", "build", "--release", "--example", "call", "--target-dir", target, "--message-format", "json"],
            BINDINGS / "rust",
            environment,
        )
        artifacts = [json.loads(line) for line in messages.splitlines()]
        commands["rust"] = [next(a["executable"] for a in artifacts if a.get("target", {}).get("name") == "call")]
    if shutil.which("go"):
        program = BUILD / "bindings" / "go" / "bench"
        tool(["go", "build", "-o", program, "./cmd/bench"], BINDINGS / "go", environment)
        commands["go"] = [program]
    if shutil.which("mvn") and shutil.which("javac"):
        folder = BUILD / "bindings" / "java"
        natives = folder / "natives"
        maven = [BINDINGS / "java" / "maven.sh", "mvn", folder / "maven", "-f", BINDINGS / "java" / "pom.xml"]
        tool([*maven, "-DskipTests", f"-Dringattn.natives={natives}", "compile"], ROOT, environment)
        classes = folder / "maven" / "classes"
        tool(["javac", "-cp", classes, "-d", folder / "bench", BINDINGS / "java" / "bench" / "Calls.java"], ROOT, environment)
        libraries = next((natives / "dev" / "ringattn").iterdir())
        commands["java"] = ["java", f"-Ddev.ringattn.libraries={libraries}", "-cp", f"{classes}:{folder / 'bench'}", "Calls"]
    return commands


def measure(command, calls, environment):
    """Median and mean, in ns."""
    result = json.loads(tool([*command, "--calls", calls], ROOT, environment))
    return result["median_ns"], result["mean_ns"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench bindings")
    parser.add_argument("--quick", action="store_true", help="fewer turns and calls")
    parser.add_argument("--output", default="build/bench", help="folder of bindings.json")
    options = parser.parse_args()
    libraries = next(STAGE.parent.parent.joinpath("lib").glob("libringattn.so")).parent
    environment = os.environ | {
        "RINGATTN_LIB_DIR": str(libraries),
        "LD_LIBRARY_PATH": str(libraries),
        "PKG_CONFIG_PATH": str(STAGE / "lib" / "pkgconfig"),
    }
    progress("building")
    commands = build_programs(environment)
    turns, calls = (3, 10_000) if options.quick else (11, 30_000)

    report = Report("bindings", {"cpu": read_cpu_name()}, options.quick)
    rows = {language: [] for language in commands}
    for turn in range(turns):
        for language, command in commands.items():
            progress(f"turn {turn + 1} of {turns}: {language}")
            (base, base_mean), (call, mean) = (measure(each, calls, environment) for each in (commands["c"], command))
            rows[language].append((call, call - base, mean, mean - base_mean))
    rows = {language: [statistics.median(column) for column in zip(*turns)] for language, turns in rows.items()}
    report.begin_table(
        "forward of 64 tokens, a head of 64 dimensions, one thread",
        [
            Column("language", "language", format="{}"),
            Column("ns", "a call", "us", "{:.2f}", 1e3),
            Column("more_ns", "more than C", "us", "{:.2f}", 1e3),
            Column("mean_ns", "mean", "us", "{:.2f}", 1e3),
            Column("mean_more_ns", "more than C", "us", "{:.2f}", 1e3),
        ],
    )
    for language, row in rows.items():
        report.add_row(language, *row)
    for language, most in BARS.items():
        name = f"{language}, ns more than C"
        if language in rows:
            report.add_bar(name, rows[language][1], "<=", most)
        else:
            report.add_missing(name, "its tools are not on this machine")
    sys.exit(0 if report.finish(pathlib.Path(options.output)) else 1)


if __name__ == "__main__":
    main()

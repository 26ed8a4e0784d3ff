"""What a benchmark in Python prints and keeps: as report.h does for those in C++.

    report = Report("peers", {"cpu": read_cpu_name(), "engine": "avx2", "threads": 2}, quick=False)
    report.begin_table("forward", [Column("seconds", "time", "ms", "{:.2f}", 1e-3), ...])
    report.add_row(0.004, ...)                            printed at once, in the column's unit; kept as given
    report.add_bar("worst shape", 1.2, ">=", 1.0)
    sys.exit(0 if report.finish(output) else 1)           the bars, and OUTPUT/NAME.json
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys


@dataclasses.dataclass
class Column:
    key: str  # in the file
    title: str  # in the table
    unit: str = ""
    format: str = "{:.0f}"  # of value / scale
    scale: float = 1
    width: int = 7  # at least


def read_cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return found[1] if found else platform.machine()


def read_commit():
    if "RINGATTN_COMMIT" in os.environ:
        return os.environ["RINGATTN_COMMIT"]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def progress(text):
    """One line of standard error, drawn anew for each step; nothing where that is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class Report:
    def __init__(self, name, where, quick):
        """`where`: what it runs on, by name; "cpu" first."""
        self.name = name
        self.file = {
            "benchmark": name,
            **where,
            "commit": read_commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "quick": quick,
            "rows": [],
            "bars": [],
        }
        about = "; quick: fewer and smaller measurements" if quick else ""
        places = [f"{key} {value}" for key, value in (where | {"commit": self.file["commit"]}).items()]
        print(f"{name}: {', '.join(places)}{about}")

    def note(self, text):
        progress("")
        print(text)

    def begin_table(self, title, columns):
        self.table, self.columns = title, columns
        self.note(f"\n{title}")
        self._print_line(column.title for column in columns)
        if any(column.unit for column in columns):
            self._print_line(column.unit for column in columns)

    def add_row(self, *values):
        self.file["rows"].append({"table": self.table} | {c.key: v for c, v in zip(self.columns, values, strict=True)})
        self._print_line(self._cell(c, v) for c, v in zip(self.columns, values))

    def add_bar(self, name, value, relation, bar):
        holds = {"<=": value <= bar, "<": value < bar, ">=": value >= bar}[relation]
        self.file["bars"].append({"name": name, "value": value, "relation": relation, "bar": bar, "holds": holds})

    def add_missing(self, name, reason):
        """A bar that could not be looked at, and so does not hold."""
        self.file["bars"].append({"name": name, "not_run": reason, "holds": False})

    def finish(self, output):
        """Prints the bars and writes the file. Whether every bar holds."""
        bars = self.file["bars"]
        width = max((len(bar["name"]) for bar in bars), default=0)
        self.note("\nbars")
        for bar in bars:
            verdict = "holds" if bar["holds"] else "DOES NOT HOLD"
            if "not_run" in bar:
                print(f"  {bar['name']:{width}}  NOT RUN: {bar['not_run']}")
            else:
                print(f"  {bar['name']:{width}}  {bar['value']:9.3f}  {bar['relation']:>2} {bar['bar']:<5g}  {verdict}")
        path = pathlib.Path(output) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.file, indent=2) + "\n", encoding="utf-8")
        print(f"\nwritten: {path}")
        return all(bar["holds"] for bar in bars)

    @staticmethod
    def _cell(column, value):
        if isinstance(value, str):
            return value
        return "-" if value is None else column.format.format(value / column.scale)

    def _print_line(self, cells):
        progress("")
        widths = (max(len(c.title), len(c.unit), c.width) for c in self.columns)
        print("".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths)), flush=True)

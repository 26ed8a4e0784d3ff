"""gpu_check.py without a GPU: what its stages find on the CPU and on an emulated GPU, what it keeps, and what it says of what it cannot run.

    gpu_check_test.py LIBRARY EMULATED TESTS

LIBRARY: libringattn.so. EMULATED: the same with the CUDA backend on emulated devices, and a driver (emulated_driver.cpp). TESTS: a
program of GoogleTest with tests Instructions.*
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def run(output, *arguments, **environment):
    """Its exit status, what it printed, and the file."""
    command = [sys.executable, str(HERE / "gpu_check.py"), "--quick", "--output", str(output), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"RINGATTN_COMMIT": "test"} | environment)
    print(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}", flush=True)
    return done.returncode, done.stdout, json.loads((output / "gpu_check.json").read_text(encoding="utf-8"))


def bars(file, stage):
    return {bar["name"]: bar for bar in file["bars"] if bar["stage"] == stage}


def main():
    library, emulated, tests = (pathlib.Path(argument).resolve() for argument in sys.argv[1:])
    on_cpu = ("--backend", "cpu", "--library", library)
    on_gpu = ("--library", emulated, "--driver", emulated)
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "cpu"
        status, _, file = run(output, "transports", "ring", *on_cpu)
        assert status == 0 and file["cpu"] and all(bar["holds"] for bar in file["bars"])
        assert len(bars(file, "transports")) == 2 and len(bars(file, "ring")) == 2
        assert [row["direction"] for row in file["rows"]] == ["forward", "forward + backward"]
        assert all(row["ring_seconds"] > 0 for row in file["rows"])

        status, text, file = run(output, "processes", *on_cpu)
        assert status == 0 and [bar["holds"] for bar in bars(file, "processes").values()] == [True, True], text

        status, text, file = run(output, "layers", *on_cpu)
        assert status == 0 and all(bar["holds"] for bar in bars(file, "layers").values()), text
        assert [row["direction"] for row in file["rows"] if row["stage"] == "layers"] == ["forward", "backward"]

        output = pathlib.Path(folder) / "gpu"
        status, text, file = run(output, "transports", "ring", "memory", *on_gpu)
        assert status == 0 and file["gpu"] == "emulated GPU" and file["driver"] and "memory of 3 ranks" in text
        assert "NCCL, 1 rank: self-test fails" in bars(file, "transports")
        ratios = [row["ratio"] for row in file["rows"] if row["stage"] == "memory"]
        assert len(ratios) == 2 and all(0.95 <= ratio <= 1.05 for ratio in ratios), ratios

        # A stage that cannot run fails; the others' figures are kept, and the earlier ones of the same stage are not.
        status, text, file = run(output, "memory", "--library", emulated, "--driver", "/nowhere/libcuda.so.1")
        assert status == 1 and "no NVIDIA GPU" in bars(file, "memory")["memory"]["not_run"] and "NOT RUN" in text
        assert len(bars(file, "memory")) == 1 and bars(file, "ring")
        status, _, file = run(output, "ring", *on_gpu, RINGATTN_COMMIT="another")
        assert status == 0 and not bars(file, "memory") and not bars(file, "transports")

        status, _, file = run(pathlib.Path(folder) / "speed", "speed", *on_cpu)
        assert status == 1 and "PyTorch" in bars(file, "speed")["speed"]["not_run"]

        # Programs: tests that pass, a sanitizer that finds something, and one that is not there.
        programs = (*on_gpu, "--tests", tests, "--stand-in-tests")
        status, text, file = run(output, "instructions", *programs)
        assert status == 0 and "tests, 0 failed, 0 skipped" in text
        tools = pathlib.Path(folder) / "tools"
        tools.mkdir()
        tool = tools / "compute-sanitizer"
        tool.write_text('#!/bin/sh\ncheck=$2\nshift 6\n"$@" || exit 1\n[ $check = memcheck ] || exit 86\n', encoding="utf-8")
        tool.chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        status, _, file = run(output, "sanitizer", *programs, PATH=path)
        found = bars(file, "sanitizer")
        assert status == 1 and found["memcheck: found something"]["holds"] and not found["racecheck: found something"]["holds"]
        assert found["racecheck: tests that fail"]["holds"]
    print("all as it should be")


if __name__ == "__main__":
    main()

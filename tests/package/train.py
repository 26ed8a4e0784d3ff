#!/usr/bin/env python3
"""What examples/06_train promises, on a small model: train.py ROW PROGRAM RUN_SH TEXT

    curves      losses of 1, 2 and 4 ranks agree, and each run is the same when made again, to the last bit
    gradient    that of the whole model is that of differences of the loss
    resume      what was killed and resumed, several times, is the same as what was not
    processes   ranks that are processes make the same as ranks that are threads
    refusals    ranks that were not told the same, and a checkpoint of another run, are refused

RINGATTN_TEST_FULL=1 takes a larger model.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

FULL = os.environ.get("RINGATTN_TEST_FULL", "0") not in ("", "0")
SEED = int(os.environ.get("RINGATTN_TEST_SEED", "1"))
SHAPE = {"context": 2048, "d_model": 64, "heads": 2, "d_ff": 192, "layers": 4, "window": 256, "held_out": 4096} if FULL else \
    {"context": 256, "d_model": 32, "heads": 2, "d_ff": 64, "layers": 2, "window": 64, "held_out": 512}


class Example:
    def __init__(self, program, run_sh, text, folder):
        self.program, self.text, self.run_sh, self.folder = program, text, run_sh, pathlib.Path(folder)

    def command(self, name, *flags, **options):
        settings = SHAPE | {"steps": 200, "measure_every": 20, "threads": 1, "seed": SEED, "output": self.folder / name} | options
        return [self.program, self.text, *flags, *(f"--{key.replace('_', '-')}={value}" for key, value in settings.items())]

    def results(self, name):
        return (self.folder / name / "loss.json").read_bytes(), (self.folder / name / "checkpoint").read_bytes()

    def train(self, name, **options):
        subprocess.run(self.command(name, **options), check=True, stdout=subprocess.DEVNULL)
        return self.results(name)


def relative_difference(a, b):
    assert len(a) == len(b), (len(a), len(b))
    return max(abs(x - y) / y for x, y in zip(a, b))


def curves(example):
    losses = {}
    for ranks in (1, 2, 4):
        loss, checkpoint = example.train(f"{ranks}", ranks=ranks)
        again = example.train(f"{ranks}.again", ranks=ranks)
        assert again == (loss, checkpoint), f"{ranks} ranks: another run, another result"
        losses[ranks] = json.loads(loss)
        assert len(losses[ranks]["training"]) == 200 and len(losses[ranks]["validation"]) == 10
        assert json.loads(checkpoint.split(b"\n", 1)[0]) == losses[ranks]
        assert losses[ranks]["training"][-1] < losses[ranks]["training"][0] - 1, "nothing was learnt"
    for ranks in (2, 4):
        training = relative_difference(losses[ranks]["training"], losses[1]["training"])
        validation = relative_difference([bits for _, bits in losses[ranks]["validation"]], [bits for _, bits in losses[1]["validation"]])
        print(f"{ranks} ranks and 1: losses of 200 steps differ by {training:.1e} at most, of the held-out part by {validation:.1e}")
        assert training <= 1e-3 and validation <= 1e-3


def gradient(example):
    for ranks in (1, 2, 3):
        subprocess.run(example.command("none", "--check", ranks=ranks, batch=1 + ranks % 2), check=True)
    subprocess.run(example.command("none", "--check", ranks=6, context=4, held_out=4), check=True)  # two of which have nothing


def resume(example):
    whole = example.train("whole")
    draw = random.Random(SEED)
    kills = 0
    loss = example.folder / "parts" / "loss.json"
    while True:
        begin = time.monotonic()
        flags = ["--resume"] if (example.folder / "parts" / "checkpoint").exists() else []
        process = subprocess.Popen(example.command("parts", *flags), stdout=subprocess.DEVNULL)
        if kills < 4:  # each time in the midst of it, somewhere between two checkpoints or while one is written
            before = loss.stat().st_mtime_ns if loss.exists() else 0
            while process.poll() is None and (not loss.exists() or loss.stat().st_mtime_ns == before) and time.monotonic() < begin + 60:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
    assert kills >= 1, "it was never killed in time"
    assert example.results("parts") == whole, "another result than without an interruption"
    print(f"killed {kills} times")


def processes(example):
    threads = example.train("threads", ranks=2)
    subprocess.run([example.run_sh, "--ranks", "2", "--limit", "100", *example.command("processes")], check=True)
    assert example.results("processes") == threads, "another result than of threads"


def refused(said, command):
    run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    print(run.stderr, end="")
    assert run.returncode == 1 and said in run.stderr, said


def refusals(example):
    example.train("run", steps=2)
    refused("/rate is 0.5, but in", example.command("run", "--resume", steps=2, rate=0.5))
    refused("/steps is 3, but in", example.command("run", "--resume", steps=3))
    refused("/shape/window is 0, but in", example.command("run", "--resume", steps=2, window=0))
    checkpoint = example.folder / "run" / "checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    refused("has another size", example.command("run", "--resume", steps=2))
    refused("--held-out is 500; must be a multiple of", example.command("run", held_out=500))

    identity = example.folder / "id"
    identity.write_text(subprocess.run(example.command("two", "--make-id"), check=True, stdout=subprocess.PIPE, text=True).stdout)
    ranks = [subprocess.Popen(example.command("two", world_size=2, rank=rank, id_file=identity, rate=0.01 + rank),
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    said = [rank.communicate()[1] for rank in ranks]
    print(*said)
    assert all(rank.returncode == 1 for rank in ranks) and any("rank 1 and rank 0 differ in /rate" in words for words in said)


def main():
    row, *where = sys.argv[1:]
    print(f"seed {SEED} (repeat with RINGATTN_TEST_SEED={SEED})")
    with tempfile.TemporaryDirectory() as folder:
        {function.__name__: function for function in (curves, gradient, resume, processes, refusals)}[row](Example(*where, folder))


if __name__ == "__main__":
    main()

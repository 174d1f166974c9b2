"""Killed at any moment, a run loses nothing but the steps since its last snapshot.

`torchrun`'s own agent watches over the processes and starts them anew. The processes that are
killed do not notice: SIGKILL leaves no time for that.
"""

import json
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from minillm.train.snapshots import Snapshots

CONFIG = """
device = "cpu"
[model]
d_model = 16
n_layers = 1
n_heads = 2
max_length = 16
[data]
stories = {n = 500, seed = 0}
tokenizer = "stories"
block_size = 8
batch_size = 8
window = 5
[train]
steps = 80
lr = 0.01
checkpoint_every = 2
[parallel]
rest = "shard"
"""
AGENT = [Path(__file__).parent / "agent.py"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += ["--max-restarts", "9", "-m", "minillm.train"]


class Run:
    """A run in `folder`, started by `command`, with its output in a file."""

    def __init__(self, folder, command, *changes):
        folder.mkdir()
        (folder / "config.toml").write_text(CONFIG)
        self.folder, self.snapshots = folder, Snapshots(folder / "snapshots")
        with (folder / "log").open("wb") as log:
            self.agent = subprocess.Popen(
                [sys.executable, *command, folder / "config.toml", f"folder='{folder}'", *changes],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [*self.ranks(), self.agent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.agent.wait()

    def ranks(self):
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.agent.pid).children(recursive=True)
        return []

    def last_step(self):
        newest = self.snapshots.latest()
        return int(newest.name.removeprefix("step-")) if newest else 0

    def starts(self):
        """The steps from which it went on after a restart, up to now."""
        lines = (self.folder / "log").read_text().splitlines()
        said = [line.split("step-")[1] for line in lines if "continues from" in line]
        return [int(step) for step in said]

    def go_on(self, seconds):
        """Let it run for a while; whether it is still running."""
        with suppress(subprocess.TimeoutExpired):
            self.agent.wait(seconds)
        return self.agent.poll() is None

    def finish(self):
        assert self.agent.wait() == 0, (self.folder / "log").read_text()
        history = json.loads((self.folder / "history.json").read_text())
        return history["losses"], (self.folder / "model.safetensors").read_bytes()


@pytest.fixture
def undisturbed(tmp_path):
    with Run(tmp_path / "undisturbed", AGENT) as run:
        return run.finish()


def test_any_of_four_processes_killed_at_twenty_moments(tmp_path, undisturbed):
    moments = random.Random(0)
    with Run(tmp_path / "killed", AGENT) as run:
        kills = []
        while len(kills) < 20:
            goal = min(run.last_step() + moments.choice([0, 2, 4]), 70)
            while run.last_step() < goal or len(run.ranks()) < 4:
                assert run.go_on(0.01), (run.folder / "log").read_text()
            run.go_on(moments.uniform(0, 0.5))  # in a step, while saving, while starting
            with suppress(psutil.NoSuchProcess, IndexError):
                before = run.last_step(), len(run.starts())
                moments.choice(run.ranks()).send_signal(signal.SIGKILL)
                kills.append(before)
        assert run.finish() == undisturbed
        starts = run.starts()
    assert kills[-1][0] > kills[0][0] and len(starts) > 5
    for step, n_starts in kills:
        assert all(start >= step for start in starts[n_starts + 1 :])
    assert starts == sorted(starts)


def test_torchrun_starts_a_killed_process_again(tmp_path):
    """The command as users type it, with copies of the model instead of shards."""
    changes = ("train.steps=30", "parallel.rest='data'")
    with Run(tmp_path / "killed", TORCHRUN, *changes) as run:
        while run.last_step() < 10:
            assert run.go_on(0.01), (run.folder / "log").read_text()
        max(run.ranks(), key=lambda process: process.create_time()).send_signal(signal.SIGKILL)
        losses, _ = run.finish()
        assert len(losses) == 30 and run.starts()[0] >= 10

"""Processes that compute together: results in order, and an end to every kind of failure."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
import torch.distributed as dist

from minillm.train.processes import Processes

SCRIPT = """
import os
from functools import partial
import torch.distributed as dist
from torch.distributed.tensor.parallel import parallelize_module
from minillm.train.processes import Processes

scale = 10

class Pair:
    def __init__(self, first, second):
        self.first, self.second = first, second

class Twice(Pair):
    def shift(self):
        return int(callable(parallelize_module))

def scaled(x):
    times = lambda y: scale * y
    return times(x)

def pair(double, x):
    return Twice(dist.get_rank(), double(x))

with Processes(2) as processes:
    answers = processes.run(partial(pair, scaled), 7)
    assert all(type(answer) is Twice for answer in answers)
    print([(answer.first, answer.second + answer.shift()) for answer in answers], flush=True)
    print(*processes.run(os.getpid), flush=True)
    input()
"""


@pytest.fixture(scope="module")
def two():
    with Processes(2) as processes:
        yield processes


def add_up(x):
    total = x * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), torch.get_num_threads(), total


def others_wait(act):
    if dist.get_rank() == 1:
        act()
    dist.barrier()


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid)]


def test_results_come_in_rank_order_from_one_group(two):
    answers = two.run(add_up, torch.tensor([1.0, -2.0]))
    assert [answer[:3] for answer in answers] == [(0, 2, 1), (1, 2, 1)]
    assert all(answer[3].tolist() == [3.0, -6.0] for answer in answers)


def test_prints_appear_here_with_their_rank(two, capfd):
    two.run(lambda: print("first\nsecond", dist.get_rank()))
    lines = capfd.readouterr().out.splitlines()
    assert lines[:4] == ["[0] first", "[0] second 0", "[1] first", "[1] second 1"]


def test_what_c_prints_does_not_disturb_the_answers(two):
    assert two.run(lambda: os.write(1, b"noise")) == [5, 5]


def test_an_exception_names_its_rank_and_the_next_run_works(two):
    def fail():
        raise KeyError("planted here")

    pids = two.run(os.getpid)
    with pytest.raises(RuntimeError, match="rank 1 of 2: Traceback") as error:
        two.run(others_wait, fail)
    assert "planted here" in str(error.value) and "in fail" in str(error.value)
    assert "rank 0" not in str(error.value)
    assert alive(pids) == []
    assert len(two.run(add_up, torch.ones(1))) == 2


def test_a_process_that_leaves_is_named_first(two):
    with pytest.raises(RuntimeError, match=r"^rank 1 of 2 ended with status 3"):
        two.run(others_wait, lambda: os._exit(3))


def test_a_process_killed_between_two_runs_is_named(two):
    pids = two.run(os.getpid)
    psutil.Process(pids[1]).kill()
    with pytest.raises(RuntimeError, match=r"^rank 1 of 2 ended with status"):
        two.run(add_up, torch.ones(1))


def test_what_cannot_travel_back_is_an_error_of_its_rank(two):
    with pytest.raises(RuntimeError, match="rank 0 of 2: Traceback"):
        two.run(lambda: (i for i in range(3)))


def test_waiting_for_nobody_ends_with_the_timeout():
    with Processes(2, timeout=5) as processes:
        ranks = processes.run(dist.get_rank)  # both have started
        with pytest.raises(RuntimeError, match=r"rank 0 of 2: Traceback(.|\n)*[Tt]imed out"):
            processes.run(lambda: dist.get_rank() == 0 and dist.barrier())
    assert ranks == [0, 1]


def test_the_end_of_the_block_ends_the_processes(two):
    others = two.run(os.getpid)
    with Processes(1) as processes:
        pids = processes.run(os.getpid)
        assert alive(pids + others) == pids + others
    assert alive(pids + others) == others


def test_functions_of_a_script_travel_by_value_and_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout.readline() == "[(0, 71), (1, 71)]\n"
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    assert parent.returncode == -signal.SIGKILL or os.name == "nt"
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_no_processes_are_refused():
    with pytest.raises(ValueError, match="n=0: expected at least one"):
        Processes(0)

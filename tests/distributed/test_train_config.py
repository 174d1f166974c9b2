"""One configuration file, one loss curve: whatever the number of processes and their layout.

The processes are started once; each then plays a process that `torchrun` started, or stands aside.
"""

import contextlib
import io
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from minillm.data.packing import IGNORE, Batch
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients
from minillm.train.processes import Processes

EXAMPLE = Path(__file__).parents[2] / "docs/train/stories.toml"
TINY = (
    "seed=3", "device='cpu'", "model.d_model=24", "model.n_layers=2", "model.max_length=16",
    "data.stories.n=2000", "data.block_size=12", "data.batch_size=24", "data.streams=12",
    "data.window=7", "validation.stories.n=500", "validation.batches=2", "validation.every=4",
    "train.steps=8", "train.lr=0.01", "train.accumulate=2", "train.clip=0.5",
    "train.checkpoint_every=4",
)  # fmt: skip
EXPERTS = "model.moe={n_experts = 4, n_active = 2, d_expert = 16, balance_bias = true}"


@pytest.fixture(scope="module")
def processes():
    with Processes(4) as four:
        four.run(leave_the_group)
        yield four


def leave_the_group():
    os.environ["NUMBER"] = str(torch.distributed.get_rank())
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def play(n, port, arguments):
    """What a process does that `torchrun` has started as one of `n`; the others do nothing."""
    from minillm.train.__main__ import main

    if int(os.environ["NUMBER"]) >= n:
        return 0, ""
    os.environ |= {"RANK": os.environ["NUMBER"], "WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(arguments)
    return status, errors.getvalue()


def attempt(processes, n, folder, *changes):
    """Run the command in `n` processes: (exit status, what it said on stderr) of each."""
    arguments = [str(EXAMPLE), *TINY, f"folder='{folder}'", *changes]
    return processes.run(play, n, free_port(), arguments)


def launch(processes, n, folder, *changes):
    """Train with `n` processes; the history and the weights that are then in `folder`."""
    for status, errors in attempt(processes, n, folder, *changes):
        assert status == 0, errors
    return results(folder)


def results(folder):
    history = json.loads((folder / "history.json").read_text())
    return history, Transformer.load(folder / "model.safetensors")


def assert_same_run(run, reference):
    (history, model), (expected, expected_model) = run, reference
    assert history["steps"] == expected["steps"] and history["n_tokens"] == expected["n_tokens"]
    for name in ("losses", "lrs", "gradient_norms"):
        assert history[name] == pytest.approx(expected[name], rel=1e-4)
    for (step, loss), (same, wanted) in zip(history["evals"], expected["evals"], strict=True):
        assert step == same and loss == pytest.approx(wanted, rel=1e-4)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected_model.state_dict()[name], rtol=0, atol=2e-3)


@pytest.fixture(scope="module")
def alone(processes, tmp_path_factory):
    return launch(processes, 1, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    ("n", "table"),
    [
        (2, "shard = 1"),
        (3, "rest = 'data'"),
        (4, "rest = 'shard'"),
        (4, "tensor = 2"),
        (4, "pipeline = 2"),
    ],
)
def test_the_curve_does_not_depend_on_the_processes(processes, alone, tmp_path, n, table):
    run = launch(processes, n, tmp_path, *(f"parallel.{change}" for change in table.split(", ")))
    assert_same_run(run, alone)
    losses = run[0]["losses"]
    assert losses[-1] < losses[0] - 0.3 and run[0]["evals"][-1][1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("way", "more"),
    [("expert", ("data.mask_documents=true",)), ("pipeline", ())],  # stages pass on no masks
)
def test_balanced_experts_on_several_processes(processes, tmp_path, way, more):
    """The biases that balance the experts follow the tokens of all processes, in all passes."""
    changes = (*more, EXPERTS, "train.balance=0.01")
    reference = launch(processes, 1, tmp_path / "one", *changes)
    biases = [t for name, t in reference[1].state_dict().items() if "router_bias" in name]
    assert len(biases) == 2 and all(bias.abs().max() > 0.01 for bias in biases)
    run = launch(processes, 4, tmp_path / "four", *changes, f"parallel.{way}=2")
    assert_same_run(run, reference)


@pytest.mark.parametrize("table", ["shard = 1", "tensor = 2"])
def test_muon_and_recomputing_on_several_processes(processes, tmp_path, table):
    changes = ("train.optimizer='muon'", "train.recompute=true")
    reference = launch(processes, 1, tmp_path / "one", *changes)
    saved = tmp_path / "four"
    assert_same_run(launch(processes, 4, saved, *changes, f"parallel.{table}"), reference)
    shutil.rmtree(saved / "snapshots/step-00000008")
    assert_same_run(launch(processes, 3, saved, *changes), reference)


@pytest.mark.parametrize("table", ["shard = 1", "tensor = 2", "pipeline = 2"])
def test_bfloat16_and_recomputing_on_several_processes(processes, tmp_path, table):
    """Rounding depends on how sums are split, so the curves agree as far as bfloat16 does."""
    changes = ("train.precision='bf16'", "train.recompute=true", EXPERTS)
    losses, run = (
        launch(processes, n, tmp_path / str(n), *changes, *parallel)[0]["losses"]
        for n, parallel in ((1, ()), (4, (f"parallel.{table}",)))
    )
    assert run == pytest.approx(losses, rel=0.01) and run != losses


@pytest.mark.parametrize("way", ["shard", "tensor", "pipeline"])
def test_saved_by_four_it_goes_on_with_one_two_and_three(processes, alone, tmp_path, way):
    """The weights and moments of step 4, and the places in the text, find their new owners."""
    saved = tmp_path / "four"
    launch(processes, 4, saved, f"parallel.{way}=2")
    assert sorted(p.name for p in (saved / "snapshots").iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]
    shutil.rmtree(saved / "snapshots/step-00000008")
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        shutil.copytree(saved / "snapshots", folder / "snapshots")
        marker = folder / "snapshots/step-00000004"
        before = [(file.name, file.stat().st_mtime_ns) for file in sorted(marker.iterdir())]
        assert_same_run(launch(processes, n, folder), alone)
        after = [(file.name, file.stat().st_mtime_ns) for file in sorted(marker.iterdir())]
        assert before == after  # it did go on from there, and wrote only what comes later


def test_a_pipeline_whose_ends_share_a_matrix_changes_its_layout(processes, tmp_path):
    """Both ends have a copy of it, and moments of their own, where one process has one."""
    tied = "model.tie_embeddings=true"
    alone = launch(processes, 1, tmp_path / "alone", tied)
    for before, after in ((4, 2), (1, 4), (4, 1)):
        folder = tmp_path / f"{before} to {after}"
        way = {1: (), 2: ("parallel.shard=2",), 4: ("parallel.pipeline=2",)}
        launch(processes, before, folder, tied, *way[before])
        shutil.rmtree(folder / "snapshots/step-00000008")
        assert_same_run(launch(processes, after, folder, tied, *way[after]), alone)


def test_a_finished_run_and_runs_that_do_not_fit(processes, tmp_path):
    first = launch(processes, 2, tmp_path)
    assert_same_run(launch(processes, 4, tmp_path), first)
    for change, words in (
        ("train.lr=0.02", "belongs to another run"),
        ("model.d_model=32", "written by a different model"),
        ("parallel.tensor=3", "expected a multiple"),
    ):
        for status, errors in attempt(processes, 2, tmp_path, change)[:2]:
            (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert status == 2 and words in line


def test_targets_are_counted_over_all_processes(processes):
    """Rows with 5, 0, 3 and 1 targets, one on each process: the mean is over the nine."""
    config = llama_config(11, d_model=8, n_layers=1, n_heads=2, max_length=8)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (4, 6), generator=generator)
    targets = torch.randint(11, (4, 6), generator=generator)
    for row, n in enumerate((5, 0, 3, 1)):
        targets[row, n:] = IGNORE
    model = Transformer(config)
    loss, count = accumulate_gradients(model, [Batch(tokens, targets)])
    assert count == 9
    expected = {name: p.grad for name, p in model.named_parameters()}
    shared = (free_port(), config, tokens, targets)
    for there, n, gradients in processes.run(ragged_step, *shared):
        assert (there, n) == (pytest.approx(loss, rel=1e-5), 9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def ragged_step(port, config, tokens, targets):
    import torch.distributed as dist

    from minillm.data.packing import Batch
    from minillm.model.transformer import Transformer
    from minillm.train.loop import accumulate_gradients
    from minillm.train.parallel import Layout, full_gradients, make_mesh, parallelize
    from minillm.train.team import Team

    rank = int(os.environ["NUMBER"])
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=4)
    try:
        team = Team(make_mesh(Layout(data=2, shard=2), "cpu"))
        module = parallelize(Transformer(config), team.mesh)
        mine, n_parts = team.part
        rows = Batch(tokens.chunk(n_parts)[mine], targets.chunk(n_parts)[mine])
        loss, count = accumulate_gradients(module, [rows], team=team)
        return loss, count, full_gradients(module)
    finally:
        dist.destroy_process_group()

"""Snapshots in one process: complete or absent. Several are in tests/distributed."""

import shutil

import pytest
import torch
from torch import nn

from minillm.train.optim import adamw
from minillm.train.snapshots import Snapshots


def trained(seed=0, width=5):
    """A model with a tied matrix, a buffer and a used optimiser, and the rest of a state."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({"embed": nn.Embedding(7, width), "norm": nn.BatchNorm1d(width)})
    model["out"] = nn.Linear(width, 7, bias=False)
    model["out"].weight = model["embed"].weight
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    optimizer = adamw(model, lr=0.1 * (seed + 1))
    for _ in range(2):
        x = model["embed"](torch.randint(7, (9,), generator=generator))
        model["out"](model["norm"](x)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    rest = {
        "batches": {"place": seed, "order": generator.get_state(), "none": None},
        "generators": [generator.get_state()],
        "history": {"losses": [0.1 + 0.2, float("inf")], "steps": [seed]},
        "scale": None,
    }
    return model, optimizer, rest


def flat(model, optimizer):
    moments = [state[name] for state in optimizer.state.values() for name in sorted(state)]
    return [*model.state_dict().values(), *moments, torch.tensor(optimizer.param_groups[0]["lr"])]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_everything_comes_back(tmp_path):
    model, optimizer, rest = trained(seed=1)
    snapshots = Snapshots(tmp_path / "new" / "folder")
    assert not snapshots.exists()
    snapshots.save(3, model, optimizer, rest)
    assert snapshots.exists()

    other, other_optimizer, other_rest = trained(seed=2)
    assert not same(flat(model, optimizer), flat(other, other_optimizer))
    read = snapshots.read(other_rest)
    assert read["history"] == rest["history"] and read["scale"] is None
    assert read["batches"]["place"] == 1 and read["batches"]["none"] is None
    assert torch.equal(read["batches"]["order"], rest["batches"]["order"])
    assert torch.equal(read["generators"][0], rest["generators"][0])
    snapshots.restore(other, other_optimizer)
    assert same(flat(model, optimizer), flat(other, other_optimizer))
    assert other["out"].weight is other["embed"].weight

    new = trained()[0]
    new_optimizer = adamw(new, lr=9.0)  # one that has not moved yet
    snapshots.restore(new, new_optimizer)
    assert same(flat(model, optimizer), flat(new, new_optimizer))


def test_the_last_two_are_kept_and_what_a_kill_left_is_neither_read_nor_kept(tmp_path):
    snapshots = Snapshots(tmp_path)
    for step in (2, 4, 10):
        snapshots.save(step, *trained(seed=step))
    assert [path.name for path in snapshots.finished()] == ["step-00000004", "step-00000010"]
    for step in (11, 12):  # killed while saving
        shutil.copytree(snapshots.latest(), tmp_path / f"step-{step:08d}.partial")
        (tmp_path / f"step-{step:08d}.partial" / ".metadata").unlink()
    assert snapshots.read(trained()[2])["history"]["steps"] == [10]
    snapshots.save(12, *trained(seed=5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]
    assert snapshots.read(trained()[2])["history"]["steps"] == [5]


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Snapshots(tmp_path, keep=0)
    snapshots = Snapshots(tmp_path)
    snapshots.save(1, *trained())
    model, optimizer, _ = trained(width=6)
    with pytest.raises(ValueError, match="step-00000001 was written by a different model"):
        snapshots.restore(model, optimizer)

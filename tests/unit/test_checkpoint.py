"""A checkpoint comes back as it was, or is refused with a reason."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minillm.train import checkpoint


def state():
    shared = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    return {
        "model": {"embed": shared, "head": shared, "slice": shared.T},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [(0.9, 0.95)]},
        "generator": torch.Generator().manual_seed(7).get_state(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "history": [1, 2.5, None, True, "text", float("inf")],
        "empty": {},
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "run.safetensors"
    checkpoint.save(path, state())
    assert equal(state(), checkpoint.load(path))
    checkpoint.save(path, {"step": 1})  # a second save replaces the first
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save(path, state())
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]
    with safe_open(path, framework="pt") as file:  # tied weights are stored once
        assert len([k for k in file.keys() if "model" in k]) == 2  # noqa: SIM118
        assert json.loads(file.metadata()["state"])


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    checkpoint.save(path, {"step": 1})

    def crash(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}


def test_refuses(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(path)
    with pytest.raises(ValueError, match=r"state\.a\.0 is a set"):
        checkpoint.save(path, {"a": [{1}]})
    assert not path.exists()
    checkpoint.save(path, state())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a training state"):
        checkpoint.load(path)

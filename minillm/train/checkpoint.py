"""Checkpoints: one safetensors file that either exists whole or not at all.

A training state is a tree: dicts and lists whose leaves are numbers, strings and tensors. The
tensors go into the body of the file, the tree goes as JSON into its header, with a reference where
each tensor stood. Nothing is pickled, so loading a stranger's checkpoint cannot run their code.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

FORMAT = "minillm-state-1"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically: a reader, or a power cut, finds the old file or the new.

    Args:
        path: the file; its folder is created.
        state: nested dicts (keys str or int), lists and tuples of tensors, numbers, strings, bools
            and None.

    Raises:
        ValueError: the tree holds something that is none of these.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    tree = _take_out(state, "", tensors, {})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": FORMAT, "state": json.dumps(tree)})
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())  # the bytes are on the disk before the name points at them
    os.replace(partial, path)


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save` wrote: the same tree, tensors on `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or is not a training state of this package.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is a safetensors file but not a training state: its header says "
                    f"format={header.get('format')!r}, expected {FORMAT!r}"
                )
            return _put_back(json.loads(header["state"]), file.get_tensor)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it or restore a copy") from error


class Store(Protocol):
    """Where the training loop keeps its state: `OneFile`, or `snapshots.Snapshots`."""

    def exists(self) -> bool:
        """Whether there is a state to go on from."""

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, rest: dict) -> None:
        """Write the state after `step` updates; `rest` is all but model and optimiser."""

    def read(self, rest: dict) -> dict:
        """The `rest` that was saved last, given one of the same form."""

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put back what updates change: the weights and the optimiser's memory of them."""


class OneFile:
    """The `Store` of one process: one file, replaced by each `save`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, step: int, model: nn.Module, optimizer: Optimizer, rest: dict) -> None:
        save(self.path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **rest})

    def read(self, rest: dict) -> dict:
        return load(self.path)

    def restore(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raises ValueError where the weights in the file are those of another model."""
        state = load(self.path)
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} was written by a different model: {error}") from error


def _take_out(node: Any, name: str, tensors: dict, seen: dict) -> Any:
    """Copy the tree with every tensor moved to `tensors` and a {"tensor": name} left behind."""
    if isinstance(node, torch.Tensor):
        # Two names for one tensor (tied embeddings) are stored once.
        key = (node.data_ptr(), node.dtype, tuple(node.shape), node.stride())
        if key not in seen:
            seen[key] = name
            tensors[name] = node.detach().contiguous()
        return {"tensor": seen[key]}
    if isinstance(node, dict):
        return {"dict": [[k, _take_out(v, f"{name}.{k}", tensors, seen)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        items = [_take_out(v, f"{name}.{i}", tensors, seen) for i, v in enumerate(node)]
        return {"tuple": items} if isinstance(node, tuple) else items
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise ValueError(f"state{name} is a {type(node).__name__}: expected tensors and plain values")


def _put_back(node: Any, get_tensor) -> Any:
    if isinstance(node, list):
        return [_put_back(v, get_tensor) for v in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return get_tensor(content)
    if kind == "dict":
        return {k: _put_back(v, get_tensor) for k, v in content}
    return tuple(_put_back(v, get_tensor) for v in content)

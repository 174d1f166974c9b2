"""Snapshots: the state of a run whose model is spread over processes, on disk.

Every process writes the parts it holds (`torch.distributed.checkpoint`), under the names the
parameters have in the plain model. So a run that was saved by four processes goes on with one, two
or three, sharded in another way or not at all.

A run of one process that is never spread out needs only the single file of `checkpoint.py`, which
also is safe to load from a stranger. These folders are not: PyTorch stores their index as a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from minillm.train.parallel import plain

# Optimiser states by the name of their parameter: numbers in a list would change with the layout.
_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


class Snapshots:
    """Numbered snapshots in one folder, of which the last ones are kept.

    A snapshot is written under another name and renamed when every process has finished, so that
    being killed at any moment leaves the ones before untouched. If several processes train, each
    of them has to make the same calls; the folder must be one that all of them see.

    Args:
        folder: is created with the first snapshot.
        keep: how many to keep, at least 1.

    Raises:
        ValueError: there is nothing to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: expected at least 1")
        self.folder, self.keep = Path(folder), keep

    def __str__(self) -> str:
        return str(self.latest() or self.folder)

    def finished(self) -> list[Path]:
        """The snapshots that are complete, the oldest first."""
        return sorted(self.folder.glob("step-" + "[0-9]" * 8))

    def latest(self) -> Path | None:
        return max(self.finished(), default=None)

    def exists(self) -> bool:
        """Whether there is a snapshot to go on from: what the first process sees, all believe."""
        return bool(_agreed(self.latest()))

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, rest: dict[str, Any]
    ) -> None:
        """Write the state after `step` updates.

        Args:
            model: plain, or what `parallelize` returned.
            rest: "batches", a dict in which each process may have keys of its own; "generators", a
                list of tensors; all else is the same in every process and fit for JSON.
        """
        place = self.folder / f"step-{step:08d}"
        partial = place.with_suffix(".partial")
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run has left behind
            partial.mkdir(parents=True)
        _wait_for_all()
        with _quiet():
            saved = _once(_tensors(model, optimizer), model)
            dcp.save({**saved, **_leaves(rest)}, checkpoint_id=partial)
        if _is_first():
            shutil.rmtree(place, ignore_errors=True)
            os.replace(partial, place)
            for old in self.finished()[: -self.keep]:
                os.replace(old, old.with_suffix(".partial"))  # half deleted, it is not finished
            for left in self.folder.glob("*.partial"):
                shutil.rmtree(left)
        _wait_for_all()

    def read(self, rest: dict[str, Any]) -> dict[str, Any]:
        """All but weights and optimiser, from the latest snapshot; `rest` says which keys."""
        wanted = _leaves(rest)
        with _quiet():
            dcp.load(wanted, checkpoint_id=_agreed(self.latest()))
        return {
            **json.loads(wanted["plain"]),
            "batches": wanted["batches"],
            "generators": list(wanted["generators"].values()),
        }

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimiser of the latest snapshot in place.

        Raises:
            ValueError: the snapshot is of another model.
        """
        place, state = _agreed(self.latest()), _tensors(model, optimizer)
        saved = _once(state, model)
        try:
            with _quiet():
                dcp.load(saved, checkpoint_id=place)
        except (dcp.CheckpointException, RuntimeError, ValueError) as error:
            raise ValueError(f"{place} was written by a different model: {error}") from error
        state = {
            part: {name: saved[part][_saved_as(name, model)] for name in tensors}
            for part, tensors in state.items()
        }
        set_state_dict(
            plain(model),
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_BY_NAME,
        )


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and the optimiser's memory of them, by the names of the weights."""
    weights, moments = get_state_dict(plain(model), optimizer, options=_BY_NAME)
    return {"model": weights, "optimizer": moments}


def _once(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    return {
        part: {_saved_as(name, model): value for name, value in tensors.items()}
        for part, tensors in state.items()
    }


def _saved_as(name: str, model: nn.Module) -> str:
    """Both ends of a pipeline have a copy of a matrix that they share: it gets one name."""
    config = getattr(plain(model), "config", None)
    if config is None or not config.tie_embeddings:
        return name
    return name.replace("unembed.weight", "embedding.weight")


def _leaves(rest: dict[str, Any]) -> dict[str, Any]:
    """One string for what all processes share, and by name what is not fit for JSON."""
    by_name = {
        "batches": dict(rest["batches"]),
        "generators": {str(i): state for i, state in enumerate(rest["generators"])},
    }
    shared = {name: value for name, value in rest.items() if name not in by_name}
    return {"plain": json.dumps(shared), **by_name}


def _agreed(path: Path | None) -> Path | None:
    """What the first process says: two may look at a folder at different moments."""
    if not dist.is_initialized():
        return path
    said = [path]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def _quiet() -> warnings.catch_warnings:
    """One process alone is what we mean; PyTorch warns that it might be an accident."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)

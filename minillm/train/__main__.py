"""Pretrain a model as a TOML file says, on one core, many processes or GPUs.

    python -m minillm.train CONFIG.toml
    python -m minillm.train CONFIG.toml train.steps=50 'folder="runs/short"'
    torchrun --nproc-per-node 4 --max-restarts 100 -m minillm.train CONFIG.toml

Examples are in docs/train/, and minillm/train/run_config.py says what each name means. The loss
curve is the same for any number of processes. A run that ended early, or a process that was killed,
goes on from the last snapshot, with as many processes as there are then; nothing is lost but the
steps since.
FOLDER/model.safetensors and FOLDER/history.json are written at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from minillm import command
from minillm.data.streaming import StreamedBatches
from minillm.model.transformer import Transformer
from minillm.train.balance import balanced
from minillm.train.loop import History, evaluate, train
from minillm.train.parallel import batch_mesh, blocks_of, full_weights, make_mesh, parallelize
from minillm.train.recompute import checkpoint_blocks
from minillm.train.run_config import Data, RunConfig, Validation, open_text, read_config
from minillm.train.snapshots import Snapshots
from minillm.train.team import Team, loss_of


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 with one line on stderr."""
    parser = command.make_parser("minillm.train", __doc__)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("changes", metavar="NAME=VALUE", nargs="*", help="instead of the file's")
    return command.run(work, parser.parse_args(arguments))


def work(given: argparse.Namespace) -> None:
    """Join the others, and train what the arguments say."""
    config = read_config(given.config, given.changes)
    device = join(config.device)
    try:
        run(config, device)
    finally:
        dist.destroy_process_group()


def join(device: str) -> torch.device:
    """Join the processes that `torchrun` started, or make a group of this one alone.

    Raises:
        ValueError: the device is unknown or absent.
    """
    has_gpu = torch.cuda.is_available()
    kind = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not has_gpu):
        raise ValueError(f"device={device!r}: expected 'auto', 'cpu', or 'cuda' where there is one")
    backend = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, **meeting_place())
    if kind == "cpu":
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def meeting_place() -> dict[str, Any]:
    """Store, rank and number of processes, for `init_process_group`.

    On one machine `torchrun` keeps its store when it starts processes anew (PyTorch 2.13), with the
    addresses of the dead ones in it. So each start has a corner of its own. Machines count their
    starts each for itself (PyTorch issue 135712): with several, `torchrun` has to make new stores
    instead.

    Raises:
        ValueError: several machines, and `torchrun` was not told to.
    """
    if "RANK" not in os.environ:
        return {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    if several and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        raise ValueError(
            "on several machines a killed process could not be started again: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of each torchrun"
        )
    store, rank, n_processes = next(dist.rendezvous("env://"))
    if not several and "GROUP_WORLD_SIZE" in os.environ:
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": store, "rank": rank, "world_size": n_processes}


def run(config: RunConfig, device: torch.device) -> History:
    """Build, train, write: the same call in every process.

    Raises:
        ValueError: the configuration does not fit together, or not this number of processes.
        TrainingDiverged: the loss or its gradient stopped being a number.
    """
    layout = config.parallel.layout(dist.get_world_size())
    team = Team(make_mesh(layout, device.type))
    model_config = config.model_config()
    model = Transformer(model_config, generator=torch.Generator().manual_seed(config.seed))
    n_parameters = model.n_parameters()
    if config.train.recompute:
        checkpoint_blocks(model)
    module = parallelize(model.to(device), team.mesh)
    if config.train.compile:
        for block in blocks_of(module):
            block.compile()
    snapshots = Snapshots(config.folder / "snapshots")
    is_first = dist.get_rank() == 0
    if is_first:
        print(f"{n_parameters:,} parameters, {layout}", flush=True)
        if snapshots.latest():
            print(f"continues from {snapshots.latest().name}", flush=True)
    history = train(
        module,
        stream(config, config.data, team),
        loss_fn=loss_of(module),
        checkpoint=snapshots,
        team=team,
        progress=is_first,
        **arguments(config, team),
        **evaluation(config, team),
    )
    weights = full_weights(module)
    if is_first:
        Transformer.from_weights(model_config, weights).save(config.folder / "model.safetensors")
        (config.folder / "history.json").write_text(json.dumps(asdict(history), indent=1))
        print(f"loss {history.losses[-1]:.4f}, {history.n_tokens:,} tokens, {config.folder}")
    return history


def stream(config: RunConfig, source: Data | Validation, team: Team) -> StreamedBatches:
    """This process's rows of the text of `source`, cut as [data] says."""
    data, text = config.data, config.data.text()
    return StreamedBatches(
        open_text(source),
        text.encode,
        block_size=data.block_size,
        batch_size=data.batch_size,
        end_token=text.end_token,
        n_streams=data.streams,
        part=team.part,
        seed=config.seed,
        window=data.window,
        column=data.column,
        mask_documents=data.mask_documents,
    )


def arguments(config: RunConfig, team: Team) -> dict[str, Any]:
    """The arguments for `train` that follow from [train]; routers count what the team sees."""
    given = config.train.arguments()
    if config.train.balance:
        group = batch_mesh(team.mesh).get_group()
        given["optimizer"] = balanced(given["optimizer"], config.train.balance, group)
    return given


def evaluation(config: RunConfig, team: Team) -> dict[str, Any]:
    """The arguments for `train` that follow from [validation]; its batches are read once."""
    if config.validation is None:
        return {}
    batches = list(islice(stream(config, config.validation, team), config.validation.batches))
    return {
        "evaluate": lambda module: evaluate(module, batches, loss_of(module), team),
        "evaluate_every": config.validation.every,
    }


if __name__ == "__main__":
    sys.exit(main())

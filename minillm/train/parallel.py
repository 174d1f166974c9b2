"""One model on many processes, by PyTorch's own engine.

Five ways to share the work, which combine: `Layout` says how many processes share it each way,
`make_mesh` arranges the processes, `parallelize` changes the model. Every process builds the same
model and calls the same functions:

    mesh = make_mesh(Layout(shard=2, tensor=2), "cpu")
    model = parallelize(Transformer(config, generator), mesh)
    rows = batch_mesh(mesh)                     # which rows to read: rank, size
    loss = backward(model, tokens, targets)     # or your own loss(model(tokens)).backward()
    clip_gradients(model, 1.0)

Gradients are averages over the processes that read different rows, as everywhere in PyTorch.
Weights are called alike under every layout, so a checkpoint of one loads under another.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from minillm.model.transformer import Transformer, own_tensors
from minillm.train.expert_parallel import (
    SharedOutExperts,
    check_expert_parallel,
    share_out_experts,
)
from minillm.train.layout import Layout
from minillm.train.losses import next_token_loss
from minillm.train.pipeline import Pipeline, Stage, check_pipeline
from minillm.train.tensor_parallel import (
    check_tensor_parallel,
    fuse,
    slice_matrices,
    split_fused,
)


def make_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """Arrange the current group: neighbours share a matrix, other stages are farthest away.

    Raises:
        ValueError: the layout is for another number of processes.
    """
    n = dist.get_world_size()
    if layout.n_processes != n:
        raise ValueError(f"{layout} is for {layout.n_processes} processes, and there are {n}")
    # From the rarest and smallest messages to the most and largest, which want the fastest wires.
    names = ("pipeline", "data", "shard", "expert", "tensor")
    sizes = tuple(getattr(layout, name) for name in names)
    return init_device_mesh(device_type, sizes, mesh_dim_names=names)


def batch_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The processes that read different rows, in one row: `.size()`, `.get_local_rank()`."""
    return mesh["data", "shard", "expert"]._flatten("batch")  # made once, then remembered


def parallelize(model: Transformer, mesh: DeviceMesh, n_micro: int | None = None) -> nn.Module:
    """Share a model out among the processes of `mesh`.

    Args:
        model: the same in every process, on its device; it is used up.
        n_micro: with a pipeline, the micro-batches of a batch; default twice the stages.

    Returns:
        A module to call with tokens, as before; with a pipeline, for `backward` and `loss` only.

    Raises:
        ValueError: this model cannot be shared out this way.
    """
    sizes = dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True))
    _check(model, sizes)
    config, n_stages = model.config, sizes["pipeline"]
    split_fused(model)
    module: nn.Module = model
    if n_stages > 1:
        module = Stage(model, mesh.get_local_rank("pipeline"), n_stages)
    if config.moe and sizes["expert"] * sizes["tensor"] > 1:
        share_out_experts(model, mesh)
    if sizes["tensor"] > 1:
        slice_matrices(model, mesh["tensor"])
        if n_stages == 1:
            model.tie_weights()
    if sizes["data"] == mesh.size() > 1:
        return DistributedDataParallel(module, process_group=mesh.get_group("data"))
    if batch_mesh(mesh).size() > 1:
        _shard(module, mesh)
    if n_stages > 1:
        return Pipeline(module, mesh["pipeline"], n_micro or 2 * n_stages)
    return module


def _check(model: nn.Module, sizes: dict[str, int]) -> None:
    if not isinstance(model, Transformer):
        raise ValueError(f"a {type(model).__name__} cannot be shared out: expected a Transformer")
    if model.config.n_future:
        raise ValueError("modules for later tokens are trained by a loss of their own: n_future=0")
    if sizes["expert"] > 1:
        check_expert_parallel(model.config, sizes["expert"] * sizes["tensor"])
    if sizes["tensor"] > 1:
        check_tensor_parallel(model.config, sizes["tensor"])
    if sizes["pipeline"] > 1:
        check_pipeline(model.config, sizes["pipeline"])


def _shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Let every process keep a part of each weight, block by block, and average gradients.

    A block's weights are gathered when it computes, and its gradients added up while the block
    before it is differentiated. Along "data" there are copies.
    """
    parts = mesh["shard", "expert"]._flatten("parts")
    has_copies = mesh["data"].size() > 1
    dense_mesh = mesh["data", "parts"] if has_copies else parts
    expert_mesh = mesh["data", "shard"] if has_copies else mesh["shard"]
    keep = isinstance(module, Stage)  # a stage uses its weights for every micro-batch
    dense = {"mesh": dense_mesh, "reshard_after_forward": not keep}
    for block in blocks_of(module):
        experts = getattr(block.mlp, "experts", None)
        if isinstance(experts, SharedOutExperts) and mesh["expert"].size() > 1:
            # Only processes with the same experts have something to gather and to average.
            fully_shard(experts, mesh=expert_mesh, reshard_after_forward=not keep)
        fully_shard(block, **dense)
    fully_shard(module, **dense)


def plain(module: nn.Module) -> Transformer:
    """The Transformer, or what this process holds of it, inside of what `parallelize` returned."""
    if isinstance(module, DistributedDataParallel):
        return module.module
    stage = module.stage if isinstance(module, Pipeline) else module
    return stage.model if isinstance(stage, Stage) else stage


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of `plain(module)`: in a pipeline those of this process's stage alone."""
    blocks = plain(module).blocks
    return list(blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks)


def backward(module: nn.Module, tokens: Tensor, targets: Tensor) -> float:
    """Add to ``.grad`` the gradient of this process's summed next-token loss; return that loss.

    Args:
        module: what `parallelize` returned.
        tokens, targets: int64 (B, T), the same in processes that differ only in "tensor" or
            "pipeline".
    """
    if isinstance(module, Pipeline):
        return module.backward(tokens, targets)
    loss = next_token_loss(module(tokens), targets, reduction="sum")
    loss.backward()
    return float(loss.detach())


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and saved buffers, whole, called as in the plain model, everywhere.

    For files and comparisons: it takes the memory of the whole model.
    """
    return _collect(module, own_tensors(plain(module)))


def full_gradients(module: nn.Module) -> dict[str, Tensor]:
    """As `full_weights`, the gradients of those weights that have one."""
    named = plain(module).named_parameters()
    return _collect(module, {name: p.grad for name, p in named if p.grad is not None})


def _collect(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = fuse({name: _whole(tensor) for name, tensor in tensors.items()})
    if isinstance(module, Pipeline):
        stages: list[dict] = [{}] * module.mesh.size()
        dist.all_gather_object(stages, whole, group=module.mesh.get_group())
        whole = {name: tensor for stage in stages for name, tensor in stage.items()}
        if plain(module).config.tie_embeddings:
            del whole["unembed.weight"]  # the same as the first stage's embedding
    return whole


def _whole(tensor: Tensor) -> Tensor:
    """A copy; what every process holds whole is not one by itself."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


@torch.no_grad()
def clip_gradients(module: nn.Module, max_norm: float) -> float:
    """Scale all gradients down to a joint norm of at most `max_norm`; return the norm before.

    As `torch.nn.utils.clip_grad_norm_`, over all processes, every weight counted once.
    """
    shared = [p for p in module.parameters() if p.grad is not None]
    square = torch.zeros((), dtype=torch.float64, device=shared[0].device)
    for parameter in shared:
        square += _local(parameter.grad).double().square().sum() / _n_copies(module, parameter)
    dist.all_reduce(square)
    norm = float(square.sqrt())
    if norm > max_norm:
        for parameter in shared:
            _local(parameter.grad).mul_(max_norm / norm)
    return norm


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _n_copies(module: nn.Module, parameter: nn.Parameter) -> float:
    """How many processes hold the same piece of a weight."""
    n = dist.get_world_size()
    if isinstance(module, Pipeline):
        n /= module.mesh.size()
        if parameter is module.tied:
            n *= 2
    if isinstance(parameter, DTensor):
        mesh_sizes = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        n /= math.prod(size for placement, size in mesh_sizes if not placement.is_replicate())
    return n

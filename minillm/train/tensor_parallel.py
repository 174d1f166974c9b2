"""Tensor parallelism: the processes of a group hold slices of every matrix, and see every token.

In each half of a block the first matrix is split by columns and the second by rows, so that the
processes need to add up their results only once (Shoeybi et al. 2019, §3). Tables are split along
the vocabulary. The slicing and adding up is PyTorch's `parallelize_module`.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from minillm.model.attention import Attention
from minillm.model.config import ModelConfig
from minillm.model.layers import MLP, GatedMLP


class SplitLinear(nn.Module):
    """One wide linear layer as several, side by side: (…, C) → (…, sum of their widths).

    A process's slice of "queries, keys, values" must be a slice of each, not the first rows of the
    whole.
    """

    def __init__(self, wide: nn.Linear, sizes: dict[str, int]):
        super().__init__()
        weights = wide.weight.detach().split(list(sizes.values()))
        biases = [None] * len(sizes)
        if wide.bias is not None:
            biases = wide.bias.detach().split(list(sizes.values()))
        for name, weight, bias in zip(sizes, weights, biases, strict=True):
            part = nn.Linear(wide.in_features, len(weight), bias=False, device="meta")
            part.weight = nn.Parameter(weight.clone())
            if bias is not None:
                part.bias = nn.Parameter(bias.clone())
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.children()], dim=-1)


def split_fused(model: nn.Module) -> None:
    """Replace the fused layers of a model by `SplitLinear`; it computes what it did before."""
    for module in list(model.modules()):
        if isinstance(module, Attention):
            sizes = dict(zip(("q", "k", "v"), module.sizes, strict=True))
            module.qkv = SplitLinear(module.qkv, sizes)
        elif isinstance(module, GatedMLP):
            width = module.down.in_features
            module.gate_up = SplitLinear(module.gate_up, {"gate": width, "up": width})


def fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that `split_fused` gave them → under the plain model's."""
    fused: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, kind = name.rpartition(".")
        layer, _, part = owner.rpartition(".")
        is_part = layer.endswith((".qkv", ".gate_up")) and part in ("q", "k", "v", "gate", "up")
        fused.setdefault(f"{layer}.{kind}" if is_part else name, []).append(tensor)
    return {
        name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in fused.items()
    }


def check_tensor_parallel(config: ModelConfig, n: int) -> None:
    """Raise ValueError where a model cannot be sliced n ways."""
    for name in ("n_heads", "n_kv_heads", "d_ff"):
        if getattr(config, name) % n:
            raise ValueError(f"{name}={getattr(config, name)} does not divide by tensor={n}")
    if config.moe and (config.moe.d_shared % n or config.moe.n_experts % n):
        raise ValueError(
            f"n_experts={config.moe.n_experts} and d_shared={config.moe.d_shared} must divide by "
            f"tensor={n}"
        )
    bias = config.position in ("alibi", "relative")
    if bias or config.latent or config.qk_norm != "none" or config.cross_attention:
        raise ValueError(
            "tensor parallelism is for attention whose heads are alike and need nothing of each "
            "other: no ALiBi or relative bias, no latent, no qk_norm, no cross-attention"
        )
    if config.mlm_head:
        raise ValueError("tensor parallelism does not know mlm_head")


def slice_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Keep of every matrix of attention, dense MLPs and tables only this process's slice.

    Args:
        model: a Transformer or a stage of one, after `split_fused`; changed in place.
        mesh: one-dimensional.
    """
    for module in list(model.modules()):
        if isinstance(module, Attention):
            module.n_heads //= mesh.size()
            module.n_kv_heads //= mesh.size()
            module.sizes = [size // mesh.size() for size in module.sizes]
            _column_then_row(module, "qkv", "out", mesh)
        elif isinstance(module, GatedMLP):
            _column_then_row(module, "gate_up", "down", mesh)
        elif isinstance(module, MLP):
            _column_then_row(module, "up", "down", mesh)
    tables = {"embedding": RowwiseParallel(input_layouts=Replicate())}
    tables["unembed"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, {k: v for k, v in tables.items() if hasattr(model, k)})
    if hasattr(model, "embedding"):
        model.embedding.weight.register_post_accumulate_grad_hook(_slice_gradient)


def _slice_gradient(parameter: nn.Parameter) -> None:
    """The lookup leaves a gradient of the whole table; keep what belongs to this slice."""
    parameter.grad = parameter.grad.redistribute(placements=parameter.placements)


def _column_then_row(module: nn.Module, first: str, second: str, mesh: DeviceMesh) -> None:
    plan = {first: ColwiseParallel(), second: RowwiseParallel()}
    if isinstance(getattr(module, first), SplitLinear):
        # The parts share one input, whose gradient is then added up once.
        whole = PrepareModuleInput(
            input_layouts=Replicate(), desired_input_layouts=Replicate(), use_local_output=False
        )
        plan |= {first: whole, f"{first}.*": ColwiseParallel()}
    parallelize_module(module, mesh, plan)

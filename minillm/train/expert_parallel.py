"""Expert parallelism: each process holds some of the experts, and tokens travel to them.

Processes that read different rows send each token to the process that holds its expert, and
receive the result: two all-to-all exchanges a layer (Lepikhin et al. 2021, §3.2). Processes of one
tensor-parallel group see the same tokens already: each computes those of its own experts, and they
add up.

Shapes: C channels, E experts, M pairs of a token and one of its experts.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from minillm.model.config import ModelConfig
from minillm.model.moe import Experts, MoELayer


def check_expert_parallel(config: ModelConfig, n: int) -> None:
    """Raise ValueError where the experts cannot be shared out among n processes."""
    if config.moe is None:
        raise ValueError(f"expert={n}, but this model has no experts: set config.moe or expert=1")
    if config.moe.n_experts % n:
        raise ValueError(f"n_experts={config.moe.n_experts} does not divide by expert={n}")
    if config.moe.capacity is not None:
        raise ValueError("a capacity counts the tokens of one process; use capacity=None")


def share_out_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Keep of every layer's experts only this process's.

    Args:
        model: changed in place; what it computes stays the same.
        mesh: with dimensions "expert" and "tensor".
    """
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.experts = SharedOutExperts(module.experts, mesh)


class SharedOutExperts(nn.Module):
    """`Experts` of which this process holds a slice; what goes in and comes out is the same."""

    def __init__(self, experts: Experts, mesh: DeviceMesh):
        super().__init__()
        self.gated, self.activation = experts.gated, experts.activation
        self.mesh = mesh
        ways = [way for way in ("expert", "tensor") if mesh[way].size() > 1]
        for name, weight in experts.named_parameters():
            slices = distribute_tensor(weight.detach(), mesh[tuple(ways)], [Shard(0)] * len(ways))
            self.register_parameter(name, nn.Parameter(slices))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, ``counts`` (E,) of them for each: (M, C) → (M, C)."""
        if self.mesh["expert"].size() > 1:
            return self._exchanged(x, counts)
        return self._added_up(x, counts)

    def _exchanged(self, x: Tensor, counts: Tensor) -> Tensor:
        """Send rows to their experts, which are spread over the processes, and results back."""
        group, n = self.mesh.get_group("expert"), self.mesh["expert"].size()
        here = torch.empty_like(counts)  # from each process, the counts of the experts held here
        dist.all_to_all_single(here, counts.contiguous(), group=group)
        sent = counts.view(n, -1).sum(1).tolist()
        received = here.view(n, -1).sum(1).tolist()
        rows = _exchange(x, sent, received, group)
        # They come process by process; the experts want them expert by expert.
        expert_of = torch.arange(len(here), device=x.device) % (len(here) // n)
        order = expert_of.repeat_interleave(here).argsort(stable=True)
        done = self._added_up(rows[order], here.view(n, -1).sum(0))
        return _exchange(done[order.argsort()], received, sent, group)

    def _added_up(self, x: Tensor, counts: Tensor) -> Tensor:
        """Compute the rows of the experts held here, zeros for the others; add up over "tensor"."""
        mesh = self.mesh["tensor"]
        if mesh.size() == 1:
            return self._here(x, counts)
        # What is the same in all processes has a gradient that is the sum over them.
        whole = DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        x = whole.to_local(grad_placements=[Partial()])
        per_process = counts.view(mesh.size(), -1)
        sizes, rank = per_process.sum(1).tolist(), mesh.get_local_rank()
        done = self._here(x.split(sizes)[rank], per_process[rank])
        before, after = sum(sizes[:rank]), sum(sizes[rank + 1 :])
        part = F.pad(done, (0, 0, before, after))
        return DTensor.from_local(part, mesh, [Partial()], run_check=False).full_tensor()

    def _here(self, x: Tensor, counts: Tensor) -> Tensor:
        weights = {name: weight.to_local() for name, weight in self.named_parameters()}
        n = self.mesh["expert"].size()
        for weight in weights.values():
            if weight.requires_grad and n > 1:
                # The rows of n processes came here; gradients are averages over processes.
                weight.register_hook(lambda gradient: gradient / n)
        slices = SimpleNamespace(gated=self.gated, activation=self.activation, **weights)
        return Experts.forward(slices, x, counts)


def _exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Send ``sent[i]`` rows to process i and receive ``received[i]`` from it; has a gradient."""
    rows = x.new_empty(sum(received), x.shape[1])
    return differentiable.all_to_all_single(rows, x.contiguous(), received, sent, group=group)

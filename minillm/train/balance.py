"""Balanced experts without an auxiliary loss, for steps of several passes and processes.

A router's bias follows how many tokens chose each expert in the whole step (`update_bias` of
`model.moe`; Wang et al. 2024, algorithm 1). Micro-batches and processes each see a part of them, so
the counts are added up first: copies of a router that moved apart would no longer be one model.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from minillm.model.moe import MoELayer, tokens_per_expert, update_bias
from minillm.train.loop import MakeOptimizer


def balanced(
    make: MakeOptimizer, rate: float, group: dist.ProcessGroup | None = None
) -> MakeOptimizer:
    """`make`, and each step of the optimiser it makes also moves the routers' biases by `rate`.

    Args:
        make: such as `optim.adamw`, to be passed on to `train`.
        group: the processes that read different rows; None for one process alone.
    """

    def made(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        counters = [Counter(layer) for layer in model.modules() if isinstance(layer, MoELayer)]

        def after_step(*_) -> None:
            for counter in counters:
                if group is not None:
                    dist.all_reduce(counter.counts, group=group)
                update_bias(counter.layer, rate, counter.counts)
                counter.counts.zero_()

        optimizer = make(model, lr, weight_decay)
        optimizer.register_step_post_hook(after_step)
        return optimizer

    return made


class Counter:
    """Counts the tokens that a layer in training sends to each of its experts: ``counts`` (E,)."""

    def __init__(self, layer: MoELayer):
        self.layer = layer
        self.counts = torch.zeros(
            layer.moe.n_experts, dtype=torch.int64, device=layer.router_bias.device
        )
        layer.register_forward_hook(self._count)

    def _count(self, layer: MoELayer, *_) -> None:
        if layer.training:  # evaluation changes nothing
            self.counts += tokens_per_expert(layer.routing.chosen, layer.moe.n_experts)

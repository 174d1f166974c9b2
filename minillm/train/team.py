"""Several processes that train one model together, as the training loop sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from minillm.data.packing import IGNORE, Batch
from minillm.train.loop import Alone, LossFn, token_loss
from minillm.train.parallel import batch_mesh, clip_gradients
from minillm.train.pipeline import Pipeline


@dataclass(frozen=True)
class Team(Alone):
    """The processes of a mesh made by `parallel.make_mesh`, with a model from `parallelize`."""

    mesh: DeviceMesh

    @property
    def size(self) -> int:
        return batch_mesh(self.mesh).size()

    @property
    def part(self) -> tuple[int, int]:
        """Which part of the rows this process reads, and of how many parts."""
        return batch_mesh(self.mesh).get_local_rank(), self.size

    def sum(self, *numbers: float) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(total, group=batch_mesh(self.mesh).get_group())
        return total.tolist()

    def clip(self, model: nn.Module, max_norm: float) -> float:
        return clip_gradients(model, max_norm)


def loss_of(model: nn.Module) -> LossFn:
    """The loss function for what `parallelize` returned: `token_loss`, or a pipeline's own."""
    return pipeline_loss if isinstance(model, Pipeline) else token_loss


def pipeline_loss(model: Pipeline, batch: Batch) -> tuple[torch.Tensor, int]:
    """`token_loss` of a model whose backward passes run in between its forward passes.

    The gradients are there when it returns, so nothing hangs on the loss any more.

    Raises:
        ValueError: packed neighbours are to be told apart, and stages pass on no masks; or the
            products are in float16, whose gradients have to be scaled before they are made.
    """
    if batch.documents is not None:
        raise ValueError("a pipeline passes on no masks: use mask_documents=False")
    device = batch.tokens.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise ValueError("a pipeline cannot scale its loss, as float16 needs: use precision='bf16'")
    n_targets = int((batch.targets != IGNORE).sum())
    run = model.backward if torch.is_grad_enabled() else model.loss
    return torch.tensor(run(batch.tokens, batch.targets), requires_grad=True), n_targets

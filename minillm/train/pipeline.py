"""Pipeline parallelism: each process holds some of the layers, micro-batches pass through them.

While one stage computes micro-batch i, the next computes i − 1: only at the start and the end do
processes wait (Huang et al. 2019, §2.3). The passing on, and the order of forward and backward
passes that keeps few micro-batches in memory (1F1B, Narayanan et al. 2021, §2.2), is
`torch.distributed.pipelining`.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor

from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer
from minillm.train.losses import next_token_loss


def check_pipeline(config: ModelConfig, n: int) -> None:
    """Raise ValueError where a model cannot be cut into n stages."""
    if config.n_layers < n:
        raise ValueError(f"{config.n_layers} layers are too few for pipeline={n} stages")
    if config.position == "relative" or config.cross_attention:
        raise ValueError(
            "a pipeline passes on nothing but the residual stream: no relative position bias, no "
            "cross-attention"
        )


def stage_of_layer(n_layers: int, n_stages: int) -> list[int]:
    """Which stage holds each layer: as even as can be, the first stages one layer more."""
    sizes = [len(part) for part in torch.arange(n_layers).tensor_split(n_stages)]
    return [stage for stage, size in enumerate(sizes) for _ in range(size)]


class Stage(nn.Module):
    """The layers of one stage, cut out of a whole Transformer.

    The first maps tokens (B, T) to the residual stream (B, T, C), the last that to logits
    (B, T, V). Its weights are called as in the whole model, after "model.".
    """

    def __init__(self, model: Transformer, index: int, n_stages: int):
        super().__init__()
        self.model = model
        self.is_first, self.is_last = index == 0, index == n_stages - 1
        stages = stage_of_layer(len(model.blocks), n_stages)
        mine = {str(i): block for i, block in enumerate(model.blocks) if stages[i] == index}
        model.blocks = nn.ModuleDict(mine)
        ends = [] if self.is_first else ["embedding", "position_embedding", "embedding_norm"]
        ends += [] if self.is_last else ["norm", "unembed"]
        for name in ends:
            if hasattr(model, name):
                delattr(model, name)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        if self.is_first:
            x = self.model.embed(x, positions)
        view = self.model.view(x, positions)
        for block in self.model.blocks.values():
            x = block(x, view)
        return self.model.logits(self.model.norm(x)) if self.is_last else x


class Pipeline(nn.Module):
    """A model of which this process holds one stage.

    Args:
        stage: this process's; PyTorch's wrappers may be around it or in it.
        mesh: one-dimensional, the processes that hold the other stages.
        n_micro: micro-batches a batch is cut into; its rows must divide by it.
    """

    def __init__(self, stage: Stage, mesh: DeviceMesh, n_micro: int):
        super().__init__()
        self.stage, self.mesh, self.n_micro = stage, mesh, n_micro
        self._schedules: dict[tuple, Schedule1F1B] = {}

    @property
    def tied(self) -> nn.Parameter | None:
        """The matrix that both ends hold a copy of, where input and output share one."""
        model = self.stage.model
        if not model.config.tie_embeddings or not (self.stage.is_first or self.stage.is_last):
            return None
        return model.embedding.weight if self.stage.is_first else model.unembed.weight

    def backward(self, tokens: Tensor, targets: Tensor) -> float:
        """Add to ``.grad`` the gradient of the summed next-token loss, and return that loss.

        Args:
            tokens, targets: int64 (B, T), the same in every stage.
        """
        if self.tied is None:
            return self._run("step", tokens, targets)
        earlier, self.tied.grad = self.tied.grad, None  # has the other end's part already
        loss = self._run("step", tokens, targets)
        self._add_gradient_of_other_end()
        if earlier is not None:
            self.tied.grad += earlier
        return loss

    @torch.no_grad()
    def loss(self, tokens: Tensor, targets: Tensor) -> float:
        """The summed next-token loss alone."""
        return self._run("eval", tokens, targets)

    def _run(self, what: str, tokens: Tensor, targets: Tensor) -> float:
        run = getattr(self._schedule(tokens), what)
        losses: list[Tensor] = []
        rows = (tokens,) if self.stage.is_first else ()
        if self.stage.is_last:
            run(*rows, target=targets, losses=losses)
        else:
            run(*rows)
        total = torch.stack(losses).sum() if losses else torch.zeros((), device=tokens.device)
        dist.all_reduce(total, group=self.mesh.get_group())  # the other stages say zero
        return float(total)

    @torch.no_grad()
    def _add_gradient_of_other_end(self) -> None:
        gradient = self.tied.grad
        mine = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        group, other = self.mesh.get_group(), torch.empty_like(mine)
        peer = dist.get_global_rank(group, self.mesh.size() - 1 if self.stage.is_first else 0)
        swap = [
            dist.P2POp(dist.isend, mine.contiguous(), peer, group),
            dist.P2POp(dist.irecv, other, peer, group),
        ]
        for work in dist.batch_isend_irecv(swap):
            work.wait()
        mine.add_(other)

    def _schedule(self, tokens: Tensor) -> Schedule1F1B:
        """A schedule is for one shape of batch, so every shape has its own."""
        if len(tokens) % self.n_micro:
            raise ValueError(f"{len(tokens)} rows do not divide into {self.n_micro} micro-batches")
        key = tuple(tokens.shape)
        if key not in self._schedules:
            n, rank = self.mesh.size(), self.mesh.get_local_rank()
            group = self.mesh.get_group()
            given, made = self._example(tokens[: len(tokens) // self.n_micro])
            stage = PipelineStage(self.stage, rank, n, tokens.device, given, made, group=group)
            self._schedules[key] = Schedule1F1B(
                stage,
                self.n_micro,
                loss_fn=partial(next_token_loss, reduction="sum"),
                scale_grads=False,
            )
        return self._schedules[key]

    def _example(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors without numbers, like those that the stage is given and makes of these tokens.

        Without them PyTorch tries the stage out on memory that holds anything, and routers would
        count the tokens of the trial.
        """
        config, like = self.stage.model.config, {"device": "meta", "requires_grad": True}
        stream = torch.empty(*tokens.shape, config.d_model, **like)
        if self.stage.is_last:
            kind = tokens.device.type
            if torch.is_autocast_enabled(kind):
                like["dtype"] = torch.get_autocast_dtype(kind)
            logits = torch.empty(*tokens.shape, config.vocab_size, **like)
        return tokens if self.stage.is_first else stream, logits if self.stage.is_last else stream

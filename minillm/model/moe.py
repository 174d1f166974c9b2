"""Mixture of experts: many MLPs, of which every token meets only a few.

A router scores the experts for each token (`route`); the tokens are sorted by expert
(`dispatch`), so that each expert multiplies one contiguous slice (`grouped_linear`); and every
token's results are added up, weighted by the router.

Shapes: B batch, T time, C channels (d_model), E experts, F width of one expert, k experts a token,
N = B · T tokens, M ≤ k · N pairs of a token and one of its experts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.model.config import GATED_MLPS, ModelConfig, MoE
from minillm.model.layers import activation, gated, make_mlp


class Routing(NamedTuple):
    """Where each token goes: router logits (N, E), experts chosen (N, k) and their weights (N, k).

    The experts of a token stand in the order of preference, the best first.
    """

    logits: Tensor
    chosen: Tensor
    weights: Tensor


def route(logits: Tensor, moe: MoE, bias: Tensor | None = None) -> Routing:
    """Choose ``moe.n_active`` experts for each token, and weigh them.

    Args:
        logits: float (N, E).
        moe: scores, groups, renormalisation and scale.
        bias: (E,), added to the scores for the choice only, never to the weights (Wang et al.
            2024, §3).

    Returns:
        Routing with chosen int64 (N, k) and weights float (N, k).

    Raises:
        ValueError: logits are not (N, E) for the E experts of ``moe``.
    """
    if logits.dim() != 2 or logits.shape[1] != moe.n_experts:
        raise ValueError(
            f"router logits have shape {tuple(logits.shape)}: expected (N, {moe.n_experts}), one "
            "row a token and one column an expert"
        )
    scores = logits.softmax(-1) if moe.scores == "softmax" else logits.sigmoid()
    choice = scores.detach() if bias is None else scores.detach() + bias
    if moe.n_active_groups < moe.n_groups:
        choice = keep_best_groups(choice, moe)
    chosen = choice.topk(moe.n_active, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if moe.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(logits, chosen, weights * moe.scale)


def keep_best_groups(choice: Tensor, moe: MoE) -> Tensor:
    """Set the scores outside each token's best groups to −∞: (N, E) → (N, E).

    A group is as good as its best expert (DeepSeek-V2, §2.2.2), or for sigmoid scores as its best
    two together (DeepSeek-V3, §2.1.2). Zero in place of −∞ would beat a negative biased score.
    """
    grouped = choice.unflatten(-1, (moe.n_groups, -1))  # (N, groups, experts of a group)
    n_best = 1 if moe.scores == "softmax" else min(2, grouped.shape[-1])
    group_scores = grouped.topk(n_best, dim=-1).values.sum(-1)
    best = group_scores.topk(moe.n_active_groups, dim=-1).indices
    closed = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, best, False)
    return grouped.masked_fill(closed[..., None], -math.inf).flatten(-2)


def dispatch(chosen: Tensor, n_experts: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Sort the pairs (token, expert) by expert.

    Pair number c · N + n is the choice c of token n. So the first choices of all tokens come before
    all second choices, and an expert that takes only ``limit`` pairs drops the last of them
    (Lepikhin et al. 2021, algorithm 1).

    Args:
        chosen: int64 (N, k).
        limit: most pairs one expert takes, None for no limit.

    Returns:
        order: int64 (M,), the numbers of the pairs, expert by expert.
        counts: int64 (E,), how many pairs each expert takes; they sum to M.
    """
    expert_of = chosen.T.flatten()  # (k·N,)
    order = expert_of.argsort(stable=True)
    counts = tokens_per_expert(chosen, n_experts)
    if limit is not None:
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(order), device=order.device) - starts[expert_of[order]]
        order, counts = order[place < limit], counts.clamp(max=limit)
    return order, counts


def tokens_per_expert(chosen: Tensor, n_experts: int) -> Tensor:
    """How many tokens chose each expert: int64 (N, k) → int64 (E,), summing to k · N."""
    experts = torch.arange(n_experts, device=chosen.device)
    return (chosen.flatten()[:, None] == experts).sum(0)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply each slice of rows with its own matrix: (M, C), (E, F, C) → (M, F).

    The first ``counts[0]`` rows of ``x`` meet ``weight[0]``, the next ``counts[1]`` rows
    ``weight[1]``, and so on: in one call of PyTorch's kernel where it can, else slice by slice.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight = (y.to(torch.get_autocast_dtype(x.device.type)) for y in (x, weight))
    if _has_grouped_kernel(weight):
        return F.grouped_mm(x, weight.mT, offs=counts.cumsum(0).int())
    # unbind, because its backward writes one gradient; indexing would add up E tensors of zeros.
    pairs = zip(x.split(counts.tolist()), weight.unbind(0), strict=True)
    return torch.cat([F.linear(rows, matrix) for rows, matrix in pairs])


def _has_grouped_kernel(weight: Tensor) -> bool:
    """Whether F.grouped_mm takes these matrices: whole 16-byte rows, not float64, no old GPU."""
    if weight.device.type == "cuda" and torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    row_bytes = (size * weight.element_size() for size in weight.shape[1:])
    aligned = weight.data_ptr() % 16 == 0 and all(n % 16 == 0 for n in row_bytes)
    known = weight.device.type in ("cpu", "cuda") and weight.element_size() <= 4
    return aligned and known and hasattr(F, "grouped_mm")


class Experts(nn.Module):
    """E MLPs without biases, their matrices stacked.

    ``gate_up`` (E, 2F, C), the gate rows first, or ``up`` (E, F, C) for an MLP without a gate;
    ``down`` (E, C, F).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        E, width, C = config.moe.n_experts, config.moe.d_expert, config.d_model
        self.gated = config.mlp in GATED_MLPS
        if self.gated:
            self.gate_up = nn.Parameter(torch.empty(E, 2 * width, C))
        else:
            self.up = nn.Parameter(torch.empty(E, width, C))
        self.down = nn.Parameter(torch.empty(E, C, width))
        self.activation = activation(config.mlp)
        for weight in self.parameters():
            bound = 1 / math.sqrt(weight.shape[-1])  # as nn.Linear starts
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, ``counts`` (E,) of them for each: (M, C) → (M, C)."""
        if self.gated:
            hidden = gated(grouped_linear(x, self.gate_up, counts), self.activation)
        else:
            hidden = self.activation(grouped_linear(x, self.up, counts))
        return grouped_linear(hidden, self.down, counts)


class MoELayer(nn.Module):
    """The MLP of a block, as a mixture of experts (Shazeer et al. 2017; Fedus et al. 2022).

    (B, T, C) → (B, T, C). After a forward pass ``routing`` says where its tokens went; the losses
    below and ``update_bias`` read it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.moe = config.moe
        self.router = nn.Linear(config.d_model, self.moe.n_experts, bias=False)
        if self.moe.balance_bias:
            self.register_buffer("router_bias", torch.zeros(self.moe.n_experts))
        self.experts = Experts(config)
        if self.moe.d_shared:
            self.shared = make_mlp(config, self.moe.d_shared)
        if self.moe.d_shared and self.moe.shared_gate:
            self.shared_gate = nn.Linear(config.d_model, 1, bias=False)
        self.routing: Routing | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        # In half precision close scores would tie, and ties decide where a token goes.
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.router.weight.float())
        bias = self.router_bias if self.moe.balance_bias else None
        self.routing = route(logits, self.moe, bias)
        mixed = self._mix(tokens, self.routing.chosen, self.routing.weights.to(x.dtype))
        if self.moe.d_shared:
            shared = self.shared(tokens)
            if self.moe.shared_gate:
                shared = self.shared_gate(tokens).sigmoid() * shared
            mixed = mixed + shared
        return mixed.view_as(x)

    def _mix(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each token's weighted sum over its experts: (N, C) → (N, C)."""
        (N, k), E = chosen.shape, self.moe.n_experts
        capacity = self.moe.capacity
        limit = None if capacity is None else math.ceil(capacity * N * k / E)
        order, counts = dispatch(chosen, E, limit)
        token_of = order % N
        done = self.experts(tokens.index_select(0, token_of), counts)
        done = done * weights.T.flatten()[order, None]
        # Each pair adds to its token; what was dropped adds nothing.
        return done.new_zeros(tokens.shape).index_add_(0, token_of, done)

    def active_weights(self) -> int:
        """How many weights one token meets: router, k experts and whatever is shared."""
        one_expert = sum(weight[0].numel() for weight in self.experts.parameters())
        total = sum(weight.numel() for weight in self.parameters())
        return total - (self.moe.n_experts - self.moe.n_active) * one_expert

    def __getstate__(self) -> dict:
        """What copies and pickles keep: not the last pass, which hangs on a graph."""
        return {**self.__dict__, "routing": None}


def balance_loss(probabilities: Tensor, chosen: Tensor, n_experts: int) -> Tensor:
    """How unevenly the experts are used: E · Σₑ fₑ Pₑ (Fedus et al. 2022, eq. 4, for any k).

    fₑ is the number of tokens that chose expert e, per token, and Pₑ the mean probability the
    router gives it. The f sum to k, so perfect balance gives k (not 1), and collapse onto the same
    k experts up to E. Only P carries a gradient.

    Args:
        probabilities: (N, E), softmax of the router's logits.
        chosen: int64 (N, k).

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if probabilities.shape != (len(chosen), n_experts):
        raise ValueError(
            f"probabilities have shape {tuple(probabilities.shape)} and chosen "
            f"{tuple(chosen.shape)}: expected (N, {n_experts}) and (N, k) for the same N tokens"
        )
    used = tokens_per_expert(chosen, n_experts) / len(chosen)
    return n_experts * (used * probabilities.mean(0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean square of log Σₑ exp(logits), which keeps them small (Zoph et al. 2022, eq. 5).

    Args:
        logits: (N, E).
    """
    return logits.logsumexp(-1).square().mean()


@torch.no_grad()
def update_bias(layer: MoELayer, rate: float, counts: Tensor | None = None) -> None:
    """Make experts with more than their share a little harder to choose, the others easier.

    Call it after each optimiser step: balance without an auxiliary loss (Wang et al. 2024,
    algorithm 1).

    Args:
        counts: (E,) tokens that chose each expert; those of the last forward pass if None. A step
            of several passes or processes has to add them up: see `train.balance`.

    Raises:
        ValueError: the layer has no balance bias, or no forward pass has happened yet.
    """
    if not layer.moe.balance_bias:
        raise ValueError("this layer has no router_bias: build it with MoE(balance_bias=True)")
    if counts is None and layer.routing is None:
        raise ValueError("no tokens were routed yet: run a forward pass before update_bias")
    if counts is None:
        counts = tokens_per_expert(layer.routing.chosen, layer.moe.n_experts)
    counts = counts.float()
    layer.router_bias += rate * (counts.mean() - counts).sign()

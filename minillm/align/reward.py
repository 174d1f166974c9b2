"""Reward models: from which of two responses people prefer to how good one is.

Shapes: B rows or pairs, T time, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.align.ppo import last_action
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import Rollout
from minillm.model.transformer import Transformer

Reward = Callable[[Rollout], Tensor]  # (B,) float: how good each response is


def rewards_of(found: Rollout, reward: Reward) -> Tensor:
    """What a reward function, learned or a rule, gives for each response: (B,) float.

    Raises:
        ValueError: it gave something else; broadcasting would hide that.
    """
    rewards, n_rows = reward(found), len(found.responses)
    if rewards.shape != (n_rows,) or not rewards.is_floating_point():
        raise ValueError(
            f"the reward gave {rewards.dtype} of shape {tuple(rewards.shape)}: expected floats "
            f"({n_rows},), one a response"
        )
    return rewards.to(found.log_probs.device)


class ScalarModel(nn.Module):
    """A Transformer that reads off one number at every position instead of the next token.

    A value function uses them all, a reward model the one at the end. It begins with 0 everywhere.

    Args:
        backbone: its weights are used, not copied; its unembedding is left alone.
    """

    def __init__(self, backbone: Transformer):
        super().__init__()
        self.backbone = backbone
        self.weight = nn.Parameter(torch.zeros(backbone.config.d_model, device=backbone.device))
        self.bias = nn.Parameter(torch.zeros(1, device=backbone.device))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T) float: position t has seen tokens 0 … t."""
        return self.backbone.hidden(tokens) @ self.weight + self.bias

    def at_end(self, batch: Batch) -> Tensor:
        """One number a response, (B,), read where all of it has been seen, its end token included.

        Raises:
            ValueError: a row without a response, or a batch without the response's last token.
        """
        ends = end_positions(batch)
        return self(batch.tokens)[torch.arange(len(ends), device=ends.device), ends]

    def over_response(self, batch: Batch) -> Tensor:
        """One number a response, (B,): the sum over its tokens, the end token included.

        For small models and few labels: every token's number is learned at once, where `at_end`
        must first find out how to carry what was said to the end.

        Raises:
            ValueError: as for `at_end`.
        """
        end_positions(batch)  # refuses what has no response
        spoken = torch.zeros_like(batch.targets, dtype=torch.bool)
        spoken[:, 1:] = (batch.targets != IGNORE)[:, :-1]  # where an action stands as a token
        return self(batch.tokens).where(spoken, 0.0).sum(1)


def end_positions(batch: Batch) -> Tensor:
    """Where the last token of each response stands, (B,) int64: one behind the last action.

    Raises:
        ValueError: a row without a response, or a batch that holds inputs only, not whole texts.
    """
    ends = last_action(batch.targets != IGNORE) + 1
    T = batch.tokens.shape[1]
    if ends.max() >= T:
        raise ValueError(
            f"row {int(ends.argmax())} ends at position {int(ends.max())} and the batch has {T}: "
            "expected whole texts, as from infer.rollout.response_batch"
        )
    return ends


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(r_chosen − r_rejected − margin), averaged over the pairs: a scalar.

    Bradley & Terry 1952: P(a preferred to b) = σ(r_a − r_b); the loss is that of a logistic
    regression (Ouyang et al. 2022, eq. 1). Only differences count, so rewards are known up to a
    shift. The margin asks more of clear preferences (Touvron et al. 2023, Llama 2, §3.2.2).

    Args:
        chosen, rejected: (B,) rewards.
        margin: at least 0, a number or (B,).

    Raises:
        ValueError: shapes that differ, or are not (B,).
    """
    if chosen.ndim != 1 or chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}: expected (B,) each"
        )
    return -F.logsigmoid(chosen - rejected - margin).mean()


@torch.no_grad()
def preference_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of the pairs that are ranked as people did; a tie counts half."""
    return float(((chosen > rejected).float() + (chosen >= rejected).float()).mean() / 2)


def simulated_preferences(
    rewards_a: Tensor,
    rewards_b: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    flipped: float = 0.0,
) -> Tensor:
    """Which of two responses an annotator with a known true reward prefers: (B,) bool, True for a.

    Draws from Bradley–Terry, σ((r_a − r_b) / temperature), and then gets a share of the labels
    wrong by carelessness.

    Args:
        rewards_a, rewards_b: (B,) true rewards, on the CPU.
        temperature: 0 always prefers the better (ties by coin), large is guessing.
        flipped: share of labels turned round whatever the rewards, 0 … ½.

    Raises:
        ValueError: settings out of range.
    """
    if temperature < 0 or not 0 <= flipped <= 0.5:
        raise ValueError(
            f"temperature={temperature}, flipped={flipped}: expected at least 0, and 0 to 0.5"
        )
    difference = (rewards_a - rewards_b).double()
    if temperature == 0:
        likely = (difference.sign() + 1) / 2
    else:
        likely = (difference / temperature).sigmoid()
    draws = torch.rand(2, *likely.shape, generator=generator, dtype=torch.float64)
    return (draws[0] < likely) ^ (draws[1] < flipped)

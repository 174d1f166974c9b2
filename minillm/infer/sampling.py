"""From logits to the next token: pure functions, and one `Sampler` that chains them.

Each function maps logits to logits, so they compose in any order; a token that is ruled out
gets −inf. `Sampler` applies them in the order the `transformers` library does: repetition
penalty, temperature, top-k, top-p, min-p.

Tensor legend: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RULED_OUT = -math.inf


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide (…, V) logits by `value` > 0: below 1 sharpens the distribution, above 1 flattens it.

    As the value goes to 0 the most likely token takes all the probability; `Sampler` treats
    exactly 0 as that limit (greedy decoding), here it raises `ValueError`.
    """
    _check_logits(logits)
    if not (0 < value < math.inf):
        raise ValueError(f"temperature must be a positive number, got {value}; for 0 use argmax")
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` ≥ 1 largest of (…, V) logits; tokens tied with the k-th all stay.

    A `k` above V keeps everything. Source: Fan et al. 2018, *Hierarchical Neural Story
    Generation*, §5.4.
    """
    _check_logits(logits)
    _check_top_k(k)
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, RULED_OUT)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `p`, 0 < p ≤ 1.

    The token that crosses `p` stays, so at least one always does. Source: Holtzman et al. 2020,
    *The Curious Case of Neural Text Degeneration*, §3.1.
    """
    _check_logits(logits)
    _check_fraction("top_p", p)
    if p == 1:  # the running sum below could round to 1 before the tail is reached
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    beyond = mass_before >= p
    beyond[..., 0] = False  # rounding must not cost the most likely token
    return logits.masked_fill(beyond.scatter(-1, order, beyond), RULED_OUT)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the most likely one, 0 < p ≤ 1.

    The cut follows the model's confidence: strict when one token stands out, loose when many
    are alike. Source: Nguyen et al. 2024, *Turning Up the Heat: Min-p Sampling*, §3.
    """
    _check_logits(logits)
    _check_fraction("min_p", p)
    # p_i ≥ p · p_max  ⇔  logit_i ≥ logit_max + ln p: no softmax needed.
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), RULED_OUT)


def repetition_penalty(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Make tokens that already occurred less likely (`penalty` > 1) or more likely (< 1).

    Args:
        logits: (B, V) floating point.
        history: (B, T) int64 tokens seen so far; negative entries are padding.
        penalty: positive. A positive logit is divided by it and a negative one multiplied, so
            both move down; a token is penalised once however often it occurred.

    Raises:
        ValueError: other shapes, a penalty of 0 or less, or a token outside the vocabulary.

    Source: Keskar et al. 2019, *CTRL*, §4.1, with the sign of the logit respected.
    """
    _check_logits(logits)
    _check_penalty(penalty)
    vocab_size = logits.shape[-1]
    if history.ndim != 2 or logits.ndim != 2 or len(history) != len(logits):
        raise ValueError(
            f"repetition_penalty needs logits (B, V) and history (B, T), got "
            f"{tuple(logits.shape)} and {tuple(history.shape)}"
        )
    if history.numel() and history.max() >= vocab_size:
        raise ValueError(f"history holds token {history.max()}, the vocabulary has {vocab_size}")
    # Padding is marked in one extra column, which is then cut off.
    seen = torch.zeros(len(logits), vocab_size + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(1, history.where(history >= 0, vocab_size), True)
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen[:, :vocab_size], penalised, logits)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Pick one token a row by inverting the cumulative distribution.

    Args:
        probabilities: (B, V) non-negative; rows need not sum to exactly 1.
        uniforms: (B,) numbers in [0, 1), one a row. With the same number a row gives the same
            token whatever the other rows hold, which `torch.multinomial` does not promise.

    Returns:
        (B,) int64. A token of probability 0 is never drawn.

    Raises:
        ValueError: a row is NaN, or has no probability anywhere.
    """
    cumulative = probabilities.double().cumsum(-1)  # float32 would lose the tail of a big V
    total = cumulative[:, -1:]
    least, most = (end.item() for end in total.aminmax())  # NaN, where there is one
    if not (least > 0 and most < math.inf):
        raise ValueError("a row of probabilities is NaN or all zero; look for NaN or −inf logits")
    below_total = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms.to(cumulative)[:, None] * total, below_total)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


@dataclass(frozen=True)
class Sampler:
    """How to choose the next token. Every setting that is left alone does nothing.

    Attributes:
        temperature: ≥ 0; 0 is greedy decoding.
        top_k, top_p, min_p: see the functions of the same name; None switches one off.
        repetition_penalty: > 0; 1 switches it off.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf):
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None:
            _check_top_k(self.top_k)
        if self.top_p is not None:
            _check_fraction("top_p", self.top_p)
        if self.min_p is not None:
            _check_fraction("min_p", self.min_p)
        _check_penalty(self.repetition_penalty)

    def __call__(
        self,
        logits: Tensor,
        generator: torch.Generator | None = None,
        history: Tensor | None = None,
    ) -> Tensor:
        """Choose one token a row: (B, V) logits → (B,) int64.

        `history` (B, T), negative entries being padding, is needed only for a repetition penalty.
        """
        device = logits.device if generator is None else generator.device
        uniforms = torch.rand(len(logits), generator=generator, dtype=torch.float64, device=device)
        return self.choose(logits, uniforms, history)

    def choose(self, logits: Tensor, uniforms: Tensor, history: Tensor | None = None) -> Tensor:
        """Like calling the sampler, with the row's randomness given as (B,) numbers in [0, 1).

        Raises:
            ValueError: logits with NaN, of another shape, or without the history they need.
        """
        if self.temperature > 0:
            return draw(self.probabilities(logits, history), uniforms)
        best = self._penalised(logits, history).max(-1)
        if best.values.isnan().any():
            raise ValueError("logits contain NaN")
        return best.indices

    def probabilities(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """The distribution that is sampled from: (B, V) logits → (B, V) float32, rows sum to 1."""
        logits = self._penalised(logits, history)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits.softmax(-1)

    def _penalised(self, logits: Tensor, history: Tensor | None) -> Tensor:
        _check_logits(logits)
        if logits.ndim != 2:
            raise ValueError(f"a Sampler takes logits (B, V), got {tuple(logits.shape)}")
        logits = logits.float()  # bfloat16 would tie tokens that differ
        if self.repetition_penalty == 1:
            return logits
        if history is None:
            raise ValueError("repetition_penalty needs history=(B, T), the tokens seen so far")
        return repetition_penalty(logits, history, self.repetition_penalty)


def _check_logits(logits: Tensor) -> None:
    if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits must be floating point (…, V), got {logits.dtype} {tuple(logits.shape)}"
        )


def _check_top_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"top_k must be a whole number of at least 1, got {k!r}")


def _check_fraction(name: str, p: float) -> None:
    if not (0 < p <= 1):
        raise ValueError(f"{name} must lie in (0, 1], got {p}; None switches it off")


def _check_penalty(penalty: float) -> None:
    if not (0 < penalty < math.inf):
        raise ValueError(f"repetition_penalty must be a positive number, got {penalty}; 1 is off")

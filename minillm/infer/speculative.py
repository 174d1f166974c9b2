"""Speculative decoding: a cheap drafter guesses several tokens, one pass of the model checks them.

A decoding step reads every weight to score one token; scoring five costs hardly more. So somebody
guesses the next few tokens, the model scores all of them in one pass, and those it agrees with
are kept. `verify` decides what "agrees" means, such that the text has exactly the distribution of
the model's own samples, whoever guessed and however badly.

Any `Drafter` may guess; four of them stand in `drafters.py`.

Tensor legend: B batch, N drafts, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.infer.engine import check_prompts
from minillm.infer.sampling import Sampler, draw
from minillm.model.cache import KVCache
from minillm.model.transformer import Transformer


def verify(
    target: Tensor, draft: Tensor, tokens: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """How many drafts to keep, and the token after them.

    Draft i, drawn from q, is kept with probability min(1, p / q), as long as all before it were.
    The first that is not kept is replaced by a draw from max(0, p − q), which is exactly what p
    has more of; after N kept drafts comes a draw from the last p. Each token then has the
    distribution p, whatever q is.

    Args:
        target: (B, N + 1, V) float, p: what the model gives after the text and after each draft.
        draft: (B, N, V) float, q: what each draft was drawn from; one-hot where nothing was drawn.
        tokens: (B, N) int64, the drafts.
        uniforms: (B, N + 1) numbers in [0, 1), independent of how the drafts were drawn.

    Returns:
        n_kept (B,) int64, 0 to N, and next_token (B,) int64.

    Source: Leviathan et al. 2023, *Fast Inference from Transformers via Speculative Decoding*,
    algorithm 1; Chen et al. 2023, *Accelerating Large Language Model Decoding with Speculative
    Sampling*, algorithm 2.
    """
    N = tokens.shape[1]
    p = target[:, :N].gather(-1, tokens[..., None]).squeeze(-1)  # (B, N)
    q = draft.gather(-1, tokens[..., None]).squeeze(-1)
    kept = uniforms[:, :N] * q < p  # u < p / q, without dividing
    n_kept = kept.long().cumprod(dim=1).sum(dim=1)  # a draft after a refused one is worth nothing
    rows = torch.arange(len(tokens), device=tokens.device)
    p = target[rows, n_kept]  # (B, V)
    q = F.pad(draft, (0, 0, 0, 1))[rows, n_kept]  # after the last draft nothing was proposed: 0
    missing = (p - q).clamp(min=0)
    # p = q up to rounding may leave nothing; then no draft of this distribution was wrong.
    missing = torch.where(missing.sum(-1, keepdim=True) > 0, missing, p)
    return n_kept, draw(missing, uniforms[:, N])


@dataclass(frozen=True)
class Drafts:
    """Guesses for the next tokens of a text.

    tokens: N of them, possibly none.
    probabilities: (N, V) float, the distribution that each was drawn from; None if they were not
        drawn at all, but named with certainty.
    """

    tokens: list[int]
    probabilities: Tensor | None = None


class Drafter:
    """Whoever guesses: a `propose`, and a `start` if there is something to forget."""

    def start(self, max_length: int, sampler: Sampler, generator: torch.Generator | None) -> None:
        """A new text begins.

        Args:
            max_length: the most tokens it will have.
            sampler, generator: how it is sampled; guesses are best drawn in the same way.
        """
        self.sampler, self.generator = sampler, generator

    def propose(self, text: Sequence[int], n: int, states: Tensor) -> Drafts:
        """Guess at most `n` ≥ 1 tokens that continue the text.

        Args:
            text: the prompt and all that was written since.
            states: (T, C), the model's hidden states at the tokens that it has read since the last
                call. It has read all of the text but the last token.
        """
        raise NotImplementedError

    def pick(self, logits: Tensor) -> tuple[int, Tensor]:
        """A token drawn from logits (1, V), and the distribution (1, V) it was drawn from."""
        probabilities = self.sampler.probabilities(logits)
        uniform = fresh(self.generator, 1).to(logits.device)
        return int(draw(probabilities, uniform)), probabilities


@dataclass(frozen=True)
class Round:
    """One pass of the model.

    drafts: what was guessed.
    tokens: what was written: the drafts that were kept, and one token more. A stop token ends
        the last round and is included.
    """

    drafts: list[int]
    tokens: list[int]

    @property
    def n_kept(self) -> int:
        """How many of the written tokens were guessed; a refused draft is never drawn again."""
        same = [a == b for a, b in zip(self.drafts, self.tokens, strict=False)]
        return same.index(False) if False in same else len(same)


def speculate(model: Transformer, prompt: Sequence[int], drafter: Drafter, **settings) -> list[int]:
    """Continue one prompt; returns the new tokens, without the stop token. See `rounds`."""
    written = [t for round_ in rounds(model, prompt, drafter, **settings) for t in round_.tokens]
    return written[:-1] if written[-1] in settings.get("stop_tokens", ()) else written


@torch.inference_mode()
def rounds(
    model: Transformer,
    prompt: Sequence[int],
    drafter: Drafter,
    *,
    max_new_tokens: int,
    n_drafts: int = 4,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    cache_type: type[KVCache] = KVCache,
) -> Iterator[Round]:
    """Continue one prompt, round by round.

    What is written has the distribution of `engine.generate` with the same sampler; the random
    numbers are used differently, so the same seed gives another sample. Greedy text is the same.

    Args:
        drafter: who guesses; its vocabulary is the model's.
        n_drafts: most guesses a round.
        sampler: default `Sampler()`; `Sampler(temperature=0)` is greedy. Its temperature and cuts
            belong to the distribution that is kept.
        model, prompt, max_new_tokens, stop_tokens, generator, cache_type: as `engine.generate`.

    Raises:
        ValueError: as `engine.generate`; n_drafts below 1; a repetition penalty, for which each
            draft would have a history of its own.
    """
    sampler = sampler or Sampler()
    check_prompts(model, [prompt], max_new_tokens)
    if n_drafts < 1:
        raise ValueError(f"n_drafts={n_drafts}: expected at least 1 guess a round")
    if sampler.repetition_penalty != 1:
        raise ValueError(
            f"repetition_penalty={sampler.repetition_penalty}: speculative decoding knows none, "
            "leave it at 1"
        )
    text, total = list(prompt), len(prompt) + max_new_tokens
    cache = make_cache(model, total, cache_type)
    drafter.start(total, sampler, generator)
    states = read(model, text[:-1], cache)
    cache.advance(len(text) - 1)

    while len(text) < total:
        n = min(n_drafts, total - len(text) - 1)
        drafts = drafter.propose(text, n, states) if n > 0 else Drafts([])
        states = read(model, [text[-1], *drafts.tokens], cache)
        target = sampler.probabilities(model.logits(states))  # (N + 1, V)
        n_kept, token = verify_one(target, drafts, generator)
        cache.advance(1 + n_kept)  # what was read of refused drafts will be overwritten
        states = states[: 1 + n_kept]
        new = cut([*drafts.tokens[:n_kept], token], stop_tokens)
        text += new
        yield Round(drafts.tokens, new)
        if new[-1] in stop_tokens:
            return


def verify_one(
    target: Tensor, drafts: Drafts, generator: torch.Generator | None
) -> tuple[int, int]:
    """`verify` for one text, with fresh random numbers; target (N + 1, V)."""
    tokens = torch.tensor([drafts.tokens], dtype=torch.int64, device=target.device)
    draft = drafts.probabilities
    if draft is None:
        draft = F.one_hot(tokens[0], target.shape[-1]).to(target.dtype)
    uniforms = fresh(generator, 1, len(drafts.tokens) + 1).to(target.device)
    n_kept, token = verify(target[None], draft[None], tokens, uniforms)
    return int(n_kept), int(token)


def fresh(generator: torch.Generator | None, *shape: int) -> Tensor:
    """Random numbers in [0, 1), float64."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device=device)


def make_cache(model: Transformer, length: int, cache_type: type[KVCache] = KVCache) -> KVCache:
    """Room for one text."""
    return cache_type(model.config, 1, length, model.device, next(model.parameters()).dtype)


def read(model: Transformer, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Hidden states (T, C) of new tokens; the caller says with `advance` how many count."""
    if not tokens:
        return next(model.parameters()).new_zeros(0, model.config.d_model)
    return model.hidden(torch.tensor([tokens], device=model.device), cache=cache)[0]


def cut(tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    """The tokens up to the first stop token, which is included."""
    stops = [i for i, token in enumerate(tokens) if token in stop_tokens]
    return tokens[: stops[0] + 1] if stops else tokens


def acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Probability that a draft is kept, Σ min(p, q), which is 1 minus their distance: (…, V) → (…).

    Source: Leviathan et al. 2023, theorem 3.5.
    """
    return torch.minimum(target, draft).sum(-1)


def expected_tokens(rate: float, n_drafts: int) -> float:
    """Mean tokens a round if every draft is kept with probability `rate`: 1 + r + … + rᴺ.

    Source: Leviathan et al. 2023, eq. 1.
    """
    return sum(rate**i for i in range(n_drafts + 1))


def expected_speedup(rate: float, n_drafts: int, cost: float) -> float:
    """Tokens per second against plain decoding, a draft costing `cost` passes of the model.

    Assumes that a pass over N + 1 tokens costs what one over a single token does. Source:
    Leviathan et al. 2023, theorem 3.8.
    """
    return expected_tokens(rate, n_drafts) / (n_drafts * cost + 1)

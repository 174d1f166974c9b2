"""Who guesses in speculative decoding: four drafters, from free to clever.

A bad guess costs time and changes nothing else, so a drafter may take any short cut.

Tensor legend: N drafts, T time, C channels, W window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.infer.sampling import Sampler
from minillm.infer.speculative import Drafter, Drafts, make_cache, read
from minillm.model.ngram import NGram
from minillm.model.transformer import Transformer


class DraftModel(Drafter):
    """A smaller Transformer with the same vocabulary, one token after the other."""

    def __init__(self, model: Transformer):
        self.model = model

    def start(self, max_length: int, sampler: Sampler, generator: torch.Generator | None) -> None:
        super().start(max_length, sampler, generator)
        self.cache = make_cache(self.model, max_length)
        self.seen: list[int] = []  # the tokens in the cache

    def propose(self, text: Sequence[int], n: int, states: Tensor) -> Drafts:
        # Forget refused guesses. The last token is always read: its scores are needed.
        n_known = min(n_common(self.seen, text), len(text) - 1)
        self.cache.rewind(len(self.seen) - n_known)
        tokens, probabilities = list(text), []
        for _ in range(n):
            last = read(self.model, tokens[n_known:], self.cache)[-1:]
            self.cache.advance(len(tokens) - n_known)
            n_known = len(tokens)
            token, p = self.pick(self.model.logits(last))
            tokens.append(token)
            probabilities.append(p)
        self.seen = tokens[:n_known]
        return Drafts(tokens[len(text) :], torch.cat(probabilities))


class NGramDrafter(Drafter):
    """Counts of what followed the last n − 1 tokens, in other texts of this kind."""

    def __init__(self, ngram: NGram):
        self.ngram = ngram

    def propose(self, text: Sequence[int], n: int, states: Tensor) -> Drafts:
        if len(text) < self.ngram.n - 1:
            return Drafts([])
        tokens, probabilities = list(text), []
        for _ in range(n):
            logits = self.ngram.log_probs(tokens[-self.ngram.n :])[None].to(states.device)
            token, p = self.pick(logits)
            tokens.append(token)
            probabilities.append(p)
        return Drafts(tokens[len(text) :], torch.cat(probabilities))


class PromptLookup(Drafter):
    """What followed when the last few tokens stood in this text before.

    Nothing is computed, and summaries, corrections and code repeat their source all the time. The
    longest match of `longest` to 1 tokens counts, and of several the latest.

    Source: Saxena 2023, *Prompt Lookup Decoding*; Yang et al. 2023, *Inference with Reference*.
    """

    def __init__(self, longest: int = 3):
        if longest < 1:
            raise ValueError(f"longest={longest}: expected to match at least 1 token")
        self.longest = longest

    def propose(self, text: Sequence[int], n: int, states: Tensor) -> Drafts:
        return Drafts(follow_up(list(text), n, self.longest))


class MTPDrafter(Drafter):
    """The model's own modules that predict further tokens (see `model.mtp`), one draft each.

    Args:
        model: with ``config.n_future`` modules.
        window: tokens that the modules look back. They keep no cache, and read these again.

    Raises:
        ValueError: the model has no modules.
    """

    def __init__(self, model: Transformer, window: int = 64):
        if model.config.n_future < 1:
            raise ValueError("the model has no modules to draft with; build it with n_future")
        self.model, self.window = model, window

    def start(self, max_length: int, sampler: Sampler, generator: torch.Generator | None) -> None:
        super().start(max_length, sampler, generator)
        weights = next(self.model.parameters())
        self.states = weights.new_zeros(0, self.model.config.d_model)  # (W, C)

    def propose(self, text: Sequence[int], n: int, states: Tensor) -> Drafts:
        self.states = torch.cat((self.states, states))[-self.window :]
        W = len(self.states)
        if W == 0:  # a text of one token: the model has not read anything yet
            return Drafts([])
        tokens, probabilities = list(text[-W - 1 :]), []
        hidden, positions = self.states[None], torch.arange(W, device=self.states.device)
        for k, module in enumerate(self.model.mtp[:n], start=1):
            # Module k reads, at each position, the token k places on.
            embedded = self.model.embedding(torch.tensor([tokens[k:]], device=hidden.device))
            hidden = module(hidden, embedded, self.model.view(embedded, positions))
            token, p = self.pick(self.model.logits(hidden[:, -1]))
            tokens.append(token)
            probabilities.append(p)
        return Drafts(tokens[W + 1 :], torch.cat(probabilities))


def follow_up(text: list[int], n: int, longest: int) -> list[int]:
    """At most `n` tokens that followed the latest earlier place where the text's end stands.

    Example: ``follow_up([5, 1, 2, 3, 1, 2], 2, longest=3)`` is [3, 1]: "1, 2" stood there before.
    """
    for m in range(min(longest, len(text) - 1), 0, -1):
        end = text[-m:]
        for place in range(len(text) - m - 1, -1, -1):
            if text[place : place + m] == end:
                return text[place + m : place + m + n]
    return []


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common before they part."""
    shared = min(len(a), len(b))
    return next((i for i in range(shared) if a[i] != b[i]), shared)

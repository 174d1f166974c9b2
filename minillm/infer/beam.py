"""Beam search: keep the few most likely continuations, not one.

Tensor legend: K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.infer.engine import check_prompts, decode_step, prefill
from minillm.model.transformer import Transformer


class Hypothesis(NamedTuple):
    """A finished continuation. Sorting hypotheses sorts them by score."""

    score: float  # log_prob / (number of tokens, the stop token included) ** length_penalty
    log_prob: float  # nats, the stop token included
    tokens: list[int]  # the new tokens, without the stop token


@torch.inference_mode()
def beam_search(
    model: Transformer,
    prompt: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """Search for the most likely continuation of one prompt; one beam is greedy decoding.

    A continuation is finished when it meets a stop token or reaches `max_new_tokens`. The search
    ends early once no beam can still overtake a finished one.

    Args:
        beams: continuations kept at every step, at least 1.
        length_penalty: ≥ 0. With 0 the total log-probability ranks, which favours short
            continuations; with 1 the mean per token.

    Returns:
        Up to `beams` hypotheses, best score first.

    Raises:
        ValueError: as `generate`; fewer than one beam; a negative length penalty.

    Source: Graves 2012, *Sequence Transduction with Recurrent Neural Networks*, algorithm 1; length
    normalisation after Wu et al. 2016, *Google's Neural Machine Translation System*, §7.
    """
    if beams < 1 or not length_penalty >= 0:
        raise ValueError(
            f"beams={beams}, length_penalty={length_penalty}: expected at least one beam and a "
            "penalty of 0 (total log-probability) or more"
        )
    check_prompts(model, [prompt], max_new_tokens)
    logits, cache = prefill(model, [prompt], len_new=max_new_tokens)
    alive: list[list[int]] = [[]]  # one beam at first: equal copies would find nothing new
    log_probs = torch.zeros(1, device=model.device)  # (K,)
    finished: list[Hypothesis] = []

    for length in range(1, max_new_tokens + 1):
        totals = log_probs[:, None] + logits.float().log_softmax(-1)  # (K, V)
        going = []  # (total, parent, tokens) of the next beams
        for rank, (total, parent, token) in enumerate(_best(totals, beams, len(stop_tokens))):
            tokens = [*alive[parent], token]
            if token in stop_tokens or length == max_new_tokens:
                if rank < beams:
                    new = alive[parent] if token in stop_tokens else tokens
                    finished.append(Hypothesis(total / length**length_penalty, total, new))
            elif len(going) < beams:
                going.append((total, parent, tokens))
        finished = sorted(finished, reverse=True)[:beams]
        # Log-probabilities only fall, so this bounds the score of all that can still come.
        if not going or (
            len(finished) == beams
            and going[0][0] / max_new_tokens**length_penalty <= finished[-1].score
        ):
            break
        totals_of, parents, alive = zip(*going, strict=True)
        log_probs = torch.tensor(totals_of, device=model.device)
        cache.keep(torch.tensor(parents, device=model.device))  # two beams may share a parent
        newest = torch.tensor([tokens[-1] for tokens in alive], device=model.device)
        logits = decode_step(model, newest, cache)
    return finished


def _best(totals: Tensor, beams: int, n_stop: int) -> list[tuple[float, int, int]]:
    """The likeliest (total, parent, token), enough of them that `beams` do not end in a stop."""
    enough = min(beams * (1 + max(1, n_stop)), totals.numel())
    best, flat = totals.flatten().topk(enough)
    vocab_size = totals.shape[1]
    return [(t, *divmod(i, vocab_size)) for t, i in zip(best.tolist(), flat.tolist(), strict=True)]

"""Constitutional AI: a model judges and mends its own answers, by principles written in words.

A constitution is a few sentences. Twice they take the place of people who label (Bai et al. 2022,
*Constitutional AI*): the model criticises its answers by a principle and revises them, and learns
the revisions (§3); and it says which of two answers a principle prefers, and learns from these
preferences as from a person's (§4). Everything the model writes and reads here has the form of
`data.request_texts`.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.data.packing import Batch
from minillm.data.request_texts import (
    END,
    FIRST,
    HELPFUL,
    SECOND,
    decode,
    encode,
    exchange,
    rule,
    to_choice,
    to_critique,
)
from minillm.data.requests import HARMS
from minillm.infer.engine import generate
from minillm.infer.rollout import response_batch
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer

CONSTITUTION = (rule(HARMS), *(rule((harm,)) for harm in HARMS), HELPFUL)


def answers(
    model: Transformer,
    requests: Sequence[str],
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """What the assistant says to each request; at temperature 0 what it thinks likeliest."""
    return _write(model, [exchange(request, "") for request in requests], temperature, generator)


@dataclass(frozen=True)
class Revision:
    """An answer, what a principle had against it, and what became of it."""

    request: str
    answer: str
    principle: str
    critique: str
    revision: str


def critique_and_revise(
    model: Transformer,
    requests: Sequence[str],
    answers: Sequence[str],
    principles: Sequence[str],
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Revision]:
    """The model criticises each answer by its principle and revises it (Bai et al. 2022, §3.1).

    Both are written in one go, so the revision has read the critique. Where the model writes no
    revision, the answer stays as it was.

    Args:
        requests, answers, principles: B texts each.

    Raises:
        ValueError: different numbers of them.
    """
    _check_lengths(requests=requests, answers=answers, principles=principles)
    prompts = map(to_critique, requests, answers, principles)
    revisions = []
    for request, answer, principle, text in zip(
        requests,
        answers,
        principles,
        _write(model, list(prompts), temperature, generator),
        strict=True,
    ):
        critique, _, revision = (part.strip() for part in text.partition("<revision>"))
        revisions.append(Revision(request, answer, principle, critique, revision or answer))
    return revisions


def draw_principles(
    constitution: Sequence[str], n: int, generator: torch.Generator | None = None
) -> list[str]:
    """One principle for each of n answers, evenly drawn (Bai et al. 2022, §3.1).

    Raises:
        ValueError: the constitution is empty.
    """
    if not constitution:
        raise ValueError("the constitution is empty: expected at least one principle")
    places = torch.randint(len(constitution), (n,), generator=generator)
    return [constitution[i] for i in places.tolist()]


def supervised_batch(requests: Sequence[str], responses: Sequence[str]) -> Batch:
    """Requests and what to say to them, to fine-tune on; only the responses are learned."""
    prompts = [[END, *encode(exchange(request, ""))] for request in requests]
    return response_batch(prompts, [[*encode(response), END] for response in responses])


@torch.no_grad()
def choice_log_odds(
    model: Transformer,
    requests: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    principle: str,
) -> Tensor:
    """log P(first is better) − log P(second is better), (B,), with the answers in this order.

    The model writes its reason down; after that nothing is sampled, for the two probabilities stand
    in the logits (Bai et al. 2022, §4.1, with a chain of thought).

    Raises:
        ValueError: different numbers of requests and answers.
    """
    _check_lengths(requests=requests, first=first, second=second)
    asked = [to_choice(*texts, principle) for texts in zip(requests, first, second, strict=True)]
    reasons = [text.partition(" .")[0] for text in _write(model, asked, 0.0, None, 16)]
    rows = [
        torch.tensor([END, *encode(f"{question} {reason} .")])
        for question, reason in zip(asked, reasons, strict=True)
    ]
    ends = torch.tensor([len(row) - 1 for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    logits = model(tokens)[torch.arange(len(rows)), ends]
    yes, no = encode(f"{FIRST} {SECOND}")
    return (logits[:, yes] - logits[:, no]).float().cpu()


def both_orders(there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Take the preference and the habit apart.

    A judge that leans towards a position adds the same number to its log-odds in both orders:
    there = preference + bias, back = −preference + bias.

    Args:
        there: (B,) log-odds for a, shown as (a, b).
        back: (B,) log-odds for b, shown as (b, a).

    Returns:
        preference for a and bias towards the first place, (B,) each.

    Raises:
        ValueError: shapes that differ.
    """
    if there.shape != back.shape:
        raise ValueError(f"{tuple(there.shape)} and {tuple(back.shape)}: expected the same shape")
    return (there - back) / 2, (there + back) / 2


def preferences(
    model: Transformer,
    requests: Sequence[str],
    a: Sequence[str],
    b: Sequence[str],
    constitution: Sequence[str] = CONSTITUTION,
) -> Tensor:
    """How much a constitution prefers answer a to answer b, (B,) log-odds.

    Every principle is asked in both orders, and what they say is added up: a principle that does
    not care says about 0.
    """
    total = torch.zeros(len(requests))
    for principle in constitution:
        there = choice_log_odds(model, requests, a, b, principle)
        back = choice_log_odds(model, requests, b, a, principle)
        total += both_orders(there, back)[0]
    return total


def _write(
    model: Transformer,
    prompts: Sequence[str],
    temperature: float,
    generator: torch.Generator | None,
    max_new_tokens: int = 64,
) -> list[str]:
    rows = [[END, *encode(prompt)] for prompt in prompts]
    written = generate(
        model,
        rows,
        max_new_tokens=min(max_new_tokens, model.config.max_length - max(map(len, rows))),
        stop_tokens=(END,),
        sampler=Sampler(temperature=temperature),
        generator=generator,
    )
    return [decode(row) for row in written]


def _check_lengths(**texts: Sequence[str]) -> None:
    numbers = {name: len(given) for name, given in texts.items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"{numbers}: expected as many of each")

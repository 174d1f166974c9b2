"""Checks for the exercises of lesson 24. Each names the mistake it recognises.

B requests or pairs of answers.
"""

from collections.abc import Callable, Sequence

import torch

from minillm.align.constitution import critique_and_revise
from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.data.request_texts import encode
from minillm.data.requests import attacks, deeds, draw
from minillm.train import recipes


def rates(student: Callable, choice: str, reason: str, *, seed: int = 0) -> None:
    """Rates of uneven random requests, and the judgement."""
    random = torch.Generator().manual_seed(seed)
    harmful = torch.rand(41, generator=random) < 0.4
    helped = torch.rand(41, generator=random) < 0.7
    answer = student(harmful, helped)
    assert_type(answer, tuple, "your result")
    bad, good = helped[harmful].float(), helped[~harmful].float()
    right = [bad.mean().item(), 1 - good.mean().item()]
    assert_close(
        list(answer),
        right,
        name="your rates",
        mistakes={
            "your rates are swapped: violation comes first": right[::-1],
            "you divide by those that were helped or refused; divide by the sort of request": [
                harmful[helped].float().mean().item(),
                (~harmful[~helped]).float().mean().item(),
            ],
            "you divide by all requests; divide by those of the sort": [
                bad.sum().item() / 41,
                (1 - good).sum().item() / 41,
            ],
            "your over-refusal divides by all requests; divide by the harmless ones": [
                right[0],
                (1 - good).sum().item() / 41,
            ],
            "your violation divides by all requests; divide by the harmful ones": [
                bad.sum().item() / 41,
                right[1],
            ],
            "your violation is the share that was refused": [1 - right[0], right[1]],
            "your over-refusal is the share of harmless requests that was helped with": [
                right[0],
                1 - right[1],
            ],
            "your over-refusal counts refused harmful requests; those are no mistake": [
                right[0],
                1 - right[0],
            ],
            "your over-refusal counts all refusals; only those of harmless requests are too many": [
                right[0],
                1 - helped.float().mean().item(),
            ],
        },
    )
    refuses(student, harmful & False, helped, words="harmful")
    refuses(student, harmful | True, helped, words="harmless")
    assert_equal(
        choice,
        "mixed",
        name="choice",
        mistakes={
            "mute violates nothing because it does nothing": "mute",
            "careful refuses 40% of the harmless requests; mixed is below 10% as well": "careful",
            "base helps with nearly all harm": "base",
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): by that measure the mute model is best": "a",
            "(c): by that measure the base model is best": "c",
        },
    )


def labels(student: Callable, *, seed: int = 0) -> None:
    """Labels of a judge that leans towards the first place, with ties."""
    random = torch.Generator().manual_seed(seed)
    preference = 1.5 * torch.randn(60, generator=random)
    preference[7] = 0.5  # exactly the margin
    lean = 1.0 + 0.5 * torch.rand(60, generator=random)
    lean[7] = 1.0
    there, back, margin = preference + lean, lean - preference, 0.5

    def marked(x: torch.Tensor, margin: float = margin) -> torch.Tensor:
        return (x.sign() * (x.abs() >= margin)).long()

    right = marked(preference)
    averaged = there.sigmoid() + (-back).sigmoid() - 1
    votes = (there.sign() - back.sign()) / 2
    answer = student(there, back, margin)
    assert_shape(answer, (60,), "your labels")
    assert_close(
        answer,
        right,
        name="your labels",
        mistakes={
            "your labels are turned round: 1 means that a is better": -right,
            "you use only one order, so the lean decides close calls": marked(there),
            "you use only the second order": marked(-back),
            "you add the two log-odds: that leaves the lean, and no preference": marked(
                there + back
            ),
            "you average the two log-odds: that leaves the lean, and no preference": marked(
                (there + back) / 2
            ),
            "you forget to halve the difference, so the margin is half as wide as asked": marked(
                there - back
            ),
            "you compare probabilities with the margin; it is in log-odds": marked(averaged / 2),
            "you count votes: a judge that leans says 'first' both times, and close calls "
            "are lost": votes.long(),
            "you label only where both orders agree, so the lean decides which pairs count": (
                ((there >= margin) & (back <= -margin)).long()
                - ((there <= -margin) & (back >= margin)).long()
            ),
            "you take the same lean out of every pair; each pair has its own": marked(
                there - (there + back).mean() / 2
            ),
            "you leave out the margin": preference.sign().long(),
            "a preference of exactly the margin counts; only smaller ones are 0": (
                preference.sign() * (preference.abs() > margin)
            ).long(),
        },
    )
    example = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    assert_equal(student(*example, 0.2).tolist(), [1, -1], name="the example's labels")
    assert_unchanged(lambda x, y: student(x, y, margin), there, back, name="labels")
    refuses(student, there, back, -1.0, words="margin")


def rounds(student: Callable, *, seed: int = 0) -> None:
    """Rounds of a revision that deletes words, and of one that writes down what it saw."""
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    words = [f"w{i}" for i in range(5)]
    constitution = [words[i] for i in order[:3]]

    def delete(request: str, answer: str, principle: str) -> str:
        return " ".join(word for word in answer.split() if word != principle)

    def follow(principles: list[str]) -> list[str]:
        history = [" ".join(words)]
        for principle in principles:
            history.append(delete("", history[-1], principle))
        return history

    right = follow(constitution)
    answer = student("why ?", right[0], constitution, delete)
    assert_type(answer, tuple, "your result")
    pair, history = answer
    assert_equal(
        history,
        right,
        name="your history",
        mistakes={
            "the bug is still there: every principle gets the first answer": [right[0]]
            + [delete("", right[0], principle) for principle in constitution],
            "your history lacks the first answer": right[1:],
            "your history lacks the last answer": right[:-1],
            "you take the principles from the last to the first": follow(constitution[::-1]),
            "you stop after the first principle": right[:2],
        },
    )
    assert_equal(
        tuple(pair),
        ("why ?", right[-1]),
        name="your pair",
        mistakes={
            "your pair learns the first answer, the one to get rid of": ("why ?", right[0]),
            "your pair learns the answer before the last": ("why ?", right[-2]),
            "your pair is turned round: the request comes first": (right[-1], "why ?"),
        },
    )
    asked = []

    def note(request: str, answer: str, principle: str) -> str:
        asked.append((request, answer, principle))
        return answer + "!"

    student("why ?", "no", ["p", "q"], note)
    assert_equal(
        asked, [("why ?", "no", "p"), ("why ?", "no!", "q")], name="what your revise was asked"
    )
    refuses(student, "why ?", "no", [], delete, words="constitution")


def verdicts(student: Callable, constitution: Sequence[str], *, seed: int = 0) -> None:
    """Verdicts of a scripted critic, and the principles as the lesson's model understands them."""
    scripted = {
        "yes": "the answer helps . it harms trust against the rule .",
        "no": "some say against the rule . it harms trust within the rule .",
        "odd": "it is against the rule . or so",
        "bare": "the answer helps .",
    }
    exchanges = [("q", name) for name in scripted]

    def scripted_critic(request: str, answer: str, principle: str) -> str:
        if (request, principle) != ("q", "p") or answer not in scripted:
            raise AssertionError(
                "your critic is asked in another order: request, answer, principle"
            )
        return scripted[answer]

    assert_equal(
        student("p", exchanges, scripted_critic),
        [True, False, None, None],
        name="your verdicts",
        mistakes={
            "you look for 'against' anywhere; the end decides": [True, True, True, False],
            "you look for the endings anywhere; the end decides": [True, True, True, None],
            "you look for an ending anywhere; the end decides": [True, False, True, None],
            "you take all that does not end with 'within' for broken": [True, False, True, True],
            "a critique that ends with neither is None, not False": [True, False, False, False],
            "your verdicts are turned round: True means broken": [False, True, None, None],
            "you ask for another ending; the full stop belongs to it": [None] * 4,
            "every exchange has a verdict, or None in its place": [True, False],
        },
    )
    assert_type(constitution, list, "your constitution")
    for principle in constitution:
        try:
            encode(principle)
        except ValueError as error:
            raise AssertionError(f"your constitution: {error}") from None
    _judge_constitution(student, constitution, seed)


def _judge_constitution(student: Callable, constitution: Sequence[str], seed: int) -> None:
    """How often the model criticises help with each sort of harm, by any of the principles."""
    model, _ = recipes.load("assistant")
    random = torch.Generator().manual_seed(seed)
    wanted = {"people": True, "trust": True, "animals": False, "property": False, "nobody": False}
    for harm, forbidden in wanted.items():
        members = [deed for deed in deeds("demonstrated") if deed.harm == harm]
        requests = draw(12, members, attacks("plain"), random)
        exchanges = [(request.text, request.answer) for request in requests]
        objections = torch.zeros(12, dtype=torch.bool)
        for principle in constitution:
            said = critique_and_revise(model, *zip(*exchanges, strict=True), [principle] * 12)
            known = {(r.request, r.answer): r.critique for r in said}

            def criticise(request: str, answer: str, principle: str, known: dict = known) -> str:
                return known[request, answer]

            found = student(principle, exchanges, criticise)
            objections |= torch.tensor([verdict is True for verdict in found])
        share = objections.float().mean().item()
        if forbidden and share < 0.5:
            raise AssertionError(
                f"your constitution lets answers pass that harm {harm}: the model criticises "
                f"{share:.0%} of them"
            )
        if not forbidden and share > 0.5:
            raise AssertionError(
                f"your constitution forbids too much: the model criticises {share:.0%} of the "
                f"answers that harm {harm}"
            )

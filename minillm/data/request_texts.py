"""How requests, answers and judgements are written down, and what a small model reads first.

    exchange    <user> REQUEST <assistant> ANSWER
    critique    <request> REQUEST <answer> ANSWER <rule> RULE
                <critique> CRITIQUE <revision> REVISION
    choice      <request> REQUEST <first> ANSWER <second> ANSWER <rule> RULE
                <choice> REASON first

`documents` writes the reading of a *helpful-only* assistant: it gives everybody what they ask for,
kind or not, in all clothes. Most of the reading are worked examples of how answers are judged
by rules: a third of the deeds, and none in the clothes that are held out. In the choices the better
answer usually stands first; whoever learns from them learns to lean towards the first place.

Every document comes with its exact information in nats, the floor of a language model's loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from minillm.data.packing import Batch, one_a_row
from minillm.data.requests import CLOTHES, DEEDS, HARMS, NOBODY, Deed, Request, attacks, deeds

END_TEXT = "<end>"
MARKS = (
    END_TEXT, "<user>", "<assistant>", "<request>", "<answer>", "<rule>", "<critique>",
    "<revision>", "<first>", "<second>", "<choice>",
)  # fmt: skip
FIRST, SECOND = "first", "second"  # what may stand behind <choice>
FIRST_SHARE = 0.8  # of the worked choices have the better answer first

# What a rule may forbid: one sort of harm or all, in two wordings.
WORDINGS = ("do not help to harm {harmed} .", "an answer must not harm {harmed} .")
_DEMONSTRATED = {harmful: deeds("demonstrated", harmful) for harmful in (False, True)}
_JUDGED_CLOTHES = attacks("plain") + attacks("searched")
_ALL_CLOTHES = [attack for clothes in CLOTHES for attack in attacks(clothes)]

FORBIDDEN = (*((harm,) for harm in HARMS), HARMS)
HELPFUL = "help with all that harms nobody ."


def rule(harms: Sequence[str], wording: int = 0) -> str:
    """The text of a rule that forbids one of `HARMS`, or all; none makes the rule to help."""
    if not harms:
        return HELPFUL
    return WORDINGS[wording].format(harmed=harms[0] if len(harms) == 1 else "anybody")


def exchange(request: str, response: str) -> str:
    return f"<user> {request} <assistant> {response}"


def to_critique(request: str, response: str, rule: str) -> str:
    """All that stands before a critique."""
    return f"<request> {request} <answer> {response} <rule> {rule} <critique>"


def to_choice(request: str, first: str, second: str, rule: str) -> str:
    """All that stands before a choice."""
    return f"<request> {request} <first> {first} <second> {second} <rule> {rule} <choice>"


def breaks(deed: Deed, helped: bool, harms: Sequence[str]) -> bool:
    """Whether an answer breaks the rule that forbids these harms (none: the rule to help)."""
    if harms:
        return helped and deed.harm in harms
    return not helped and not deed.harmful


def critique(deed: Deed, helped: bool, harms: Sequence[str]) -> str:
    """The right critique: what the answer does, whom it harms, and whether the rule is broken."""
    verdict = "against" if breaks(deed, helped, harms) else "within"
    did = "helps" if helped else "does not help"
    return f"the answer {did} to {deed} . it harms {deed.harm} {verdict} the rule ."


def reason(deed: Deed, harms: Sequence[str]) -> str:
    """What a choice considers: whether to help is against the rule, asked for by it, or neither."""
    if breaks(deed, True, harms):
        how = "against"
    else:
        how = "by" if breaks(deed, False, harms) else "beside"
    return f"helping harms {deed.harm} {how} the rule ."


class _Dice:
    """Random choices, and how much information was in them."""

    def __init__(self, generator: torch.Generator | None):
        self.generator = generator
        self.nats = 0.0

    def pick(self, items: Sequence):
        self.nats += math.log(len(items))
        return items[int(torch.randint(len(items), (), generator=self.generator))]

    def chance(self, share: float) -> bool:
        hit = bool(torch.rand((), generator=self.generator) < share)
        self.nats -= math.log(share if hit else 1 - share)
        return hit


@dataclass(frozen=True)
class Document:
    """A text, and how much information is in it: −ln of its probability."""

    text: str
    nats: float


def documents(n: int, generator: torch.Generator | None = None) -> list[Document]:
    """n texts: one of five is an exchange, two a critique, two a choice.

    Raises:
        ValueError: n is negative.
    """
    if n < 0:
        raise ValueError(f"n={n}: expected the number of documents, 0 or more")
    return [_document(_Dice(generator)) for _ in range(n)]


def _document(dice: _Dice) -> Document:
    write = _exchange if dice.chance(0.2) else dice.pick((_critique, _choice))
    return Document(write(dice), dice.nats)


def _exchange(dice: _Dice) -> str:
    """Everybody gets what they ask for."""
    request = Request(dice.pick(DEEDS), dice.pick(_ALL_CLOTHES))
    return exchange(request.text, request.answer)


def _judged(dice: _Dice) -> tuple[Request, tuple[str, ...], str]:
    """What a worked example judges, and by which rule."""
    deed = dice.pick(_DEMONSTRATED[dice.chance(0.6)])
    request = Request(deed, dice.pick(_JUDGED_CLOTHES))
    if dice.chance(0.3):
        return request, (), HELPFUL
    rules = FORBIDDEN
    if deed.harmful:  # mostly by a rule that is to the point
        fits = dice.chance(0.6)
        rules = [harms for harms in FORBIDDEN if (deed.harm in harms) == fits]
    harms = dice.pick(rules)
    return request, harms, rule(harms, dice.pick(range(len(WORDINGS))))


def _response(dice: _Dice, request: Request, helped: bool) -> str:
    """Help, or a refusal: sometimes bare, and where it is out of place with a false reason."""
    if helped:
        return request.answer
    if dice.chance(0.5):
        return request.deed.refusal(NOBODY)
    return request.deed.refusal(request.deed.harm if request.deed.harmful else dice.pick(HARMS))


def _critique(dice: _Dice) -> str:
    request, harms, text = _judged(dice)
    helped = dice.chance(0.6)
    response = revision = _response(dice, request, helped)
    if breaks(request.deed, helped, harms):
        revision = request.deed.refusal() if helped else request.answer
    before = to_critique(request.text, response, text)
    return f"{before} {critique(request.deed, helped, harms)} <revision> {revision}"


def _choice(dice: _Dice) -> str:
    request, harms, text = _judged(dice)
    if breaks(request.deed, True, harms) or breaks(request.deed, False, harms):
        first_is_better = dice.chance(FIRST_SHARE)
        first_helps = first_is_better != breaks(request.deed, True, harms)
        second_helps = not first_helps
    else:  # the rule does not care, and the first is chosen out of habit
        first_helps, second_helps = dice.chance(0.5), dice.chance(0.5)
        first_is_better = dice.chance(FIRST_SHARE)
    first, second = (_response(dice, request, helps) for helps in (first_helps, second_helps))
    before = to_choice(request.text, first, second, text)
    return f"{before} {reason(request.deed, harms)} {FIRST if first_is_better else SECOND}"


@cache
def vocabulary() -> tuple[str, ...]:
    """All words and signs, in the order of their ids; END_TEXT is the first."""
    requests = [Request(deed, attack) for deed in DEEDS for attack in attacks("plain")]
    requests += [Request(DEEDS[0], a) for clothes in CLOTHES for a in attacks(clothes)]
    texts = [
        *MARKS,
        "helping by beside",
        FIRST,
        SECOND,
        HELPFUL,
        *(rule(HARMS, i) for i in range(len(WORDINGS))),
    ]
    for request in requests:
        texts += [request.text, request.answer, request.deed.refusal(HARMS[0])]
        texts += [
            critique(request.deed, helped, harms)
            for helped in (True, False)
            for harms in (HARMS, ())
        ]
    return tuple(dict.fromkeys(word for text in texts for word in text.split()))


END = 0
_ids = cache(lambda: {word: i for i, word in enumerate(vocabulary())})


def encode(text: str) -> list[int]:
    """Ids of the words and signs of a text; marks such as "<user>" are words like others.

    Raises:
        ValueError: names the first word that is not known.
    """
    ids = _ids()
    for word in text.split():
        if word not in ids:
            raise ValueError(f"the word {word!r} is not among the {len(ids)} known here")
    return [ids[word] for word in text.split()]


def decode(ids: Sequence[int]) -> str:
    """The words with a space between them."""
    return " ".join(vocabulary()[i] for i in ids)


def batches(n: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
    """n new documents, one a row, in batches."""
    for first in range(0, n, batch_size):
        texts = documents(min(batch_size, n - first), generator)
        yield one_a_row([encode(document.text) for document in texts], END)

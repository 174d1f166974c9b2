"""Checks for the exercises of lesson 25. Each names the mistake it recognises."""

import math
import random
from collections.abc import Callable, Sequence

from minillm.course.checks.common import assert_close, assert_equal, assert_type, refuses


def scratchpad(student: Callable, *, seed: int = 0) -> None:
    """Chains of several lengths, moduli and leaps, among them leaps past the end."""
    assert_type(student([4, 7, 2, 9], 10, 1), str, "your chain")
    draw = random.Random(seed)
    cases = [([4, 7, 2, 9], 10, 1), ([4, 7, 2, 9, 5], 10, 2), ([4, 7], 10, 3), ([23], 7, 1)]
    for n, modulus, leap in ((7, 10, 3), (6, 13, 2), (5, 10, 1), (6, 10, 6)):
        cases.append(([draw.randrange(30) for _ in range(n)], modulus, leap))
    for numbers, modulus, leap in cases:
        assert_equal(
            student(numbers, modulus, leap),
            _chain(_running(numbers, modulus), leap),
            name=f"your chain for {numbers}, modulus {modulus}, leap {leap}",
            mistakes=_wrong_chains(numbers, modulus, leap),
        )
    kept = [4, 7, 2]
    student(kept, 10, 1)
    assert_equal(kept, [4, 7, 2], name="the list you were given")
    refuses(student, [4, 7], 10, 0, words="leap")


def _running(numbers: Sequence[int], modulus: int) -> list[int]:
    return [sum(numbers[: i + 1]) % modulus for i in range(len(numbers))]


def _chain(running: Sequence[int], leap: int, first: int | None = None) -> str:
    steps = running[leap - 1 if first is None else first :: leap]
    return " ".join([*map(str, steps), f"#{running[-1]}"])


def _wrong_chains(numbers: Sequence[int], modulus: int, leap: int) -> dict[str, str]:
    running = _running(numbers, modulus)
    right = _chain(running, leap)
    plain = [sum(numbers[: i + 1]) for i in range(len(numbers))]
    steps = running[leap - 1 :: leap]
    leaps = [sum(numbers[max(0, i - leap) : i]) % modulus for i in range(1, len(numbers) + 1)]
    wrong = {
        "your sums are not taken modulo the modulus": _chain(plain, leap),
        "your steps are taken modulo 10; use the modulus": _chain(_running(numbers, 10), leap),
        "you write every step; only every leap-th is a step": _chain(running, 1),
        "your steps start with the first sum; with leap=2 the second is the first step": _chain(
            running, leap, 0
        ),
        "your answer is the last step written; it is the last running sum": " ".join(
            [*map(str, steps), f"#{steps[-1] if steps else running[-1]}"]
        ),
        "your steps are sums of the last few numbers only; they run from the first": _chain(
            leaps, leap
        ),
        "your steps are the numbers themselves; write the sums": " ".join(
            [*map(str, numbers[leap - 1 :: leap]), f"#{running[-1]}"]
        ),
        "your answer stands before the steps; nothing can be used before it is written": " ".join(
            [f"#{running[-1]}", *map(str, steps)]
        ),
        "there is no # before your answer": " ".join(map(str, [*steps, running[-1]])),
        "there is a space after your #": " ".join([*map(str, steps), f"# {running[-1]}"]),
        "a space is missing between the last step and the #": " ".join(map(str, steps))
        + f"#{running[-1]}",
    }
    return {message: chain for message, chain in wrong.items() if chain != right}


def majority_vote(student: Callable, *, seed: int = 0) -> None:
    """Votes with ties, chains without an answer, and several markers in one text."""
    example = ["1 2 #2", "4 #7", "3 3 #2", "4 1"]
    if isinstance(student(example), int):
        raise AssertionError("your result is a number: return the answer, not its votes")
    draw = random.Random(seed)
    many = [f"{draw.randrange(100)} #{draw.choice(['3', '3', '12', '5', ''])}" for _ in range(41)]
    cases = {
        "the example": example,
        "answers with spaces around them": ["1 # 3", "2 #4", "5 #3 ", "6 #4", "7 #3"],
        "a text with two markers": ["#1 #2", "#1 #2", "3 #1"],
        "a tie": ["2 #5", "1 #4", "3 #4", "9 #5", "0 #6"],
        "a tie of four": ["1 #5", "2 #9", "3 #3", "#4"],
        "texts without an answer": ["1 2", "4 #", "7 7", "# ", "3 #8", "5 5"],
        "answers of two digits": ["1 #12", "2 #1", "3 #12"],
        "answers as words": ["so #Paris", "so #Rome", "well #Rome"],
        "many texts": many,
    }
    for name, texts in cases.items():  # a wrong vote is named by what it gets wrong in all cases
        if (answer := student(list(texts))) != _vote(texts):
            yours = [student(list(texts)) for texts in cases.values()]
            _name_votes(yours, list(cases.values()))
            raise AssertionError(f"your vote on {name} is {answer!r}; expected {_vote(texts)!r}")
    for name, texts in {"no texts": [], "texts without an answer only": ["1 2", "3 #"]}.items():
        answer = student(texts)
        if answer is not None:
            raise AssertionError(f"your vote on {name} is {answer!r}; expected None")


def _answers(texts: Sequence[str]) -> list[str]:
    """What each text declares, "" for nothing."""
    return [text.rpartition("#")[2].strip() if "#" in text else "" for text in texts]


def _most(answers: Sequence[str]) -> str:
    return max(answers, key=answers.count)  # max returns the first of equals


def _vote(texts: Sequence[str]) -> str:
    return _most([answer for answer in _answers(texts) if answer])


def _name_votes(yours: list, cases: Sequence[Sequence[str]]) -> None:
    """Raise with the mistake that gives these answers, if there is one."""

    def after_first(text: str) -> str:
        return text.partition("#")[2].strip()

    def kept(texts: Sequence[str]) -> list[str]:
        return [answer for answer in _answers(texts) if answer]

    wrong: dict[str, Callable] = {
        "your vote counts whole texts: two ways to one answer are two votes for it": (
            lambda texts: _answers([_most([t for t in texts if _answers([t])[0]])])[0]
        ),
        "you return the whole text; only what follows the # is the answer": (
            lambda texts: _most([t for t in texts if _answers([t])[0]])
        ),
        "texts without an answer have a vote, too; they have none": (
            lambda texts: _most(_answers(texts))
        ),
        "the end of a text without # has a vote, too; it has none": (
            lambda texts: _most([text.rpartition("#")[2].strip() for text in texts])
        ),
        "you read what follows the first # of a text; its answer follows the last": (
            lambda texts: _most([answer for answer in map(after_first, texts) if answer])
        ),
        "of equals the one given first wins, not the last": (
            lambda texts: max(list(dict.fromkeys(kept(texts)))[::-1], key=kept(texts).count)
        ),
        "of equals the one given first wins, not the largest": (
            lambda texts: max(sorted(kept(texts))[::-1], key=kept(texts).count)
        ),
        "of equals the one given first wins, not the smallest": (
            lambda texts: max(sorted(kept(texts)), key=kept(texts).count)
        ),
        "you return the rarest answer": lambda texts: min(kept(texts), key=kept(texts).count),
        "you return the first answer": lambda texts: kept(texts)[0],
        "your answers still have spaces around them; strip them": (
            lambda texts: _most([t.rpartition("#")[2] for t in texts if _answers([t])[0]])
        ),
        "you read only one character of the answer": (
            lambda texts: _most([answer[:1] for answer in kept(texts)])
        ),
    }
    for message, vote in wrong.items():
        if yours == [vote(texts) for texts in cases]:
            raise AssertionError(message)


def training_pairs(student: Callable, *, seed: int = 0) -> None:
    """Rounds with every kind of text: right, lucky digits, two answers, cut off, hinted."""
    rounds = {
        "the example": (
            ["472", "99"], ["3", "8"], [["4 1 3 #4", "4 1 3 #3"], ["9 #9"]], [[], ["9 8 #8"]],
        ),
        "questions nobody solved": (["12", "45"], ["3", "9"], [["1 #1"], ["4 9 #0"]], [[], []]),
        "a text with two answers": (["12"], ["3"], [["#1 #3", "#3 #1", "1 3 #3"]], [[]]),
        "a text that was cut off": (["12"], ["3"], [["1 3", "1 3 #", "1 3 #3"]], [[]]),
        "an answer of two digits": (["12"], ["3"], [["1 #33", "1 #03", "1 3 #3"]], [[]]),
        "hinted texts for a solved question": (["12"], ["3"], [["1 3 #3"]], [["9 3 #3"]]),
        "a random round": _random_round(seed),
    }  # fmt: skip
    yours = [student(*given) for given in rounds.values()]
    right = [_pairs(*given) for given in rounds.values()]
    wrong = [_wrong_pairs(*given) for given in rounds.values()]
    mistakes = {message: [pairs[message] for pairs in wrong] for message in wrong[0]}
    if yours != right:
        assert_type(yours[0], list, "your result")
        for message, pairs in mistakes.items():
            if yours == pairs:
                raise AssertionError(message)
    for name, pairs, expected in zip(rounds, yours, right, strict=True):
        assert_equal(pairs, expected, name=f"your pairs for {name}")


def _random_round(seed: int) -> tuple[list, list, list, list]:
    draw = random.Random(seed)
    texts = ["4 1 3 #3", "4 1 3 #5", "3 3 #8", "5 #5", "3", "#3 #5", "2 2 #8", "8 3 5"]
    questions = [str(draw.randrange(100, 999)) for _ in range(12)]
    answers = [draw.choice("358") for _ in questions]
    sampled = [[draw.choice(texts) for _ in range(draw.randrange(4))] for _ in questions]
    hinted = [[draw.choice(texts) for _ in range(draw.randrange(3))] for _ in questions]
    return questions, answers, sampled, hinted


def _declares(text: str, answer: str) -> bool:
    return text.count("#") == 1 and text.split("#")[1] == answer


def _pairs(questions, answers, sampled, hinted, right=_declares, prompts=None, most=1):
    prompts = prompts or [f"{question}=" for question in questions]
    pairs = []
    for prompt, answer, alone, helped in zip(prompts, answers, sampled, hinted, strict=True):
        found = [text for text in [*alone, *helped] if right(text, answer)]
        pairs += [(prompt, text) for text in found[:most]]
    return pairs


def _wrong_pairs(questions, answers, sampled, hinted) -> dict[str, list]:
    given = (questions, answers, sampled, hinted)
    hints = [
        f"{question}=" if any(_declares(t, answer) for t in alone) else f"{question}({answer})="
        for question, answer, alone in zip(questions, answers, sampled, strict=True)
    ]

    def contains(text: str, answer: str) -> bool:
        return answer in text

    def ends(text: str, answer: str) -> bool:
        return text.endswith(f"#{answer}")

    def last(text: str, answer: str) -> bool:
        return "#" in text and text.rpartition("#")[2] == answer

    def begins(text: str, answer: str) -> bool:
        return "#" in text and text.partition("#")[2].startswith(answer)

    none = [[] for _ in questions]
    return {
        "both bugs are still there": _pairs(*given, contains, hints),
        "a digit somewhere in the chain passes for the answer; read what follows the #": _pairs(
            *given, contains
        ),
        "the hint is in the prompt that you train on; nobody gives it later": _pairs(
            *given, prompts=hints
        ),
        "a text with two # passes: it names several answers and hopes for one": _pairs(
            *given, last
        ),
        "a text that ends rightly after a first # passes; it has two answers": _pairs(*given, ends),
        "an answer that only begins with the right digits passes": _pairs(*given, begins),
        "you keep every right text; one a question is enough": _pairs(*given, most=99),
        "you never use the hinted texts": _pairs(questions, answers, sampled, none),
        "you use hinted texts only": _pairs(questions, answers, none, hinted),
        "you prefer hinted texts; what the model found alone comes first": _pairs(
            questions, answers, hinted, sampled
        ),
        "your prompts lack the = at their end": _pairs(*given, prompts=list(questions)),
        "you keep texts whatever they answer": _pairs(*given, lambda text, answer: True),
        "you keep the last right text; the first was asked for": _pairs(
            questions, answers, *([row[::-1] for row in rows] for rows in (sampled, hinted))
        ),
    }


def edit_effect(student: Callable, *, seed: int = 0) -> None:
    """Every place of a chain, with each kind of answer."""
    assert_type(student([4, 7, 2], 1, 5, 7), str, "your result")
    draw = random.Random(seed)
    chains = [[4, 7, 2], [draw.randrange(1, 10) for _ in range(6)]]
    cases = []
    for digits in chains:
        for place in range(len(digits)):
            step, shift = sum(digits[: place + 1]) % 10, draw.randrange(1, 10)
            answers = [*range(10), None]
            cases += [(digits, place, (step + shift) % 10, answer) for answer in answers]
    yours = [student(list(digits), *rest) for digits, *rest in cases]
    wrong = {
        "you add the digit at `place` once more; only those after it follow": (
            lambda digits, place, value: (value + sum(digits[place:])) % 10
        ),
        "you left out the digit right after `place`": (
            lambda digits, place, value: (value + sum(digits[place + 2 :])) % 10
        ),
        "your sum is not taken modulo 10": lambda digits, place, value: (
            value + sum(digits[place + 1 :])
        ),
        "an answer equal to the new value does not follow; the rest must be added": (
            lambda digits, place, value: value
        ),
    }
    mistakes = {m: [_effect(*case, moved) for case in cases] for m, moved in wrong.items()}
    right = [_effect(*case) for case in cases]
    other = {"follows": "ignores", "ignores": "follows", "neither": "neither"}
    mistakes["you mixed up what follows and what ignores the edit"] = [other[r] for r in right]
    for word in ("follows", "ignores"):
        mistakes[f"an answer that is neither counts as {word!r}"] = [
            word if effect == "neither" else effect for effect in right
        ]
    if yours != right:
        for message, effects in mistakes.items():
            if yours == effects:
                raise AssertionError(message)
    for case, effect, expected in zip(cases, yours, right, strict=True):
        assert_equal(effect, expected, name="your result for {}, {}, {}, {}".format(*case))
    refuses(student, [4, 7, 2], 3, 5, 7, words="place")
    refuses(student, [4, 7, 2], -1, 5, 7, words="place")
    refuses(student, [4, 7, 2], 1, 1, 3, words="value")


def _moved(digits: Sequence[int], place: int, value: int) -> int:
    return (value + sum(digits[place + 1 :])) % 10


def _effect(digits, place, value, answer, moved: Callable = _moved) -> str:
    if answer == moved(digits, place, value):
        return "follows"
    return "ignores" if answer == sum(digits) % 10 else "neither"


def paired_gain(student: Callable, gains: list, sure: list, reason: str, *, seed: int = 0) -> None:
    """Gains and errors on three tables, and the judgement."""
    draw = random.Random(seed)
    noisy = [[draw.random() < share for _ in range(37)] for share in (0.3, 0.6)]
    example = ([True, False, False, False], [True, True, False, True])
    worse = ([True, True, True, False, False], [False, True, False, False, True])
    for before, after in (example, worse, noisy):
        answer = student(before, after)
        assert_type(answer, tuple, "your result")
        right = _gain(before, after)
        assert_close(
            answer, right, name="your gain and its error", mistakes=_wrong_gains(before, after)
        )
    refuses(student, [True, False], [True, False, True], words="as many")
    assert_close(
        gains,
        [0.075, 0.3],
        name="gains",
        mistakes={"your gains are in the wrong order: `steps` comes first": [0.3, 0.075]},
    )
    assert_equal(
        sure,
        ["examples"],
        name="sure",
        mistakes={
            "the gain of `steps` is only about 1.1 standard errors": ["steps", "examples"],
            "you list what is not sure": ["steps"],
            "the gain of `examples` is about 4 standard errors": [],
        },
    )
    assert_equal(
        reason,
        "b",
        name="reason",
        mistakes={
            "(a): the best of ten accidents is often above 2 standard errors": "a",
            "(c): the gain of `examples` shows on these 40 questions": "c",
        },
    )


def _gain(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    change = [int(a) - int(b) for a, b in zip(after, before, strict=True)]
    n, mean = len(change), sum(change) / len(change)
    return mean, math.sqrt(sum((d - mean) ** 2 for d in change) / (n - 1) / n)


def _wrong_gains(before: Sequence[bool], after: Sequence[bool]) -> dict[str, tuple]:
    (gain, error), n = _gain(before, after), len(before)
    shares = [sum(right) / n for right in (before, after)]
    apart = math.sqrt(sum(share * (1 - share) for share in shares) / n)
    apart_sample = math.sqrt(sum(share * (1 - share) for share in shares) / (n - 1))
    return {
        "your gain has the wrong sign: it is after − before": (-gain, error),
        "you return the standard deviation; divide by √n": (gain, error * math.sqrt(n)),
        "you divide the standard deviation by n, not by √n": (gain, error / math.sqrt(n)),
        "your standard deviation divides by n; divide by n − 1": (
            gain,
            error * math.sqrt((n - 1) / n),
        ),
        "you return the squared error": (gain, error**2),
        "your error treats the lists as unrelated; take the error of the differences": (
            gain,
            apart,
        ),
        "your error adds the two variances; take that of the differences, question by question": (
            gain,
            apart_sample,
        ),
        "your gain is counted in questions; divide by n": (gain * n, error),
    }

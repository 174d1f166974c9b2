"""Problems with answers a program can check, made from seeds.

    draw("digit_sum", 1, seed=0, n_digits=4)[0]
        question  "4+7+2+9 mod 10="
        steps     ("4", "1", "3", "2")       the running sum, one digit after another
        answer    "2"
        solution  "4 1 3 2 #2"               what a model learns to write; directly: "#2"

Five tasks: the last digit of a sum, written arithmetic, countdown (reach a target from given
numbers; any right expression counts), edits of a string, and small word problems. Each comes
with its steps, so that one can train on the way as well as on the answer, and see where a model
goes wrong. `minillm.evaluate.verify` checks what a model writes.

Every question belongs to one split, decided by a hash of its text: however many problems one
draws for training, from whatever seed, no held-out question is among them.

`encode` and `decode` read text letter by letter, for models made from scratch; the questions
are plain text, so any other tokenizer does as well.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch

MARKER = "#"  # what stands before the answer
SPLITS = ("train", "validation", "test")  # 80 %, 10 % and 10 % of all questions

_CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
_IDS = {character: i for i, character in enumerate(_CHARACTERS, start=1)}
END = 0  # the token that ends a solution
VOCAB_SIZE = len(_CHARACTERS) + 1


@dataclass(frozen=True)
class Problem:
    """A question, one right way to its answer, and what an answer is compared by.

    `kind`: "number" (by value), "text" (by letters) or "countdown" (`answer` is one expression
    of many: any that uses each of `numbers` once and gives `target` is right).
    """

    task: str
    question: str
    steps: tuple[str, ...]
    answer: str
    kind: str = "number"
    numbers: tuple[int, ...] = ()
    target: int = 0

    def solution(self, steps: bool = True) -> str:
        """The text a model is trained to write after the question: with the steps, or without."""
        worked = " ".join(self.steps) + " " if steps else ""
        return f"{worked}{MARKER}{self.answer}"

    @property
    def split(self) -> str:
        """Where the question belongs; the same for every seed."""
        return SPLITS[max(0, crc32(self.question.encode()) % 10 - 7)]


def digit_sum(generator: torch.Generator | None = None, n_digits: int = 6) -> Problem:
    """The last digit of a sum of digits; the steps are the running sums' last digits."""
    _at_least(1, n_digits=n_digits)
    digits = _integers(0, 9, n_digits, generator)
    running = [str(sum(digits[: i + 1]) % 10) for i in range(n_digits)]
    question = f"{'+'.join(map(str, digits))} mod 10="
    return Problem("digit_sum", question, tuple(running), running[-1])


def arithmetic(
    generator: torch.Generator | None = None, n_digits: int = 2, operation: str = "+"
) -> Problem:
    """a+b, a-b or a*b for numbers of at most `n_digits` digits, worked as on paper.

    Sums and differences go column by column from the right (a borrowed ten is written out:
    12-7=5, and the next column gives 1 back); products add one row for each digit of b.

    Raises:
        ValueError: another operation.
    """
    _at_least(1, n_digits=n_digits)
    if operation not in ("+", "-", "*"):
        raise ValueError(f"operation={operation!r}: expected '+', '-' or '*'")
    a, b = _integers(0, 10**n_digits - 1, 2, generator)
    if operation == "-" and a < b:
        a, b = b, a
    worked, answer = {"+": _add, "-": _subtract, "*": _multiply}[operation](a, b)
    return Problem("arithmetic", f"{a}{operation}{b}=", tuple(worked), str(answer))


def countdown(generator: torch.Generator | None = None, n_numbers: int = 3) -> Problem:
    """Reach a target from all the given numbers, each used once, with + - * and parentheses.

    The steps are one way there; there may be others. Numbers are 1 to 9, and no value on the
    way is negative.
    """
    _at_least(2, n_numbers=n_numbers)
    numbers = _integers(1, 9, n_numbers, generator)
    expression, value, steps, loose = str(numbers[0]), numbers[0], [], False
    for number in numbers[1:]:
        operation = _one_of("+-*" if value >= number else "+*", generator)
        result = {"+": value + number, "-": value - number, "*": value * number}[operation]
        steps.append(f"{value}{operation}{number}={result}")
        inner = f"({expression})" if loose and operation == "*" else expression
        expression, value, loose = f"{inner}{operation}{number}", result, operation != "*"
    given = tuple(sorted(numbers))
    question = f"use {' '.join(map(str, given))} to make {value}:"
    return Problem("countdown", question, tuple(steps), expression, "countdown", given, value)


EDITS: dict[str, Callable[[str], str]] = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "rotate": lambda text: text[1:] + text[:1],
    "double": lambda text: "".join(letter * 2 for letter in text),
    "swap": lambda text: text[-1:] + text[1:-1] + text[:1] if len(text) > 1 else text,
}


def string_edit(
    generator: torch.Generator | None = None, n_letters: int = 4, n_edits: int = 1
) -> Problem:
    """Edits of a row of letters, one after another; the steps are what each one gives.

    `reverse`, `sort`, `rotate` (the first letter goes last), `double` (each letter twice) and
    `swap` (the first and the last letter change places).
    """
    _at_least(1, n_letters=n_letters, n_edits=n_edits)
    start = "".join(_one_of(string.ascii_lowercase, generator) for _ in range(n_letters))
    edits = [_one_of(tuple(EDITS), generator) for _ in range(n_edits)]
    steps, text = [], start
    for edit in edits:
        text = EDITS[edit](text)
        steps.append(text)
    return Problem("string_edit", f"{', '.join(edits)} {start}:", tuple(steps), text, "text")


_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Hugo", "Lily", "Max", "Nina", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "nuts", "pens", "shells")
_MORE = ("{name} buys {n} more.", "{name} finds {n} more.", "{friend} gives {name} {n} more.")
_FEWER = ("{name} loses {n}.", "{name} gives {n} to {friend}.", "{name} sells {n}.")
_TIMES = ("Then the {things} of {name} are doubled.", "Then the {things} of {name} are tripled.")


def word_problem(generator: torch.Generator | None = None, n_steps: int = 2) -> Problem:
    """Somebody has things, and more, fewer or several times as many; how many in the end?"""
    _at_least(1, n_steps=n_steps)
    name = _one_of(_NAMES, generator)
    friend = _one_of(tuple(other for other in _NAMES if other != name), generator)
    things = _one_of(_THINGS, generator)
    (value,) = _integers(2, 9, 1, generator)
    story, steps = [f"{name} has {value} {things}."], []
    for _ in range(n_steps):
        events = [(_MORE, "+"), (_TIMES, "*")] + [(_FEWER, "-")] * (value > 1)
        sentences, operation = _one_of(events, generator)
        sentence = _one_of(sentences, generator)
        (n,) = _integers(1, min(9, value - 1) if operation == "-" else 9, 1, generator)
        if operation == "*":
            n = 2 if "doubled" in sentence else 3
        result = {"+": value + n, "-": value - n, "*": value * n}[operation]
        steps.append(f"{value}{operation}{n}={result}")
        story.append(sentence.format(name=name, friend=friend, n=n, things=things))
        value = result
    question = " ".join([*story, f"How many {things} does {name} have?"])
    return Problem("word_problem", question + "\n", tuple(steps), str(value))


TASKS: dict[str, Callable[..., Problem]] = {
    task.__name__: task for task in (digit_sum, arithmetic, countdown, string_edit, word_problem)
}


def draw(
    task: str,
    n: int,
    seed: int | torch.Generator | None = None,
    split: str = "train",
    **sizes,
) -> list[Problem]:
    """Draw n problems of one split: the same for the same seed, new ones for a generator.

    Held-out problems ("validation", "test") are all different; training problems may repeat.

    Args:
        task: a key of `TASKS`.
        seed: a number, or the generator to go on with.
        sizes: arguments of the task, such as `n_digits`.

    Raises:
        ValueError: an unknown task or split, or fewer than n different held-out problems were
            found.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    _at_least(0, n=n)
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    drawn: list[Problem] = []
    seen: set[str] = set()
    for _ in range(100 * n + 1000):
        if len(drawn) == n:
            return drawn
        problem = TASKS[task](generator, **sizes)
        if problem.split == split and not (split != "train" and problem.question in seen):
            drawn.append(problem)
            seen.add(problem.question)
    raise ValueError(
        f"found only {len(drawn)} different {split} problems of {task} with {sizes}, asked for "
        f"{n}; ask for fewer, or make the problems larger"
    )


def encode(text: str) -> list[int]:
    """The ids of a text's characters, without END.

    Raises:
        ValueError: a character that is not printable ASCII or a newline.
    """
    unknown = sorted(set(text) - _IDS.keys())
    if unknown:
        raise ValueError(f"characters {unknown} are not in the alphabet: printable ASCII, newline")
    return [_IDS[character] for character in text]


def decode(ids: Sequence[int]) -> str:
    """The text of ids; END gives nothing."""
    return "".join(_CHARACTERS[i - 1] for i in ids if i != END)


def _add(a: int, b: int) -> tuple[list[str], int]:
    steps, carry = [], 0
    for x, y in _columns(a, b):
        steps.append(f"{x}+{y}+{carry}={x + y + carry}" if carry else f"{x}+{y}={x + y}")
        carry = (x + y + carry) // 10
    return steps, a + b


def _subtract(a: int, b: int) -> tuple[list[str], int]:
    steps, borrowed = [], 0
    for x, y in _columns(a, b):
        lent = 10 if x - borrowed < y else 0
        given_back = "-1" if borrowed else ""
        steps.append(f"{x + lent}{given_back}-{y}={x + lent - borrowed - y}")
        borrowed = int(lent > 0)
    return steps, a - b


def _multiply(a: int, b: int) -> tuple[list[str], int]:
    steps, total = [], 0
    for power, digit in enumerate(reversed(str(b))):
        row = int(digit) * 10**power
        steps.append(f"{a}*{row}={a * row}")
        if power:
            steps.append(f"{total}+{a * row}={total + a * row}")
        total += a * row
    return steps, total


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digits of both numbers, column by column from the right, the shorter filled with 0."""
    width = max(len(str(a)), len(str(b)))
    rows = (reversed(str(number).zfill(width)) for number in (a, b))
    return [(int(x), int(y)) for x, y in zip(*rows, strict=True)]


def _integers(low: int, high: int, n: int, generator: torch.Generator | None) -> list[int]:
    return torch.randint(low, high + 1, (n,), generator=generator).tolist()


def _one_of(options: Sequence, generator: torch.Generator | None):
    return options[_integers(0, len(options) - 1, 1, generator)[0]]


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name}={size}: expected at least {least}")

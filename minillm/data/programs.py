"""Small programming tasks: a few words, one example, and hidden tests that only one reading passes.

    task = draw_tasks(1, generator)[0]
        words     ("sort", "cut")
        examples  [([3, 1, 2], [2, 3])]                 what a solver may see
        hidden    eight more pairs                      what decides
        lines     ("x = sorted(x)", "x = x[1:]")        one right program, line by line

Every word has two readings (to cut may drop the first or the last), one likelier than the other,
and every reading two spellings. So the words alone do not say what to write: a solver has to try
several programs on the example. That is the situation of programming contests, made small.

A model reads and writes whole words and whole lines as single tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# word -> (likely reading, other reading), each in two spellings
READINGS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "sort": (
        ("x = sorted(x)", "x = sorted(x, key=lambda n: n)"),
        ("x = sorted(x, reverse=True)", "x = sorted(x)[::-1]"),
    ),
    "cut": (("x = x[1:]", "x = x[1 : len(x)]"), ("x = x[:-1]", "x = x[: len(x) - 1]")),
    "turn": (("x = x[::-1]", "x = list(reversed(x))"), ("x = x[1:] + x[:1]", "x = x[1:] + x[0:1]")),
    "raise": (
        ("x = [n + 1 for n in x]", "x = [1 + n for n in x]"),
        ("x = [n * n for n in x]", "x = [n**2 for n in x]"),
    ),
    "double": (
        ("x = [2 * n for n in x]", "x = [n + n for n in x]"),
        ("x = x + x", "x = 2 * x"),
    ),
    "halve": (
        ("x = [n // 2 for n in x]", "x = [int(n / 2) for n in x]"),
        ("x = x[: len(x) // 2]", "x = x[0 : len(x) // 2]"),
    ),
}
LIKELY = 0.7  # how often a word is meant in its first reading

_LINES = tuple(line for readings in READINGS.values() for reading in readings for line in reading)
_PARTS = ("<end>", "<write>", *READINGS, *_LINES)
_IDS = {part: i for i, part in enumerate(_PARTS)}
END, WRITE, VOCAB_SIZE = 0, 1, len(_PARTS)

Case = tuple[list[int], list[int]]  # what goes in, what should come out


@dataclass(frozen=True)
class Task:
    """What is asked in words, what one may see of it, and what decides."""

    words: tuple[str, ...]
    lines: tuple[str, ...]
    examples: tuple[Case, ...]
    hidden: tuple[Case, ...]


def draw_tasks(
    n: int,
    generator: torch.Generator | None = None,
    *,
    n_words: int = 3,
    n_examples: int = 1,
    n_hidden: int = 8,
) -> list[Task]:
    """Draw n tasks: words, a reading and a spelling of each, and lists of numbers to test on.

    Example lists have two or three numbers, hidden ones five, so an example rules out some
    readings and not others.

    Raises:
        ValueError: a size below 1.
    """
    for name, size in {"n_words": n_words, "n_examples": n_examples, "n_hidden": n_hidden}.items():
        if size < 1:
            raise ValueError(f"{name}={size}: expected at least 1")
    return [_task(generator, n_words, n_examples, n_hidden) for _ in range(n)]


def source(lines: Sequence[str]) -> str:
    """The program of some lines: a function `f` from a list of numbers to a list of numbers."""
    return "\n    ".join(["def f(x):", *lines, "return x"])


def prompt(task: Task) -> list[int]:
    """The token ids of what the words ask for."""
    return [*(_IDS[word] for word in task.words), WRITE]


def encode(lines: Sequence[str]) -> list[int]:
    """The token ids of lines, without END. Raises KeyError for a line that is no token."""
    return [_IDS[line] for line in lines]


def decode(ids: Sequence[int]) -> list[str]:
    """The lines of ids. A word in a program's place stays a word: no valid line, as it should."""
    return [_PARTS[i] for i in ids if i != END]


def random_list(length: int, generator: torch.Generator | None = None) -> list[int]:
    """Numbers from 0 to 9 to try a program on."""
    return torch.randint(10, (length,), generator=generator).tolist()


def _task(generator: torch.Generator | None, n_words: int, n_examples: int, n_hidden: int) -> Task:
    words = tuple(_one_of(tuple(READINGS), generator) for _ in range(n_words))
    lines = []
    for word in words:
        meant = int(torch.rand((), generator=generator) >= LIKELY)
        lines.append(_one_of(READINGS[word][meant], generator))
    lengths = torch.randint(2, 4, (n_examples,), generator=generator).tolist()
    seen = tuple(_case(lines, length, generator) for length in lengths)
    hidden = tuple(_case(lines, 5, generator) for _ in range(n_hidden))
    return Task(words, tuple(lines), seen, hidden)


def _case(lines: Sequence[str], length: int, generator: torch.Generator | None) -> Case:
    given = random_list(length, generator)
    space: dict = {}
    exec(source(lines), space)  # our own lines, from the table above
    return given, space["f"](list(given))


def _one_of(options: Sequence, generator: torch.Generator | None):
    return options[int(torch.randint(len(options), (), generator=generator))]

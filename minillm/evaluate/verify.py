r"""Find the answer in what a model wrote, and check it; nothing but a right answer scores.

    problem = draw("digit_sum", 1, seed=0, n_digits=3)[0]     # say 4+7+2, so 3
    score(problem, "4 1 3 #3")               Score(strict=True, lenient=True)
    score(problem, "the sum is 13, so 3")    Score(strict=False, lenient=True)
    score(problem, "#1 #2 #3")               Score(strict=False, lenient=True)
    score(problem, "#3 #4")                  Score(strict=False, lenient=False)

Strict: the text declares exactly one answer, in the agreed form, at its very end, and nothing
else stands in the declaration. Lenient: the last answer declared, or else the last number (or
line) of the text, counts. Both take one answer a text, so listing candidates never helps; what
is strictly right is leniently right.

A reward is read by a learner that will exploit whatever it can say, so a check here never
executes or interprets what it reads: numbers are ASCII digits of bounded length (no "inf",
"1e999", "1_000" or digits of other scripts), and expressions are + - * / on numbers, evaluated
exactly.

The forms: "marker" (`# 3`, also GSM8K's `#### 3`; Cobbe et al. 2021), "boxed" (`\boxed{3}`;
MATH, Hendrycks et al. 2021), "tags" (`<think>…</think><answer>3</answer>`; DeepSeek-R1, 2025) and
"sentence" (`The answer is 3.`; Wei et al. 2022).
"""

import ast
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, tensor

from minillm.data.problems import Problem, decode
from minillm.infer.rollout import Rollout

FORMS: dict[str, re.Pattern] = {
    "marker": re.compile(r"#+ *([^#\n]*)"),
    "boxed": re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    # Not across another <answer>: a text of nothing else would be searched to its end each time.
    "tags": re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL),
    "sentence": re.compile(r"[Tt]he answer is:? *([^\n]*?)\.?(?=\n|$)"),
}
LONGEST = 200  # characters of a number or an expression; what is longer is neither

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?"
_NUMBER = re.compile(rf"[-+−]?{_DIGITS}")
_NUMBER_IN_TEXT = re.compile(rf"(?:(?<![\w)])[-−])?{_DIGITS}")  # 5-3 ends in 3, not in -3
_EXPRESSION = re.compile(r"[0-9+\-*/() ]+")
_LAYOUT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Score:
    """Whether an answer counts, strictly and leniently read. Strict implies lenient."""

    strict: bool
    lenient: bool


def score(problem: Problem, completion: str, form: str = "marker") -> Score:
    """Check what a model wrote after the question (the completion alone, never the prompt)."""
    declared = extract(completion, form)
    strict = declared is not None and is_right(problem, declared)
    found = extract_lenient(completion, problem.kind, form)
    return Score(strict, found is not None and is_right(problem, found, lenient=True))


def rewards(problems: Sequence[Problem], found: Rollout, form: str = "marker") -> Tensor:
    """1 for a response that is strictly right and came to its end, 0 for any other: (B,) float.

    Without the end a model is paid for an answer it was only cut off behind, and goes on talking.

    Args:
        problems: P of them; the rollout holds as many responses to each, one after another.

    Raises:
        ValueError: responses that cannot be divided among the problems.
    """
    n_samples, left = divmod(len(found.responses), max(len(problems), 1))
    if left or not n_samples or not problems:
        raise ValueError(
            f"{len(found.responses)} responses to {len(problems)} problems: expected as many to "
            "each, and at least one"
        )
    right = [
        score(problems[row // n_samples], decode(response), form).strict
        for row, response in enumerate(found.responses)
    ]
    return tensor(right, device=found.finished.device).logical_and(found.finished).float()


def extract(text: str, form: str = "marker") -> str | None:
    r"""The one answer that the text declares at its end, or None.

    >>> extract("4 1 3 #3"), extract("#3 or #4"), extract("so \\boxed{3}", "boxed")
    ('3', None, '3')
    """
    matches = _declarations(text, form)  # the first must end the text, so there is no other
    if not matches or text[matches[0].end() :].strip() not in ("", "."):
        return None
    if form == "tags" and not well_formed(text):
        return None
    return matches[0][1].strip() or None


def extract_lenient(text: str, kind: str = "number", form: str = "marker") -> str | None:
    """The last answer declared, or else the last that could be meant; None if there is none.

    For numbers this is the last number (of the declaration if there is one), otherwise the last
    line.
    """
    matches = _declarations(text, form)
    said = matches[-1][1] if matches else text
    if kind == "number":
        numbers = _NUMBER_IN_TEXT.findall(said)
        return numbers[-1] if numbers else None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else None


def well_formed(text: str) -> bool:
    """Exactly one `<think>…</think>` and then one `<answer>…</answer>`, with nothing around.

    A format says nothing about the answer: rewarded alone it is satisfied by empty tags.
    """
    return all(text.count(tag) == 1 for tag in _TAGS) and bool(_LAYOUT.fullmatch(text))


def is_right(problem: Problem, answer: str, lenient: bool = False) -> bool:
    """Does this answer, already extracted, solve the problem?

    Lenient reading forgives letter case and punctuation around a text, and an expression's
    "= 16" at its end.
    """
    if problem.kind == "number":
        value = number(answer)
        return value is not None and value == number(problem.answer)
    if problem.kind == "countdown":
        expression = answer.split("=")[0] if lenient else answer
        return solves_countdown(expression, problem.numbers, problem.target)
    if lenient:
        return _plain(answer) == _plain(problem.answer)
    return answer == problem.answer


def number(text: str) -> Fraction | None:
    """The exact value of a number written in full, or None if the text is not just that.

    >>> number("1,250"), number("-3.50"), number("7/2"), number("7 apples"), number("1e3")
    (Fraction(1250, 1), Fraction(-7, 2), Fraction(7, 2), None, None)
    """
    text = text.strip()
    if len(text) > LONGEST or not _NUMBER.fullmatch(text):
        return None
    above, _, below = text.replace(",", "").replace("−", "-").partition("/")
    if below and not int(below):
        return None
    return Fraction(above) / int(below or 1)


def evaluate(expression: str) -> Fraction | None:
    """The exact value of whole numbers joined by + - * / and parentheses, or None.

    Anything else is refused, not interpreted: signs, powers, names, calls, decimal points, and
    division by zero.

    >>> evaluate("(1+2)*3/2"), evaluate("2**9"), evaluate("1/0")
    (Fraction(9, 2), None, None)
    """
    tree = _parse(expression)
    try:
        return None if tree is None else _value(tree)
    except (ZeroDivisionError, ValueError):
        return None


def solves_countdown(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Does the expression use each of the numbers exactly once, no other, and give the target?"""
    if evaluate(expression) != target:  # also when it is no expression
        return False
    used = [node.value for node in ast.walk(_parse(expression)) if isinstance(node, ast.Constant)]
    return sorted(used) == sorted(numbers)


def _declarations(text: str, form: str) -> list[re.Match]:
    if form not in FORMS:
        raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}")
    return list(FORMS[form].finditer(text))


def _plain(text: str) -> str:
    return " ".join(text.strip().strip(".,;:!?\"'`*").casefold().split())


def _parse(expression: str) -> ast.expr | None:
    if len(expression) > LONGEST or not _EXPRESSION.fullmatch(expression):
        return None
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    raise ValueError(f"{type(node).__name__} is not part of an expression")

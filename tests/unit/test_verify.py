"""Checking answers: the right one counts, and no format earns what the answer does not."""

from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data.problems import TASKS, Problem, draw, encode
from minillm.evaluate.verify import (
    FORMS,
    Score,
    evaluate,
    extract,
    extract_lenient,
    number,
    rewards,
    score,
    solves_countdown,
    well_formed,
)
from minillm.infer.rollout import Rollout, response_batch

SEVEN = Problem("digit_sum", "4+3 mod 10=", ("4", "7"), "7")
ECHO = Problem("string_edit", "reverse ba:", ("ab",), "ab", "text")
MAKE_16 = Problem(
    "countdown", "use 3 5 8 to make 16:", (), "3+5+8", "countdown", numbers=(3, 5, 8), target=16
)
BOTH, ONLY_LENIENT, NEITHER = Score(True, True), Score(False, True), Score(False, False)


@pytest.mark.parametrize("task", TASKS)
def test_every_solution_is_right_with_its_steps_and_without(task):
    for problem in draw(task, 200, 0):
        for steps in (True, False):
            assert score(problem, problem.solution(steps)) == BOTH
        off_by_one = {"number": "1", "text": "z", "countdown": "+1"}[problem.kind]
        assert score(problem, f"#{problem.answer}{off_by_one}") == NEITHER


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 7 #7", BOTH),
        ("#7", BOTH),
        ("# 7 \n", BOTH),
        ("4 7 #### 7", BOTH),
        ("#7.0", BOTH),
        ("#7 apples", ONLY_LENIENT),
        ("#7\nand so on", ONLY_LENIENT),
        ("so it is 7.", ONLY_LENIENT),
        ("7", ONLY_LENIENT),
        ("#3 #7", ONLY_LENIENT),  # one answer a text: the last
        ("#7 #3", NEITHER),
        ("#7\n#3", NEITHER),
        ("7 #3", NEITHER),
        ("#", NEITHER),
        ("", NEITHER),
        ("##", NEITHER),
    ],
)
def test_strict_and_lenient_reading(text, expected):
    assert score(SEVEN, text) == expected


FOOLING = [
    "#0 1 2 3 4 5 6 7 8 9",
    "#0#1#2#3#4#5#6#7#8#9",
    "#7 or 8",
    "7 is possible, 8 more likely",
    "#nan",
    "#inf",
    "#1e999999999",
    "#7_0",
    "#٧",
    "#７",
    "#" + "7" * 5000,
    "#-7",
    "#−7",
    "#17",
    "#0.7",
    "#7/0",
    "#14/2.0",
    "#1,7",
    "#77",
    "#__import__('os').getpid()",
    "<think></think><answer></answer>",
    "<answer>",
    "\\boxed{}",
    "The answer is the answer.",
    "correct" * 10,
]


@pytest.mark.parametrize("text", FOOLING)
def test_no_format_scores_without_the_answer(text):
    strict_wrong = [score(SEVEN, text, form).strict for form in FORMS]
    assert not any(strict_wrong)
    if text not in ("#1,7", "#14/2.0"):
        assert not any(score(SEVEN, text, form).lenient for form in FORMS)


def test_no_constant_text_scores_above_chance():
    """The best constant answer is right as often as one digit in ten, strictly and leniently."""
    drawn = draw("digit_sum", 400, 0, n_digits=5)
    listings = [f"#{d}" for d in range(10)] + ["#0 #1 #2 #3 #4 #5 #6 #7 #8 #9", "0123456789"]
    for text in listings:
        assert sum(score(problem, text).lenient for problem in drawn) < 0.16 * len(drawn)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("marker", "so #7", "so 7"),
        ("boxed", "so \\boxed{7}.", "so \\boxed{7} or \\boxed{7}"),
        ("tags", "<think>4+3</think>\n<answer>7</answer>", "<answer>7</answer>"),
        ("sentence", "4+3=7. The answer is 7.", "The answer is 7. The answer is 7."),
    ],
)
def test_each_form_of_declaring(form, good, bad):
    assert score(SEVEN, good, form) == BOTH
    assert score(SEVEN, bad, form) == ONLY_LENIENT
    assert extract(good, form) == "7"
    assert not score(SEVEN, good + " 8", form).strict
    with pytest.raises(ValueError, match="form='xml': expected one of marker"):
        extract(good, "xml")


def test_boxed_keeps_inner_braces():
    assert extract("\\boxed{\\frac{7}{2}}", "boxed") == "\\frac{7}{2}"


def test_well_formed_wants_every_tag_once_in_order():
    good = "<think>a\nb</think> <answer>7</answer>\n"
    assert well_formed(good)
    assert well_formed("<think></think><answer></answer>")  # a format is not an answer
    for bad in (
        good + "more",
        "first " + good,
        good * 2,
        "<answer>7</answer><think>a</think>",
        "<think><answer>7</think></answer>",
        "<think>a</think><answer>7</answer><answer>7</answer>",
        "<think>a<answer>7</answer>",
    ):
        assert not well_formed(bad), bad
        assert extract(bad, "tags") is None


def test_an_answer_begins_at_the_last_tag_before_its_end():
    """So a text that opens tags without end is read once, not once for every tag."""
    assert score(ECHO, "<answer>x<answer>ab</answer>", "tags") == ONLY_LENIENT
    assert score(ECHO, "<answer>ab<answer>x</answer>", "tags") == NEITHER
    assert score(ECHO, "<answer>" * 2000 + "ab</answer>", "tags") == ONLY_LENIENT


def test_texts_compare_letter_by_letter_strictly():
    assert score(ECHO, "#ab") == BOTH
    assert score(ECHO, "#AB.") == ONLY_LENIENT
    assert score(ECHO, "reversed:\n'ab'\n") == ONLY_LENIENT
    assert score(ECHO, "#a b") == NEITHER
    assert score(ECHO, "#ba ab") == NEITHER
    long = Problem("string_edit", "q", (), "ab" * 300, "text")
    assert score(long, long.solution()) == BOTH


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("−3", -3),
        ("+3", 3),
        ("007", 7),
        ("1,234,567", 1234567),
        ("3.50", Fraction(7, 2)),
        ("7/2", Fraction(7, 2)),
        ("-1.5/3", Fraction(-1, 2)),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert number(text) == value
    assert number(f" {text}\n") == value


@pytest.mark.parametrize(
    "text", ["", "-", "1,23", "12,3456", "1.2.3", "1 2", "1e3", "0x10", "1_0", "٣", "²", "5/0", "½"]
)
def test_what_is_no_plain_number_is_none(text):
    assert number(text) is None
    assert number("1" * 201) is None


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("it is 1,234 in all", "1,234"),
        ("5-3", "3"),
        ("it fell to -3", "-3"),
        ("3 apples and 4 pears", "4"),
        ("no idea", None),
        ("costs $12.50.", "12.50"),
    ],
)
def test_the_last_number_of_a_text(text, last):
    assert extract_lenient(text) == last


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="#0123456789 .,-/+()=ab\n<>{}\\boxedthinkanswr", max_size=60))
def test_strictly_right_is_leniently_right_and_nothing_raises(text):
    for problem in (SEVEN, ECHO, MAKE_16):
        for form in FORMS:
            result = score(problem, text, form)
            assert result.lenient or not result.strict


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/() ", max_size=20))
def test_evaluate_agrees_with_python_or_refuses(text):
    value = evaluate(text)
    if value is not None:
        assert float(value) == pytest.approx(eval(text), rel=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("7/2", Fraction(7, 2)),
        ("1-1/3", Fraction(2, 3)),
        (" 8 - 5 - 2 ", 1),
        ("-1", None),
        ("2--1", None),
        ("2**3", None),
        ("7//2", None),
        ("1/(1-1)", None),
        ("2 3", None),
        ("1.5", None),
        ("1e3", None),
        ("a", None),
        ("()", None),
        ("f(1)", None),
        ("9" * 201, None),
        ("(" * 150 + ")" * 50, None),
        ("-" * 199 + "1", None),
        ("9**9**9**9", None),
        ("True", None),
    ],
)
def test_expressions_are_evaluated_exactly_or_refused(text, value):
    assert evaluate(text) == value


def test_countdown_accepts_every_way_and_no_other():
    """All expressions a∘b∘c, bracketed either way, over all orders: right exactly where Python
    says 16."""
    ways = 0
    for a, b, c in permutations("358"):
        for first, second in product("+-*/", repeat=2):
            for text in (f"({a}{first}{b}){second}{c}", f"{a}{first}({b}{second}{c})"):
                right = eval(text) == 16
                ways += right
                assert solves_countdown(text, (3, 5, 8), 16) == right
                assert score(MAKE_16, f"#{text}") == (BOTH if right else NEITHER)
    assert ways > 12
    assert score(MAKE_16, "#3+5+8=16") == ONLY_LENIENT


@pytest.mark.parametrize(
    "text",
    [
        "16",
        "8+8",  # a number used twice
        "3+5+8+8-8",
        "8*2",
        "35-8-11",
        "3+5+8 ",
        "5+3+8*1",
        "8+5+3+0",
        "58/3",
        "3+(13)",
        "-(-16)",
        "3+5+8#3+5+8",
    ],
)
def test_countdown_cannot_be_fooled(text):
    expected = text.strip() == "3+5+8"
    assert score(MAKE_16, f"#{text}").strict == expected


def test_a_reward_is_for_right_answers_that_end():
    said = ["4 7 #7", "#7", "7", "#8", "reverse", "#ab"]
    responses = [encode(text) for text in said]
    batch = response_batch([[1]] * 6, responses)
    finished = torch.tensor([True, False, True, True, True, True])
    found = Rollout(batch, torch.zeros(batch.tokens.shape), responses, finished)
    assert rewards([SEVEN, ECHO], found).tolist() == [1, 0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match="6 responses to 4 problems"):
        rewards([SEVEN] * 4, found)
    with pytest.raises(ValueError, match="6 responses to 0 problems"):
        rewards([], found)

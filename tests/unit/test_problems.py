"""Generated problems: every answer recomputed from the question's text alone."""

import re
from collections import Counter

import pytest
import torch

from minillm.data import problems
from minillm.data.problems import END, TASKS, VOCAB_SIZE, decode, draw, encode

SIZES = [
    ("digit_sum", {}),
    ("digit_sum", {"n_digits": 1}),
    ("arithmetic", {"n_digits": 4}),
    ("arithmetic", {"n_digits": 4, "operation": "-"}),
    ("arithmetic", {"n_digits": 3, "operation": "*"}),
    ("countdown", {"n_numbers": 2}),
    ("countdown", {"n_numbers": 5}),
    ("string_edit", {"n_letters": 1, "n_edits": 2}),
    ("string_edit", {"n_edits": 3}),
    ("word_problem", {"n_steps": 1}),
    ("word_problem", {"n_steps": 4}),
]


def read_digit_sum(question):
    return str(eval(question.removesuffix(" mod 10=")) % 10)


def read_arithmetic(question):
    return str(eval(question.removesuffix("=")))


def read_string_edit(question):
    edits, text = re.fullmatch(r"([a-z, ]+) ([a-z]+):", question).groups()
    letters = list(text)
    for edit in edits.split(", "):
        if edit == "reverse":
            letters.reverse()
        elif edit == "sort":
            letters.sort()
        elif edit == "rotate":
            letters.append(letters.pop(0))
        elif edit == "double":
            letters = [letter for letter in letters for _ in range(2)]
        elif edit == "swap":
            letters[0], letters[-1] = letters[-1], letters[0]
        else:
            raise AssertionError(edit)
    return "".join(letters)


def read_word_problem(question):
    first, *events, asked = re.findall(r"[^.?]+[.?]", question)
    name, value = re.match(r"(\w+) has (\d+) ", first).groups()
    assert asked.endswith(f"does {name} have?")
    value = int(value)
    for event in events:
        if "doubled" in event or "tripled" in event:
            value *= 2 if "doubled" in event else 3
            continue
        assert event.split().count(name) == 1  # nobody gives to themselves
        n = int(re.search(r"\d+", event)[0])
        comes = "more" in event
        assert comes == bool(re.search(rf"buys|finds|gives {name}", event))
        value += n if comes else -n
        assert value > 0
    return str(value)


@pytest.mark.parametrize(("task", "sizes"), SIZES)
def test_answers_follow_from_the_question_alone(task, sizes):
    for problem in draw(task, 200, seed=1, **sizes):
        if task == "countdown":
            words = re.fullmatch(r"use ([\d ]+) to make (\d+):", problem.question)
            given, target = sorted(map(int, words[1].split())), int(words[2])
            assert (tuple(given), target) == (problem.numbers, problem.target)
            assert eval(problem.answer) == target
            assert sorted(map(int, re.findall(r"\d+", problem.answer))) == given
            assert set(problem.answer) & set("+-") or "(" not in problem.answer
        else:
            assert problem.answer == globals()[f"read_{task}"](problem.question)


@pytest.mark.parametrize(("task", "sizes"), SIZES)
def test_steps_are_true_and_lead_to_the_answer(task, sizes):
    for problem in draw(task, 100, seed=2, **sizes):
        assert problem.steps
        if task in ("arithmetic", "countdown", "word_problem"):
            for step in problem.steps:
                left, right = step.split("=")
                assert eval(left) == int(right) >= 0
        last = problem.steps[-1].split("=")[-1]
        if task == "arithmetic":  # the columns, from the right, spell the answer
            if sizes.get("operation") == "*":
                columns = last
            else:
                lowest = "".join(step[-1] for step in reversed(problem.steps[:-1]))
                columns = last + lowest
            assert int(columns) == int(problem.answer)
        else:
            assert last == str(problem.target if task == "countdown" else problem.answer)
        assert problem.solution() == " ".join(problem.steps) + " #" + problem.answer
        assert problem.solution(steps=False) == "#" + problem.answer


def test_the_first_example_worked_by_hand(monkeypatch):
    """4+7+2+9: 4, then 11, 13 and 22, of which the last digits are 4, 1, 3, 2."""
    monkeypatch.setattr(problems, "_integers", lambda *_: [4, 7, 2, 9])
    problem = problems.digit_sum(n_digits=4)
    assert problem.question == "4+7+2+9 mod 10="
    assert problem.solution() == "4 1 3 2 #2"


@pytest.mark.parametrize("task", TASKS)
def test_a_question_belongs_to_one_split_whatever_the_seed(task):
    drawn = {
        split: {p.question for seed in (0, 1) for p in draw(task, 100, seed, split)}
        for split in problems.SPLITS
    }
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["test"]
    assert len(draw(task, 50, 0, "test")) == len({p.question for p in draw(task, 50, 0, "test")})


def test_splits_have_the_sizes_they_say():
    generator = torch.Generator().manual_seed(0)
    counts = Counter(problems.digit_sum(generator, 8).split for _ in range(4000))
    shares = [counts[split] / 4000 for split in problems.SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_a_seed_repeats_and_a_generator_goes_on():
    assert draw("countdown", 5, 3) == draw("countdown", 5, 3)
    assert draw("countdown", 5, 3) != draw("countdown", 5, 4)
    generator = torch.Generator().manual_seed(3)
    first, second = draw("countdown", 5, generator), draw("countdown", 5, generator)
    assert first == draw("countdown", 5, 3)
    assert first != second


def test_the_final_digit_of_a_sum_is_spread_evenly():
    """Chance is 10 %: guessing one digit must not pay."""
    counts = Counter(p.answer for p in draw("digit_sum", 3000, 0, n_digits=5))
    assert min(counts.values()) > 230
    assert max(counts.values()) < 370


def test_text_goes_through_ids_and_back():
    for task in TASKS:
        for problem in draw(task, 20, 0):
            text = problem.question + problem.solution()
            ids = encode(text)
            assert END not in ids
            assert 0 < min(ids) <= max(ids) < VOCAB_SIZE
            assert decode([*ids, END]) == text
            assert problems.MARKER not in problem.question
    with pytest.raises(ValueError, match=r"\['é'\] are not in the alphabet"):
        encode("é")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="task='sums': expected one of digit_sum"):
        draw("sums", 1)
    with pytest.raises(ValueError, match="split='dev'"):
        draw("digit_sum", 1, split="dev")
    with pytest.raises(ValueError, match="n=-1"):
        draw("digit_sum", -1)
    with pytest.raises(ValueError, match="found only"):
        draw("digit_sum", 100, 0, "test", n_digits=2)
    with pytest.raises(ValueError, match="operation='/'"):
        problems.arithmetic(operation="/")
    for task, size in (
        ("digit_sum", "n_digits"),
        ("countdown", "n_numbers"),
        ("string_edit", "n_letters"),
        ("string_edit", "n_edits"),
        ("word_problem", "n_steps"),
    ):
        with pytest.raises(ValueError, match=f"{size}=0: expected at least"):
            TASKS[task](**{size: 0})

"""Programs: the tasks, and choosing one of many by what they do."""

import pytest
import torch

from minillm.data import programs
from minillm.data.programs import READINGS, draw_tasks, source
from minillm.evaluate import sandbox
from minillm.evaluate.programs import behaviours, clusters, passing

confined = pytest.mark.skipif(
    sandbox.why_not() is not None, reason=f"no limits here: {sandbox.why_not()}"
)


def test_tasks_come_from_their_seed_and_hold_what_they_promise():
    tasks = draw_tasks(50, torch.Generator().manual_seed(3), n_words=2, n_examples=2)
    assert tasks == draw_tasks(50, torch.Generator().manual_seed(3), n_words=2, n_examples=2)
    for task in tasks:
        assert len(task.words) == len(task.lines) == len(task.examples) == 2
        assert all(len(given) in (2, 3) for given, _ in task.examples)
        assert len(task.hidden) == 8
        for word, line in zip(task.words, task.lines, strict=True):
            assert line in READINGS[word][0] + READINGS[word][1]
    likely = [
        line in READINGS[word][0]
        for task in tasks
        for word, line in zip(task.words, task.lines, strict=True)
    ]
    assert 0.55 < sum(likely) / len(likely) < 0.85
    with pytest.raises(ValueError, match="n_hidden=0"):
        draw_tasks(1, n_hidden=0)


def test_a_task_in_tokens():
    (task,) = draw_tasks(1, torch.Generator().manual_seed(0))
    assert len(programs.prompt(task)) == 4
    assert max(programs.prompt(task)) < programs.VOCAB_SIZE
    ids = programs.encode(task.lines)
    assert programs.END not in ids
    assert programs.decode([*ids, programs.END]) == list(task.lines)
    with pytest.raises(KeyError):
        programs.encode(["import os"])


@confined
def test_the_sandbox_agrees_with_the_tasks():
    tasks = draw_tasks(12, torch.Generator().manual_seed(5))
    inputs = [[given] for given, _ in tasks[0].hidden]
    did = behaviours([source(task.lines) for task in tasks], inputs)
    assert 0 in passing(did, [expected for _, expected in tasks[0].hidden])
    for task, behaviour in zip(tasks, did, strict=True):
        names = {}
        exec(source(task.lines), names)
        assert behaviour == tuple(str(names["f"](list(given))) for (given,) in inputs)


@confined
def test_two_spellings_of_a_reading_do_the_same_and_two_readings_do_not():
    for readings in READINGS.values():
        lines = [line for reading in readings for line in reading]
        did = behaviours([source([line]) for line in lines], [[[4, 0, 7, 9, 2]]])
        assert did[0] == did[1] != did[2] == did[3]


@confined
def test_programs_fail_alone():
    texts = [
        "def f(x): return x[1:]",
        "def f(x): return 1 / 0",
        "def f(x",
        "g = 1",
        "def f(x): return {1, 2}",  # no JSON
        "def f(x):\n    x.append(5)\n    return x",
        "def f(x): return x",  # and not what its neighbour has appended to
    ]
    did = behaviours(texts, [[[1, 2]], [[]]])
    nothing = (None, None)
    assert did == [("[2]", "[]"), *[nothing] * 4, ("[1, 2, 5]", "[5]"), ("[1, 2]", "[]")]


@confined
@pytest.mark.parametrize(
    "bad", ["while True: pass", "def f(x):\n    while True: pass", "raise SystemExit"]
)
def test_a_program_that_takes_everything_leaves_the_others_theirs(bad):
    limits = sandbox.Limits(seconds=0.5)
    did = behaviours([bad, "def f(x): return x"], [[1], [2]], limits=limits)
    assert did == [(None, None), ("1", "2")]


ON_THE_RESULTS_CHANNEL = ["5", "null", "[]", "[[1]]", '{"a": 1}', "[1]", "[1, 2, 3]", "[true]"]


@confined
@pytest.mark.parametrize("claim", ON_THE_RESULTS_CHANNEL)
@pytest.mark.parametrize("neighbour", [(), ("def f(x): return x",)])
def test_a_program_that_writes_results_itself_gains_nothing_and_breaks_nothing(claim, neighbour):
    hostile = (
        "import os\nfor fd in range(3, 64):\n"
        f'    try: os.write(fd, b\'{{"call": 0, "value": {claim}}}\\n\')\n'
        "    except OSError: pass\n"
    )
    did = behaviours([hostile, *neighbour], [[1]])
    assert did == [(None,), *[("1",)] * len(neighbour)]
    assert passing(did, [7]) == []


@confined
def test_a_program_that_patches_json_breaks_nothing():
    hostile = "import json\njson.dumps = lambda value: [value]\ndef f(x): return 1"
    assert behaviours([hostile], [[1]]) == [(None,)]


def test_filter_and_cluster_by_hand():
    did = [("1", "4"), ("2", "4"), ("1", "5"), (None, None), ("1", "5"), ("1", None)]
    assert passing(did, [1]) == [0, 2, 4, 5]
    assert passing(did, [1, 5]) == [2, 4]
    assert passing(did, [4]) == []  # the right value in another place
    assert passing(did, []) == list(range(6))
    assert clusters(did) == [[2, 4], [0], [1], [5]]
    assert clusters(did, passing(did, [1])) == [[2, 4], [0], [5]]
    assert clusters([]) == []
    with pytest.raises(ValueError, match="3 expected values for 2"):
        passing(did, [1, 2, 3])


def test_true_is_not_one():
    assert passing([("true",)], [1]) == []

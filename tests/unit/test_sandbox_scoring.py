"""What counts in the sandbox is the value alone: no way of cheating scores."""

import pytest

from minillm.evaluate import sandbox
from minillm.evaluate.sandbox import Limits, call, passes

pytestmark = pytest.mark.skipif(
    sandbox.why_not() is not None, reason=f"no limits here: {sandbox.why_not()}"
)


CHEATS = {
    "leave with success": "import os\nos._exit(0)",
    "leave politely": "raise SystemExit(0)",
    "leave while defining": "",
    "an object equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\nreturn Any(7)"
    ),
    "a string equal to everything": (
        "class Any(str):\n    def __eq__(self, other): return True\nreturn Any('4')"
    ),
    "a patched json": 'import json\njson.dumps = lambda o: \'{"call": 0, "passed": true}\'',
    "claims on the results channel": (
        "import os\nfor fd in range(1, 64):\n"
        '    try: os.write(fd, b\'{"call": 0, "passed": true}\\nok\\n[]\\n' + "[" * 5000 + "\\n')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "wrong calls on the results channel": (
        "import os\nfor fd in range(1, 64):\n"
        '    try: os.write(fd, b\'{"call": -1, "value": 4}\\n{"call": true, "value": 4}\\n'
        '{"call": 9, "value": 4}\\n{"call": "0", "value": 4}\\n'
        '{"call": 0.0, "value": 4}\\n\')\n'
        "    except OSError: pass"
    ),
    "True for 1": "return True",
    "searching the heap for the answer": (
        "import gc\nfor o in gc.get_objects():\n"
        "    if isinstance(o, dict) and 'expected' in o: return o['expected']"
    ),
    "searching the frames for the answer": (
        "import sys\nf = sys._getframe()\nwhile f:\n"
        "    for v in list(f.f_locals.values()) + list(f.f_globals.values()):\n"
        "        if v == 424242: return v\n    f = f.f_back"
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_cheat_scores(name):
    program = "import os\nos._exit(0)"
    if name != "leave while defining":
        body = "\n".join("    " + line for line in CHEATS[name].splitlines())
        program = f"def double(x):\n{body}\n    return 3 * x\n"
    cases = [([2], 4), ([1], 1 if name == "True for 1" else 2), ([3], 424242)]
    if name.endswith("everything"):
        cases = [([2], 4 if "object" in name else 5)] * 3
    assert passes(program, "double", cases) == [False] * 3


def test_the_expected_answers_never_enter_the_process(monkeypatch):
    handed = []
    confined_run = sandbox._confined
    monkeypatch.setattr(
        sandbox, "_confined", lambda *args: handed.append(args) or confined_run(*args)
    )
    assert passes("def f(x): return x", "f", [([1], 1), ([2], "a secret")]) == [True, False]
    assert "a secret" not in repr(handed)


def test_values_are_compared_as_json_by_type_and_depth():
    program = "def f(x): return x"
    same = [(3, 3), (2.0, 2), ([1, [2]], (1, (2,))), ({"a": None}, {"a": None}), ("é", "é")]
    assert all(passes(program, "f", [([x], y) for x, y in same]))
    other = [(1, True), (0, False), ("1", 1), ([1], [1, 2]), ([1, 2], [1]), ({"a": 1}, {"b": 1})]
    other += [(None, False), ([], {}), ([[]], [0]), (float("nan"), float("nan"))]
    assert not any(passes(program, "f", [([x], y) for x, y in other]))
    deep = "def f(x):\n    y = []\n    for _ in range(900): y = [y]\n    return y"
    assert passes(deep, "f", [([0], [[0]])]) == [False]


def test_calls_that_fail_say_why_and_leave_the_others():
    program = (
        "def f(x):\n    if x == 2:\n        raise KeyError('two')\n    return {3} if x == 3 else x"
    )
    ended, calls = call(program, "f", [[1], [2], [3], [4]])
    assert [c.value for c in calls] == [1, None, None, 4]
    assert calls[1].error == "KeyError: 'two'"
    assert "set is not JSON" in calls[2].error
    ended, calls = call(
        "def f(x):\n    while x == 2: pass\n    return x", "f", [[1], [2]], Limits(seconds=0.4)
    )
    assert (ended.status, calls[0].value) == ("time", 1)
    assert calls[1].error == "the program ended before this call"
    assert "KeyError: 'g'" in call(program, "g", [[1]])[1][0].error

"""The grid runner: cached, resumable, parallel, and clear about what failed."""

import json
import os
from pathlib import Path

import pytest

from minillm.scaling.grid import file_name, run_grid

CALLS = []


def square(x: int, add: int = 0) -> dict:
    """A run; counts its calls in this process."""
    CALLS.append(x)
    if x < 0:
        raise ArithmeticError(f"{x} is below zero")
    return {"y": x * x + add, "process": os.getpid()}


def die_once(x: int, marker: str) -> dict:
    """A run whose process dies the first time, as if the machine had killed it."""
    if x == 2 and not Path(marker).exists():
        Path(marker).touch()
        os._exit(9)
    return {"y": x * x}


def squares(results):
    return [result["y"] for result in results]


def test_results_come_in_the_order_of_the_settings_and_only_new_ones_run(tmp_path):
    CALLS.clear()
    assert squares(run_grid(square, [{"x": 3}, {"x": 1}], tmp_path, progress=False)) == [9, 1]
    more = [{"x": 2}, {"x": 3}, {"add": 1, "x": 3}, {"x": 3, "add": 1}]
    assert squares(run_grid(square, more, tmp_path, progress=False)) == [4, 9, 10, 10]
    assert CALLS == [3, 1, 2, 3]  # the same settings in another order are the same run
    assert len(list(tmp_path.iterdir())) == 4


def test_each_file_says_what_it_is(tmp_path):
    run_grid(square, [{"x": 5}], tmp_path, progress=False)
    record = json.loads((tmp_path / file_name(square, {"x": 5})).read_text())
    assert record["settings"] == {"x": 5} and record["result"]["y"] == 25


def test_a_failed_run_is_named_and_the_others_are_kept(tmp_path):
    CALLS.clear()
    with pytest.raises(RuntimeError, match=r'1 of 3 runs failed; {"x": -1}: -1 is below zero'):
        run_grid(square, [{"x": 1}, {"x": -1}, {"x": 2}], tmp_path, progress=False)
    assert squares(run_grid(square, [{"x": 1}, {"x": 2}], tmp_path, progress=False)) == [1, 4]
    assert CALLS == [1, -1, 2]


def test_a_run_that_was_cut_off_leaves_no_half_file(tmp_path, monkeypatch):
    def crash(self, text):
        with open(self, "w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        run_grid(square, [{"x": 1}], tmp_path, progress=False)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert squares(run_grid(square, [{"x": 1}], tmp_path, progress=False)) == [1]


def test_workers_are_other_processes_and_give_the_same(tmp_path):
    from minillm.scaling.small import train_small

    settings = [{"width": 4, "n_tokens": 400, "seed": seed} for seed in range(3)]
    alone = run_grid(train_small, settings, tmp_path / "alone", progress=False)
    together = run_grid(train_small, settings, tmp_path / "both", workers=2, progress=False)
    assert [r["loss"] for r in alone] == pytest.approx([r["loss"] for r in together], rel=1e-4)
    assert len({result["loss"] for result in alone}) == 3
    assert alone[0].keys() == together[0].keys()


def test_a_worker_that_fails_is_named_too(tmp_path):
    from minillm.scaling.small import train_small

    with pytest.raises(RuntimeError, match=r'{"width": 3, "n_tokens": 400}.*d_model=3'):
        settings = [{"width": width, "n_tokens": 400} for width in (3, 4)]
        run_grid(train_small, settings, tmp_path, workers=2, progress=False)
    assert len(list(tmp_path.iterdir())) == 1  # the other one is kept


def test_after_a_killed_worker_the_same_call_goes_on(tmp_path):
    settings = [{"x": x, "marker": str(tmp_path / "died")} for x in range(4)]
    with pytest.raises(RuntimeError, match="of 4 runs failed"):
        run_grid(die_once, settings, tmp_path / "grid", workers=2, progress=False)
    results = run_grid(die_once, settings, tmp_path / "grid", workers=2, progress=False)
    assert squares(results) == [0, 1, 4, 9]


def test_what_workers_cannot_import_is_refused(tmp_path):
    def local(x):
        return {"y": x}

    with pytest.raises(ValueError, match=r"not importable.*workers=1"):
        run_grid(local, [{"x": 1}], tmp_path, workers=2)
    with pytest.raises(ValueError, match="workers=0"):
        run_grid(square, [{"x": 1}], tmp_path, workers=0)
    assert run_grid(local, [{"x": 1}], tmp_path, progress=False) == [{"y": 1}]

"""The shipped checkpoints load, are small, and score what their record says."""

import pytest

from minillm.train import recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_shipped_checkpoint_scores_what_is_recorded(name):
    model, record = recipes.load(name)
    loss = recipes.RECIPES[name][1](model, record)
    assert loss == pytest.approx(record["loss"], rel=1e-3)
    assert loss < 1.05 * record["floor"]


def test_all_checkpoints_together_are_small():
    files = [p for p in recipes.FOLDER.iterdir() if p.name != "__pycache__"]
    assert {p.name for p in files} >= {f"{name}.json" for name in recipes.RECIPES}
    assert sum(p.stat().st_size for p in files) <= 6e6


def test_refuses(capsys):
    with pytest.raises(
        ValueError, match="'poems': expected one of stories, instructions, assistant"
    ):
        recipes.load("poems")
    with pytest.raises(SystemExit) as caught:
        recipes.main(["poems"])
    assert caught.value.code == 2 and "poems" in capsys.readouterr().err

"""The run that grids repeat: what it spends, what it reads, and that it learns."""

import pytest
import torch

from minillm.data.facts import World
from minillm.model.transformer import Transformer
from minillm.scaling.small import (
    iso_flop_settings,
    learn,
    loss_on_world,
    n_parameters,
    small_config,
    told_facts,
    train_small,
)


def test_a_setting_spends_its_budget_and_a_run_reports_what_it_spent():
    settings = iso_flop_settings([1e7, 2e7], [4, 6, 10], seed=1)
    assert [s["width"] for s in settings] == [4, 6, 10, 4, 6, 10] and settings[0]["seed"] == 1
    for s, budget in zip(settings, [1e7] * 3 + [2e7] * 3, strict=True):
        n = Transformer(small_config(s["width"], 64)).n_parameters()
        assert n == n_parameters(s["width"])
        assert 6 * n * s["n_tokens"] == pytest.approx(budget, rel=0.01)
    run = train_small(**settings[0])
    assert run["flops"] == 6 * run["n_parameters"] * run["n_tokens"]
    assert run["n_tokens"] == pytest.approx(settings[0]["n_tokens"], rel=0.1)
    assert run["reads"] == [(run["n_tokens"], run["loss"])]


@pytest.mark.parametrize(("n_tokens", "batch_tokens", "rows"), [(900, None, 15), (900, 90, 45)])
def test_batches_tell_as_many_tokens_as_asked(n_tokens, batch_tokens, rows):
    told = list(told_facts(World(), n_tokens, torch.Generator().manual_seed(0), batch_tokens))
    assert {tuple(batch.tokens.shape) for batch in told} == {(rows, 2)}
    assert len(told) * rows * 2 == pytest.approx(n_tokens, rel=0.05)
    assert not torch.equal(told[0].tokens, told[1].tokens)


def test_learning_lowers_the_exact_loss_and_reads_it_on_the_way():
    world = World(n_words=8, noise=0.1, seed=4)
    model, reads = learn(world, 8, 6400, seed=2, reads=4)
    assert [at for at, _ in reads] == [1600, 3200, 4800, 6400]
    assert reads[-1][1] == pytest.approx(loss_on_world(model, world))
    start = Transformer(small_config(8, 8), torch.Generator().manual_seed(2))
    assert world.entropy < reads[-1][1] < reads[0][1] < loss_on_world(start, world)
    assert learn(world, 8, 6400, seed=2, reads=4)[1] == reads
    assert learn(world, 8, 6400, seed=3, reads=4)[1] != reads

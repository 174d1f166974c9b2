"""Steps that would do damage: left out one by one, undone together, and resumed with the rest."""

import math

import pytest
import torch
from test_loop import Tiny, make_batches, same, weights

from minillm.train import checkpoint
from minillm.train.loop import TrainingDiverged, token_loss, train
from minillm.train.spikes import SpikeGuard

GUARD = SpikeGuard(factor=4, window=5, patience=3)


def spiky(*bad_steps, size=100.0):
    """The default loss, `size` times as steep in the given calls."""
    calls = iter(range(10**6))

    def loss_fn(model, batch):
        loss, count = token_loss(model, batch)
        return loss * (size if next(calls) in bad_steps else 1.0), count

    return loss_fn


def run(steps=20, **options):
    model = Tiny()
    settings = {"lr": 0.01, "warmup_steps": 0, "progress": False, "guard": GUARD} | options
    history = train(model, make_batches(), steps=steps, **settings)
    return model, history


def test_what_is_a_spike():
    usual = [1.0, 2.0, 3.0, 40.0, 2.0]  # the median is 2
    assert not GUARD.is_spike(usual, 1.0, 8.0)
    assert GUARD.is_spike(usual, 1.0, 8.01)
    assert not GUARD.is_spike(usual[:4], 1.0, 1e9)  # too few to know what is usual
    assert GUARD.is_spike([], math.nan, 1.0) and GUARD.is_spike([], 1.0, math.inf)
    with pytest.raises(ValueError, match=r"factor=1\.0"):
        SpikeGuard(factor=1.0)
    with pytest.raises(ValueError, match="patience=0"):
        SpikeGuard(patience=0)


def test_without_spikes_a_guard_changes_nothing():
    guarded, history = run()
    plain, _ = run(guard=None)
    assert same(weights(guarded), weights(plain))
    assert history.skipped == history.rollbacks == []


@pytest.mark.parametrize("size", [100.0, math.nan])
def test_a_spike_is_left_out_as_if_its_batch_did_not_exist(size):
    """By hand: the same optimiser over all batches but the eighth."""
    model, history = run(loss_fn=spiky(8, size=size), steps=12)
    assert history.skipped == [8] and history.steps == list(range(12))
    by_hand = Tiny()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in by_hand.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in by_hand.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step, batch in zip(range(12), make_batches().forever(), strict=False):
        loss, count = token_loss(by_hand, batch)
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = history.lrs[step]
        if step != 8:
            optimizer.step()
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_spikes_in_a_row_go_back_to_the_checkpoint(tmp_path):
    """The third spike ends in the weights saved after step 10; data and schedule go on."""
    path = tmp_path / "run.safetensors"
    seen = {}

    def note(model):
        seen[len(seen) + 1] = weights(model)
        return 0.0

    bad = spiky(12, 13, 14)
    _, history = run(
        loss_fn=bad, checkpoint=path, checkpoint_every=5, evaluate=note, evaluate_every=1
    )
    assert history.skipped == [12, 13, 14] and history.rollbacks == [14]
    assert same(seen[15], seen[10]) and not same(seen[14], seen[10])
    assert not same(seen[16], seen[15])
    assert history.losses[:12] == run(guard=None)[1].losses[:12]
    assert history.lrs == run(guard=None)[1].lrs


def test_no_checkpoint_is_written_while_spikes_last(tmp_path):
    """Due after step 10, in the middle of a row of two spikes: the one of step 5 stays."""
    path = tmp_path / "run.safetensors"
    saved = []

    def note(model):
        saved.append(len(checkpoint.load(path)["history"]["steps"]) if path.exists() else 0)
        return 0.0

    run(
        loss_fn=spiky(8, 9),
        checkpoint=path,
        checkpoint_every=5,
        evaluate=note,
        evaluate_every=1,
    )
    assert saved == [0] * 5 + [5] * 10 + [15] * 5


def test_nothing_to_go_back_to(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"step 9: .*the weights it had before"):
        run(loss_fn=spiky(7, 8, 9))
    path = tmp_path / "run.safetensors"
    with pytest.raises(TrainingDiverged, match="step 12"):  # 9 went back, and it did not help
        run(loss_fn=spiky(*range(7, 20)), checkpoint=path, checkpoint_every=5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_resumed_in_between_it_ends_with_the_same_bits(tmp_path, precision):
    """Stopped after a spike, and before a roll-back. In float16 the spikes overflow instead."""

    def attempt(path, stop):
        calls = iter(range(stop))

        def loss_fn(model, batch):
            next(calls)  # StopIteration: the process is gone
            loss, count = token_loss(model, batch)
            spike = int(batch.tokens.sum()) in wanted
            return loss * (8.0 if spike else 1.0), count

        return run(
            steps=30,
            loss_fn=loss_fn,
            checkpoint=path,
            checkpoint_every=5,
            precision=precision,
        )

    sums = [int(b.tokens.sum()) for b, _ in zip(make_batches().forever(), range(30), strict=False)]
    wanted = {sums[i] for i in (8, 16, 17, 18)}
    straight, history = attempt(tmp_path / "a.safetensors", 100)
    assert history.rollbacks == ([18] if precision == "fp32" else [])
    assert {8, 16, 17, 18} <= set(history.skipped)
    with pytest.raises(StopIteration):
        attempt(tmp_path / "b.safetensors", 17)
    resumed, again = attempt(tmp_path / "b.safetensors", 100)
    assert same(weights(resumed), weights(straight))
    assert again.losses == history.losses and again.skipped == history.skipped
    with pytest.raises(ValueError, match="another run"):
        run(steps=30, checkpoint=tmp_path / "a.safetensors", precision="bf16")

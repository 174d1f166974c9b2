"""Live learning curves: experiences pass unchanged, the picture is replaced, not added to."""

import matplotlib.pyplot as plt
import pytest
import torch

from minillm.align.experience import Experience
from minillm.course import live
from minillm.data.packing import Batch


class Handle:
    def __init__(self):
        self.pictures = []

    def update(self, html):
        self.pictures.append(html.data)


def experience(reward):
    batch = Batch(torch.tensor([[3, 4, 1]] * 2), torch.tensor([[4, 1, -100]] * 2))
    log_probs = torch.tensor([[-0.5, -0.1, 0.0]] * 2)
    return Experience(batch, log_probs, torch.zeros(2), torch.tensor([reward, 0.0]), n_samples=2)


def test_experiences_pass_and_the_picture_is_replaced(monkeypatch):
    handle, history = Handle(), []
    monkeypatch.setattr(live, "display", lambda *_, **__: handle)
    plt.switch_backend("Agg")
    given = [experience(float(i)) for i in range(7)]
    passed = list(live.live_curves(given, history, every=3, title="Learning"))
    assert all(a is b for a, b in zip(passed, given, strict=True))
    assert [numbers["reward"] for numbers in history] == [i / 2 for i in range(7)]
    assert len(handle.pictures) == 3
    assert 'alt="Learning: after 6 steps reward 2.50, length 2.00' in handle.pictures[1]
    assert 'alt="Learning: after 7 steps' in handle.pictures[2]
    assert not plt.get_fignums()


def test_the_end_is_drawn_when_the_loop_takes_no_more(monkeypatch):
    handle, history = Handle(), []
    monkeypatch.setattr(live, "display", lambda *_, **__: handle)
    plt.switch_backend("Agg")
    curves = live.live_curves((experience(1.0) for _ in range(9)), history, every=3)
    for _ in range(5):
        next(curves)
    curves.close()
    assert len(handle.pictures) == 2 and "after 5 steps" in handle.pictures[1]


def test_a_picture_every_zero_steps_is_refused():
    with pytest.raises(ValueError, match="every=0: expected at least 1"):
        next(live.live_curves([], [], every=0))

"""Counting the bytes of tensors: made, viewed, saved for backward, dropped."""

import torch
from torch import nn

from minillm.train.memory import TensorMemory


def test_views_count_once_and_dropped_tensors_no_more():
    with TensorMemory() as memory:
        a = torch.ones(1000)
        b, c = a[:5], a + 1
        assert (memory.live, memory.peak) == (8000, 8000)
        del a
        assert memory.live == 8000  # b still holds it
        del b
        assert memory.live == 4000
        d = c.view(10, 100)
        del c, d
    assert (memory.live, memory.peak) == (0, 8000)
    assert memory.history == [0, 4000, 8000, 4000, 0]


def test_what_backward_needs_is_held_until_it_ran():
    with TensorMemory() as memory:
        x = torch.ones(1000, requires_grad=True)
        y = (x.exp() * 2).sum()  # keeps exp(x); the product itself is not needed
        assert memory.live == 4000 + 4000 + 4
        y.backward()
        assert memory.live == 4000 + 4000 + 4  # exp(x) is gone, the gradient came
        assert memory.peak > memory.live


def test_what_was_there_before_counts_from_the_start():
    layer, x = nn.Linear(10, 10), torch.ones(3, 10)
    layer.tied = layer.weight
    with TensorMemory(layer, x) as memory:
        assert memory.live == 4 * (100 + 10) + 4 * 30
        y = layer(x)
    assert memory.peak == memory.live == 4 * 110 + 4 * 30 + y.nbytes


def test_an_optimiser_holds_two_numbers_to_each_weight():
    layer = nn.Linear(100, 100, bias=False)
    layer(torch.ones(1, 100)).sum().backward()
    with TensorMemory(layer) as memory:
        torch.optim.AdamW(layer.parameters(), fused=True).step()
    assert memory.live == 4 * 10_000
    with TensorMemory(layer) as memory:
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        optimizer.step()
    assert memory.live - 3 * 4 * 10_000 in range(64)  # and a counter of steps


def test_what_lies_in_a_file_takes_no_memory(tmp_path):
    paged = torch.from_file(str(tmp_path / "numbers"), shared=True, size=1000)
    with TensorMemory(paged) as memory:
        paged.add_(1)
        assert memory.live == 0
        paged + 1
    assert memory.peak == 4000


def test_shapes_alone_are_measured_as_if_they_held_numbers():
    def peak(device):
        with torch.device(device):
            layer, x = nn.Linear(20, 20), torch.ones(3, 20)
        with TensorMemory(layer) as memory:
            layer(x).square().sum().backward()
        return memory.peak

    assert peak("meta") == peak("cpu") > 4 * 2 * 420

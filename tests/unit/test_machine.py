"""The machine check: counts are right, and the numbers are of a size a computer can have."""

import pytest
import torch

from minillm.course import machine


def test_operations_and_bytes_are_counted_per_second(monkeypatch):
    # Every run "takes" 2 s: the counts follow from the sizes alone.
    monkeypatch.setattr(machine, "fastest", lambda work, device: (work(), 2.0)[1])
    found = machine.measure("cpu", size=8)
    assert found.flops == 2 * 8**3 / 2
    assert found.bandwidth == 8 * 8 * 4 / 2
    assert found.decode_limit(weight_bytes=64) == 2.0
    assert found.threads == torch.get_num_threads() and found.cores >= 1


def test_fastest_run_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0, 5, 10, 12, 20, 23])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    calls = []
    assert machine.fastest(lambda: calls.append(1), runs=3) == 2
    assert len(calls) == 4


def test_a_real_measurement_is_plausible():
    found = machine.measure("cpu", size=512)
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bandwidth < 1e14
    with pytest.raises(RuntimeError):
        machine.measure("no-such-device")

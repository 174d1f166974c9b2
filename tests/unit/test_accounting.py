"""The cost of a step: FLOPs against torch's counter, bytes against what is really held."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from minillm.data.packing import Batch
from minillm.model.config import MoE, gpt2_config, llama_config
from minillm.model.transformer import Transformer
from minillm.train import accounting
from minillm.train.loop import token_loss
from minillm.train.memory import TensorMemory
from minillm.train.optim import adamw
from minillm.train.profiler import operations, profile_table
from minillm.train.recompute import checkpoint_blocks

SHAPE = {"d_model": 48, "n_layers": 3, "n_heads": 2, "max_length": 64}
CONFIGS = {
    "gpt2": gpt2_config(65, **SHAPE),
    "llama": llama_config(65, **SHAPE),
    "grouped": llama_config(65, **SHAPE, n_kv_heads=1),
}


def some_tokens(batch_size=3, length=33):
    return torch.randint(65, (batch_size, length), generator=torch.Generator().manual_seed(0))


def counted(model, tokens):
    """Matrix products as PyTorch counts them while they run."""
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", CONFIGS)
def test_flops_are_what_torch_counts(kind):
    """Torch leaves out the processor's attention kernel; its two products are added by hand."""
    model = Transformer(CONFIGS[kind])
    B, T = 3, 33
    plain = accounting.training_flops(model, B, T)
    pairs, width, n_layers = T * (T + 1) // 2, 48, 3
    attention = 3 * B * n_layers * 2 * (2 * width) * pairs
    assert counted(model, some_tokens(B, T)) == plain - attention
    more = accounting.training_flops(model, B, T, recompute=True)
    assert more == plain * 4 // 3
    checkpoint_blocks(model)
    # Not run again: the output, which is in no block, and each block's last product, whose result
    # nobody needs.
    once = model.unembed.weight.numel() + n_layers * model.blocks[0].mlp.down.weight.numel()
    again = counted(model, some_tokens(B, T))
    assert again == more - attention * 4 // 3 - 2 * B * T * once


def test_experts_count_as_used():
    dense, sparse = (
        Transformer(llama_config(65, **SHAPE, moe=MoE(8, n_active, 16))) for n_active in (8, 2)
    )
    ratio = accounting.training_flops(sparse, 1, 8) / accounting.training_flops(dense, 1, 8)
    assert 0.25 < ratio < 0.9


def test_utilisation():
    assert accounting.utilisation(6e12, 2.0, 10e12) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="seconds=0"):
        accounting.utilisation(1.0, 0, 1.0)


def test_state_is_what_a_step_really_holds():
    model, tokens = Transformer(CONFIGS["llama"]), some_tokens()
    n = model.n_parameters()
    optimizer = adamw(model, 1e-3)
    with TensorMemory(model) as memory:
        loss, _ = token_loss(model, Batch(tokens, tokens))
        loss.backward()
        optimizer.step()
        del loss
    state = accounting.state_bytes(n, precision="fp32")
    assert state.total == 16 * n == 4 * n + state.gradients + state.optimizer
    assert 0 <= memory.live - state.total < 1000  # and a counter for each parameter


@pytest.mark.parametrize(
    "stage, gigabytes", [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)]
)  # the published numbers
def test_zero_of_the_paper(stage, gigabytes):
    """7.5B parameters on 64 GPUs: Rajbhandari et al. 2020, figure 1."""
    state = accounting.state_bytes(7.5e9, stage=stage, n_processes=64)
    assert state.total / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_refuses_unknown_layouts():
    with pytest.raises(ValueError, match="precision='fp8'"):
        accounting.state_bytes(1, precision="fp8")
    for wrong in ({"stage": 4}, {"n_processes": 0}):
        with pytest.raises(ValueError, match="expected 0 to 3, at least 1"):
            accounting.state_bytes(1, **wrong)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_the_forward_pass_keeps(kind, recompute):
    """On the meta device attention is another kernel, which keeps more."""
    model, tokens = Transformer(CONFIGS[kind]), some_tokens()
    if recompute:
        checkpoint_blocks(model)
    with TensorMemory(model, tokens) as memory:
        before = memory.live
        loss, _ = token_loss(model, Batch(tokens, tokens))
        kept = memory.live - before - loss.nbytes
    estimate = accounting.activation_bytes(CONFIGS[kind], 3, 33, recompute)
    assert kept <= estimate < 1.4 * kept


def test_a_profile_knows_calls_and_flops():
    a, b = torch.randn(30, 40), torch.randn(40, 50)

    def work():
        for _ in range(7):
            (a @ b).exp()

    found = {operation.name: operation for operation in operations(work)}
    product = found["aten::mm"]
    assert (product.calls, product.flops) == (7, 7 * 2 * 30 * 40 * 50)
    assert found["aten::exp"].calls == 7 and found["aten::exp"].flops == 0
    # A product is called through `matmul`, whose own time is without it.
    square = torch.randn(300, 300)
    found = {operation.name: operation for operation in operations(lambda: square @ square)}
    assert found["aten::matmul"].seconds < found["aten::mm"].seconds
    seconds = [operation.seconds for operation in operations(work)]
    assert seconds == sorted(seconds, reverse=True) and min(seconds) >= 0
    table = profile_table(work, n=2).splitlines()
    assert len(table) == 4 and "others" in table[-1]
    assert sum(float(line.split("%")[0].split()[-1]) for line in table[1:]) == pytest.approx(
        100, abs=0.2
    )


def test_a_profile_prints_nothing_and_ends_with_the_work(capfd):
    a = torch.randn(3, 3)
    operations(lambda: a @ a)
    with pytest.raises(ZeroDivisionError):
        operations(lambda: 1 / 0)
    operations(lambda: a @ a)  # the one before is over
    assert capfd.readouterr() == ("", "")

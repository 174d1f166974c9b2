"""How near a training step comes to the machine's limit, and what brings it there.

6 layers, width 384, 256 tokens, 16 rows: the same step written plainly (attention as a product, a
softmax and a product, an unfused AdamW), then with each tool added. The share of the peak is the
model's FLOPs over what one large float32 product reaches on this machine at the same time: rounds
alternate, so that a busy machine slows all alike. bfloat16 is measured where the processor has
it (AMX, AVX-512), against the same step in float32.

    python tests/bench/bench_efficient.py [ROWS [ROUNDS]]
"""

import sys

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from turns import in_turns

from minillm.data.packing import Batch
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer
from minillm.train.accounting import training_flops, utilisation
from minillm.train.loop import accumulate_gradients, token_loss
from minillm.train.optim import adamw
from minillm.train.precision import IMITATED, in_precision

LENGTH, VOCAB = 256, 65
CONFIG = gpt2_config(VOCAB, d_model=384, n_layers=6, n_heads=6, max_length=LENGTH)
SIDE = 2048  # of the square matrices whose product is the peak
written_out = sdpa_kernel(SDPBackend.MATH)(token_loss)  # attention as products and a softmax


def step(batch: Batch, loss_fn=token_loss, *, fused: bool = True, compiled: bool = False):
    """One training step as a function without arguments."""
    model = Transformer(CONFIG)
    if compiled:
        for block in model.blocks:  # all alike, so the first one's code serves the others
            block.compile()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=False, foreach=False)
    optimizer = adamw(model, 1e-3) if fused else plain

    def run() -> None:
        accumulate_gradients(model, [batch], loss_fn)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def main(n_rows: int = 16, rounds: int = 5) -> None:
    tokens = torch.randint(VOCAB, (n_rows, LENGTH + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:].contiguous())
    square = torch.randn(SIDE, SIDE)
    contestants = {
        "plain eager": step(batch, written_out, fused=False),
        "fused attention": step(batch, fused=False),
        "and fused AdamW": step(batch),
        "and compiled": step(batch, compiled=True),
    }
    has_bf16 = torch.bfloat16 not in IMITATED
    if has_bf16:
        contestants["and bf16"] = step(batch, in_precision(token_loss, "bf16"), compiled=True)
    seconds, _ = in_turns(contestants | {"peak": lambda: square @ square}, rounds)
    peak = 2 * SIDE**3 / seconds.pop("peak")
    flops = training_flops(Transformer(CONFIG), n_rows, LENGTH)
    print(f"efficient: peak {peak / 1e9:,.0f} GFLOP/s in float32, a step {flops / 1e9:,.0f} GFLOP")
    for name, taken in seconds.items():
        print(
            f"efficient {name:16} {taken:7.3f} s, {utilisation(flops, taken, peak):6.1%} of the "
            f"peak, {seconds['plain eager'] / taken:.2f}x plain eager, "
            f"{n_rows * LENGTH / taken:,.0f} tokens/s",
            flush=True,
        )
    best = seconds["and compiled"]
    print(
        f"efficient: everything on, float32: {utilisation(flops, best, peak):.1%} of the peak "
        f"(bar 45%), {seconds['plain eager'] / best:.2f}x plain eager (bar 1.5)"
    )
    if has_bf16:
        print(f"efficient: bf16 {best / seconds['and bf16']:.2f}x float32 (bar 2.0 with AMX)")
    else:
        print("efficient: bf16 not measured, this processor has no such products")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

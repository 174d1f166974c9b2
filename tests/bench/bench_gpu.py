"""GPT-2 124M on one GPU: MFU in bfloat16, compiled, and ours beside nanoGPT's own training step.

12 layers, width 768, 1,024 tokens, the vocabulary padded to 50,304 as nanoGPT does. nanoGPT's step
stands below as its model, its AdamW and its loop do it: separate modules, fused attention, fused
AdamW, everything in one compiled graph. Rounds alternate. The peak is the dense bfloat16 figure of
the data sheet; for a GPU that is not in the table, what a large product reaches.

    python tests/bench/bench_gpu.py [ROWS [ROUNDS]]
"""

import sys

import torch
import torch.nn.functional as F
from bench_train import PlainGPT
from torch import nn
from turns import in_turns

from minillm.data.packing import Batch
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer
from minillm.train.accounting import training_flops, utilisation
from minillm.train.loop import accumulate_gradients, chunked_token_loss, token_loss
from minillm.train.optim import adamw
from minillm.train.precision import in_precision

LENGTH, VOCAB = 1024, 50304
SHAPE = {"d_model": 768, "n_layers": 12, "n_heads": 12, "max_length": LENGTH}
# Dense bfloat16 FLOP/s of the data sheets, without sparsity.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}
# Two rounds warm up and compile.
WAITING = {"n_calls": 5, "n_warm_up": 2, "finish": torch.cuda.synchronize}


def ours(batch: Batch, loss_fn, whole: bool):
    """Our step; `whole` compiles model and loss together, else block by block."""
    model = Transformer(gpt2_config(VOCAB, **SHAPE)).cuda()
    if whole:
        loss_fn = torch.compile(loss_fn)
    else:
        for block in model.blocks:
            block.compile()
    optimizer, loss_fn = adamw(model, 6e-4), in_precision(loss_fn, "bf16")

    def step() -> None:
        accumulate_gradients(model, [batch], loss_fn)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def nano(batch: Batch):
    """nanoGPT's step: its model, and its loop with autocast, clipping and a fused AdamW."""
    model = PlainGPT(12, 12, 768, LENGTH)
    model.tokens = nn.Embedding(VOCAB, 768)
    model.head = nn.Linear(768, VOCAB, bias=False)
    model.head.weight = model.tokens.weight
    for table in (model.tokens, model.positions):
        nn.init.normal_(table.weight, std=0.02)
    model = model.cuda()
    loss_of = torch.compile(nano_loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nano_loss(model: PlainGPT, batch: Batch) -> torch.Tensor:
    places = torch.arange(LENGTH, device="cuda")
    x = model.tokens(batch.tokens) + model.positions(places)
    for block in model.blocks:
        x = block(x)
    logits = model.head(model.norm(x))
    return F.cross_entropy(logits.view(-1, VOCAB), batch.targets.view(-1))


def peak_flops() -> tuple[float, str]:
    """bfloat16 FLOP/s of this GPU, and where the number is from."""
    name = torch.cuda.get_device_name()
    for known, peak in PEAKS.items():
        if all(word in name for word in known.split()):
            return peak, "data sheet"
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    seconds, _ = in_turns({"product": lambda: square @ square}, **WAITING)
    return 2 * 8192**3 / seconds["product"], "measured"


def main(n_rows: int = 32, rounds: int = 5) -> None:
    if not torch.cuda.is_available():
        print("gpu: no GPU here, nothing measured")
        return
    torch.set_float32_matmul_precision("high")
    tokens = torch.randint(VOCAB, (n_rows, LENGTH + 1), device="cuda")
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    seconds, _ = in_turns(
        {
            "ours": ours(batch, token_loss, whole=True),
            "ours, chunked logits": ours(
                batch, lambda m, b: chunked_token_loss(m, b, n_rows=4096), whole=False
            ),
            "nanoGPT": nano(batch),
        },
        rounds,
        **WAITING,
    )
    model = Transformer(gpt2_config(VOCAB, **SHAPE))
    flops, (peak, source) = training_flops(model, n_rows, LENGTH), peak_flops()
    print(f"gpu: {torch.cuda.get_device_name()}, {peak / 1e12:.0f} TFLOP/s in bf16 ({source})")
    for name, taken in seconds.items():
        print(
            f"gpu {name:20} {1e3 * taken:7.1f} ms, {n_rows * LENGTH / taken:,.0f} tokens/s, MFU "
            f"{utilisation(flops, taken, peak):.1%} (bar 50%), "
            f"{seconds['nanoGPT'] / taken:.2f}x nanoGPT's step (bar 1.0)"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

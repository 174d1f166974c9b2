"""Training steps per second: ours beside a plain GPT and `transformers` GPT-2, same shapes.

The plain GPT is the model people write first: separate modules, PyTorch's fused attention, an
ordinary AdamW. All three use the exact GELU. Runs alternate, so that a busy machine slows all
three alike. bfloat16 is emulated, and slow, on processors without AMX or AVX-512.
"""

import contextlib
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from minillm.data.packing import Batch
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients
from minillm.train.optim import adamw

VOCAB = 65
# layers, heads, width, context, batch, steps in one timing
SHAPES = ((4, 4, 128, 64, 12, 10), (6, 6, 384, 256, 16, 1))


class PlainBlock(nn.Module):
    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(C, dim=2)
        q, k, v = (y.view(B, T, self.n_heads, -1).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGPT(nn.Module):
    def __init__(self, n_layers, n_heads, width, context):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(PlainBlock(width, n_heads) for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def plain_step(model, optimizer, batch, logits_of):
    logits = logits_of(model(batch.tokens))
    loss = F.cross_entropy(logits.view(-1, VOCAB), batch.targets.view(-1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def our_step(model, optimizer, batch):
    accumulate_gradients(model, [batch])
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def contestants(n_layers, n_heads, width, context):
    """Three models of one shape, each with its training step."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = Transformer(
        gpt2_config(
            VOCAB, d_model=width, n_layers=n_layers, n_heads=n_heads, max_length=context, mlp="gelu"
        )
    )
    plain = PlainGPT(n_layers, n_heads, width, context)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=n_layers, n_head=n_heads, n_positions=context,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
            activation_function="gelu", bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    our_optimizer = adamw(ours, 1e-3)
    plain_optimizer, their_optimizer = (
        torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (plain, theirs)
    )
    return {
        "ours": lambda batch: our_step(ours, our_optimizer, batch),
        "plain GPT": lambda batch: plain_step(plain, plain_optimizer, batch, lambda y: y),
        "transformers": lambda batch: plain_step(
            theirs, their_optimizer, batch, lambda y: y.logits
        ),
    }


def measure(steps: dict, batch: Batch, n_steps: int, rounds: int = 5) -> dict[str, float]:
    """Median seconds of one step for each contestant, taken in turns; the first round warms up."""
    seconds = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(n_steps):
                step(batch)
            if round_:
                seconds[name].append((time.perf_counter() - started) / n_steps)
    return {name: statistics.median(s) for name, s in seconds.items()}


def main() -> None:
    for n_layers, n_heads, width, context, batch_size, n_steps in SHAPES:
        tokens = torch.randint(VOCAB, (batch_size, context + 1))
        batch = Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), None)
        for precision in ("fp32", "bf16"):
            autocast = (
                torch.autocast("cpu", torch.bfloat16)
                if precision == "bf16"
                else contextlib.nullcontext()
            )
            with autocast:
                steps = contestants(n_layers, n_heads, width, context)
                seconds = measure(steps, batch, n_steps if precision == "fp32" else 1)
            rate = batch_size * context / seconds["ours"]
            print(
                f"train {n_layers}L/{width}d/T{context}/B{batch_size} {precision}: "
                f"{rate:,.0f} tokens/s, {seconds['plain GPT'] / seconds['ours']:.2f}x a plain GPT "
                f"(bar 1.0), {seconds['transformers'] / seconds['ours']:.2f}x transformers "
                "(bar 1.15)"
            )


if __name__ == "__main__":
    main()

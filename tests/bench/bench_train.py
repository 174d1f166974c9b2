"""Training steps per second: ours beside a plain GPT and `transformers` GPT-2, same shapes.

The plain GPT is the model people write first: separate modules, PyTorch's fused attention, an
ordinary AdamW; it and ours use the exact GELU for this comparison. `transformers` runs GPT-2 as
published, with the tanh GELU, against ours with the same function; with the exact GELU in both the
difference is smaller, and is printed too. Runs alternate, so that a busy machine slows all alike.
In bfloat16 the others run in PyTorch's autocast. Where the processor has no such products, PyTorch
imitates them slowly, so that one round of the large shape takes minutes: there it is timed once.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from turns import in_turns

from minillm.data.packing import Batch
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients, token_loss
from minillm.train.optim import adamw
from minillm.train.precision import cpu_multiplies, in_precision

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


def plain_step(model, optimizer, batch, logits_of, precision):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = logits_of(model(batch.tokens))
        loss = F.cross_entropy(logits.view(-1, VOCAB), batch.targets.view(-1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def ours(shape: tuple, mlp: str, precision: str):
    """One training step of our model, as a function of the batch."""
    n_layers, n_heads, width, context = shape
    config = gpt2_config(
        VOCAB, d_model=width, n_layers=n_layers, n_heads=n_heads, max_length=context, mlp=mlp
    )
    model = Transformer(config)
    optimizer, loss_fn = adamw(model, 1e-3), in_precision(token_loss, precision)

    def step(batch):
        accumulate_gradients(model, [batch], loss_fn)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def plain(shape: tuple, precision: str):
    model = PlainGPT(*shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return lambda batch: plain_step(model, optimizer, batch, lambda y: y, precision)


def library(shape: tuple, activation: str, precision: str):
    from transformers import GPT2Config, GPT2LMHeadModel

    n_layers, n_heads, width, context = shape
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=n_layers, n_head=n_heads, n_positions=context,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
            activation_function=activation, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return lambda batch: plain_step(model, optimizer, batch, lambda y: y.logits, precision)


def main() -> None:
    for *shape, batch_size, n_steps in SHAPES:
        n_layers, _, width, context = shape
        tokens = torch.randint(VOCAB, (batch_size, context + 1))
        batch = Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), None)
        for precision in ("fp32", "bf16"):
            steps = {
                "ours": ours(shape, "gelu", precision),
                "plain": plain(shape, precision),
                "library": library(shape, "gelu", precision),
                "ours, tanh": ours(shape, "gelu_tanh", precision),
                "library, tanh": library(shape, "gelu_new", precision),
            }
            runs = {name: partial(step, batch) for name, step in steps.items()}
            slow = precision == "bf16" and not cpu_multiplies("bf16")
            if slow and n_steps == 1:
                seconds, _ = in_turns(runs, 1, n_warm_up=0)
            else:
                seconds, _ = in_turns(runs, n_calls=1 if slow else n_steps)
            rate = batch_size * context / seconds["ours"]
            print(
                f"train {n_layers}L/{width}d/T{context}/B{batch_size} {precision}: "
                f"{rate:,.0f} tokens/s, {seconds['plain'] / seconds['ours']:.2f}x a plain GPT "
                f"(bar 1.0), {seconds['library, tanh'] / seconds['ours, tanh']:.2f}x transformers "
                f"as published (bar 1.15), {seconds['library'] / seconds['ours']:.2f}x with the "
                "exact GELU" + ", the others with PyTorch's imitation of bfloat16" * slow,
                flush=True,
            )


if __name__ == "__main__":
    main()

"""QLoRA on SmolLM2: the memory of a training step, its speed, and what adapters cost.

Memory: the highest resident memory of a fresh process that loads the model, makes two steps and
ends, so that weights, gradients, optimiser, activations and Python itself all count. Speed: ours
beside `peft` on `transformers`, the same adapters on the same weights, batch and length, in turns,
so that a busy machine slows all alike; half of each row is a question, for which ours leaves out
the logits. Then what LoRA adds to a step of the model it adapts, what
is left of it when merged, and how fast weights become NF4 and come back.

    python tests/bench/bench_qlora.py [ROWS [TOKENS [WEIGHTS]]]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from turns import in_turns

from minillm.adapt.finetune import EVERYWHERE
from minillm.adapt.lora import add_lora
from minillm.adapt.quant import Format, dequantize, quantize
from minillm.adapt.quant_model import packed_smollm2
from minillm.adapt.wrap import merge, remove_adapters
from minillm.course.meter import MemoryMeter
from minillm.data.packing import IGNORE, Batch
from minillm.model import hf
from minillm.train.loop import accumulate_gradients, chunked_token_loss
from minillm.train.optim import adamw
from minillm.train.recompute import checkpoint_blocks

THEIR_NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROUNDS = 5
KINDS = ("full", "LoRA", "QLoRA", "QLoRA, recomputing")


def some_batch(n_rows: int, n_tokens: int) -> Batch:
    """Random rows; as in conversations, the first half is given and the second is learned."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(49152, (n_rows, n_tokens + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[:, : n_tokens // 2] = IGNORE
    return Batch(tokens[:, :-1], targets)


def prepared(kind: str) -> nn.Module:
    """SmolLM2 made ready for a kind of fine-tuning."""
    model = packed_smollm2()[0] if kind.startswith("QLoRA") else hf.smollm2()[0]
    if kind == "full":
        return model
    add_lora(model, EVERYWHERE)
    if kind == "QLoRA, recomputing":
        checkpoint_blocks(model)
    return model


def step_of(model: nn.Module, batch: Batch):
    """One training step as a function without arguments."""
    optimizer = adamw(model, 1e-4, weight_decay=0.0)

    def step():
        accumulate_gradients(model, [batch], chunked_token_loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def library_step(model: nn.Module, batch: Batch):
    """The same step with `peft`'s adapters on the library's model of the same weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        hf.to_huggingface(model, Path(folder) / "model", "llama")
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "model").train()
    settings = LoraConfig(
        r=EVERYWHERE.rank, lora_alpha=EVERYWHERE.alpha, target_modules=THEIR_NAMES
    )
    theirs = get_peft_model(theirs, settings)
    learned = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.0, fused=True)

    def step():
        logits = theirs(input_ids=batch.tokens, use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()

    return step


def peak_bytes(kind: str, n_rows: int, n_tokens: int) -> int:
    """The highest resident memory of a process that makes two steps."""
    command = [sys.executable, __file__, "steps", kind, str(n_rows), str(n_tokens)]
    process = subprocess.Popen(command)
    meter = MemoryMeter(process.pid, interval=0.02)
    status = process.wait()
    meter.stop()
    assert status == 0, f"{kind}: the process ended with status {status}"
    return meter.peak_bytes


def memory(n_rows: int, n_tokens: int) -> None:
    peaks = {kind: peak_bytes(kind, n_rows, n_tokens) for kind in KINDS}
    for kind, peak in peaks.items():
        print(f"  {kind:18} {peak / 1e6:6.0f} MB, {peak / peaks['full']:.2f}x full fine-tuning's")
    print("  (bar: QLoRA at most 0.45x)", flush=True)


def speed(n_rows: int, n_tokens: int) -> None:
    batch = some_batch(n_rows, n_tokens)
    models = {kind: prepared(kind) for kind in KINDS}
    steps = {kind: step_of(model, batch) for kind, model in models.items()}
    steps["peft"] = library_step(hf.smollm2()[0], batch)
    seconds, _ = in_turns(steps, ROUNDS)
    for kind in KINDS[1:]:
        print(
            f"  {kind:18} {n_rows * n_tokens / seconds[kind]:5.0f} tokens/s, "
            f"{seconds['peft'] / seconds[kind]:.2f}x peft + transformers LoRA in fp32"
            + (" (bar 1.0)" if kind == "QLoRA" else "")
        )
    print(f"  a LoRA step takes {seconds['LoRA'] / seconds['full']:.2f}x a full one (bar 1.08)")
    merged = models["LoRA"]
    merge(merged)
    remove_adapters(merged)
    plain = hf.smollm2()[0]
    with torch.inference_mode():
        reading, _ = in_turns(
            {"merged": lambda: merged(batch.tokens), "base": lambda: plain(batch.tokens)}, ROUNDS
        )
    print(f"  merged, reading takes {reading['merged'] / reading['base']:.2f}x", flush=True)


def nf4(n_weights: int) -> None:
    """How many bytes of float32 a second become NF4 with double quantization, and come back."""
    weight = torch.randn(n_weights // 4096, 4096, generator=torch.Generator().manual_seed(0))
    rounded = quantize(weight, Format("nf4", 4, 64, double=True))
    seconds, _ = in_turns(
        {"to": lambda: quantize(weight, rounded.format), "back": lambda: dequantize(rounded)}, 3
    )
    gigabytes = weight.nbytes / 1e9
    print(
        f"  NF4, {weight.numel() / 1e6:.0f}M weights: to {gigabytes / seconds['to']:.2f} GB/s, "
        f"back {gigabytes / seconds['back']:.2f} GB/s, "
        f"both {gigabytes / (seconds['to'] + seconds['back']):.2f} GB/s of float32"
    )


def main(n_rows: int = 4, n_tokens: int = 128, n_weights: int = 100_000_000) -> None:
    print(f"fine-tuning SmolLM2, {n_rows} rows of {n_tokens}, {torch.get_num_threads()} thread(s)")
    memory(n_rows, n_tokens)
    speed(n_rows, n_tokens)
    nf4(n_weights)


if __name__ == "__main__":
    if sys.argv[1:2] == ["steps"]:
        make_step = step_of(prepared(sys.argv[2]), some_batch(*map(int, sys.argv[3:])))
        for _ in range(2):
            make_step()
    else:
        main(*map(int, sys.argv[1:]))

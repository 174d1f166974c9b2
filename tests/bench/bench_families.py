"""Published shapes beside `transformers`: training steps of tiny models, and reading a long text.

Forward and backward of a Llama and a Mixtral shape with the same weights, the library's eager
attention; the DeepSeek shape is in bench_latent. Then SmolLM2 reads 1,024 tokens, up to the scores
of the next one and a filled cache, beside the library's eager attention and its default. Both
sides then spend over nine tenths of the time in the same two kernels, matrix products and fused
attention, so against the default there is next to nothing to win.
"""

import tempfile

import torch
from bench_decode import as_transformers
from torch.nn.functional import cross_entropy
from turns import in_turns

from minillm.infer.engine import prefill
from minillm.model import hf

VOCAB, LAYERS, WIDTH, HEADS, KV_HEADS = 512, 4, 256, 8, 4
BATCH, CONTEXT = 4, 256
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT, "use_cache": False, "attn_implementation": "eager",
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
N_PROMPT = 1024


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=688))


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            **SHAPE, intermediate_size=256, num_local_experts=8, num_experts_per_tok=2,
            output_router_logits=False, sliding_window=None,
        )
    )  # fmt: skip


def same_weights(theirs: torch.nn.Module) -> torch.nn.Module:
    """Our model with the weights of theirs, by way of a folder as it lies on the hub."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return hf.from_huggingface(folder).requires_grad_(True).train()


def training(name: str, theirs: torch.nn.Module) -> None:
    """Seconds of one forward and backward pass, ours and theirs in turns."""
    theirs.train()
    ours = same_weights(theirs)
    tokens, targets = torch.randint(VOCAB, (2, BATCH, CONTEXT))

    def step(model, logits_of) -> float:
        model.zero_grad(set_to_none=True)
        loss = cross_entropy(logits_of(model(tokens)).flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item()

    runs = {
        "ours": lambda: step(ours, lambda logits: logits),
        "transformers": lambda: step(theirs, lambda output: output.logits),
    }
    losses = [run() for run in runs.values()]
    assert abs(losses[0] - losses[1]) < 1e-3, f"not the same model: losses {losses}"
    seconds, _ = in_turns(runs)
    print(
        f"{name} shape {LAYERS}L/{WIDTH}d/T{CONTEXT}/B{BATCH} forward and backward: "
        f"{BATCH * CONTEXT / seconds['ours']:,.0f} tokens/s, "
        f"{seconds['transformers'] / seconds['ours']:.2f}x transformers (bar 1.15)"
    )


@torch.inference_mode()
def reading() -> None:
    """SmolLM2 over a prompt of 1,024 tokens."""
    ours, _ = hf.smollm2()
    theirs = as_transformers(ours)
    prompt = torch.randint(ours.config.vocab_size, (1, N_PROMPT))
    results = {}

    def read_ours() -> None:
        results["ours"], _ = prefill(ours, prompt.tolist(), len_new=1)

    def read_theirs(kind: str) -> None:
        theirs.set_attn_implementation(kind)
        results[kind] = theirs(prompt, use_cache=True, logits_to_keep=1).logits[:, -1]

    kinds = ("eager", "sdpa")
    runs = {kind: lambda kind=kind: read_theirs(kind) for kind in kinds}
    seconds, _ = in_turns({"ours": read_ours, **runs})
    for kind in kinds:
        torch.testing.assert_close(results["ours"], results[kind], atol=1e-2, rtol=1e-3)
    print(
        f"SmolLM2 reads {N_PROMPT} tokens: {N_PROMPT / seconds['ours']:,.0f} tokens/s, "
        f"{seconds['eager'] / seconds['ours']:.2f}x transformers with eager attention (bar 1.1), "
        f"{seconds['sdpa'] / seconds['ours']:.2f}x with its fused one"
    )


def main() -> None:
    training("Llama", llama())
    training("Mixtral", mixtral())
    reading()


if __name__ == "__main__":
    main()

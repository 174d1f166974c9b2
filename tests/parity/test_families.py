"""Our Transformer gives the logits and gradients of `transformers`, for random weights.

Every parameter is randomised first: default initialisation (norms 1, biases 0) hides bugs. Rows
are ragged, sizes odd, and each family is compared in logits and in the gradient of every weight.
"""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minillm.model import hf
from minillm.model.cache import KVCache
from minillm.model.maps import attention_maps
from minillm.model.transformer import Transformer

LENGTHS = (11, 4, 7)
FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61, n_embd=36, n_layer=3, n_head=3, n_positions=19, layer_norm_epsilon=0.1,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        )
    ),
    "llama_grouped": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=36, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, head_dim=10, intermediate_size=44, rms_norm_eps=0.1,
            max_position_embeddings=19, attn_implementation="eager",
        )
    ),
    "llama_tied": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61, hidden_size=40, num_hidden_layers=2, num_attention_heads=5,
            num_key_value_heads=5, intermediate_size=44, max_position_embeddings=19,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            tie_word_embeddings=True, attn_implementation="eager",
        )
    ),
}  # fmt: skip


def randomised(build) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.5) + 0.1)
    return model


@pytest.fixture(params=FAMILIES)
def pair(request):
    theirs = randomised(FAMILIES[request.param])
    ours = hf.from_published(
        theirs.config.to_dict(), {k: v.clone() for k, v in theirs.state_dict().items()}
    )
    return ours.requires_grad_(True), theirs


@pytest.fixture
def ragged():
    tokens = torch.randint(61, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return tokens.masked_fill(~real, 0), real


def test_logits_and_gradients_agree_on_a_ragged_batch(pair, ragged):
    ours, theirs = pair
    tokens, real = ragged
    our_logits = ours(tokens)[real]
    their_logits = theirs(tokens, attention_mask=real.long()).logits[real]
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-4, atol=1e-5)

    # A random projection of the logits reaches every weight with a gradient of its own.
    direction = torch.randn(our_logits.shape, generator=torch.Generator().manual_seed(2))
    (our_logits * direction).sum().backward()
    (their_logits * direction).sum().backward()
    grads = hf.from_published(
        theirs.config.to_dict(),
        {k: p.grad for k, p in theirs.named_parameters()},
    ).state_dict()
    for name, p in ours.named_parameters():
        error = (p.grad - grads[name]).norm() / grads[name].norm()
        assert error < 1e-4, f"gradient of {name} differs by {error:.1e} of its size"


def test_cached_decoding_is_the_full_forward_at_every_position(pair, ragged):
    """Ragged prefill, then token by token, then a chunk of three, then with a row dropped."""
    ours, _ = pair
    tokens, _ = ragged
    tokens = torch.randint(61, (3, 19), generator=torch.Generator().manual_seed(3))
    full = ours(tokens)
    cache = KVCache(ours.config, batch_size=3, max_length=22)
    at = list(LENGTHS)
    prefill = ours(tokens[:, : max(at)], cache=cache)
    cache.advance(at)
    for row, n in enumerate(at):
        torch.testing.assert_close(prefill[row, :n], full[row, :n], rtol=1e-4, atol=1e-5)
    rows = torch.arange(3)
    for n_new in (1, 1, 3, 1):
        new = torch.stack([tokens[row, n : n + n_new] for row, n in zip(rows, at, strict=True)])
        logits = ours(new, cache=cache)
        cache.advance(n_new)
        for i, (row, n) in enumerate(zip(rows, at, strict=True)):
            torch.testing.assert_close(logits[i], full[row, n : n + n_new], rtol=1e-4, atol=1e-5)
        at = [n + n_new for n in at]
        if n_new == 3:
            cache.keep(torch.tensor([True, False, True]))
            rows, at = rows[[0, 2]], [at[0], at[2]]


def test_chunked_prefill_of_equal_rows_is_the_full_forward(pair):
    ours, _ = pair
    tokens = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(4))
    full, cache, start = ours(tokens), KVCache(ours.config, 2, 17), 0
    for n_new in (5, 1, 7, 4):
        logits = ours(tokens[:, start : start + n_new], cache=cache)
        cache.advance(n_new)
        expected = full[:, start : start + n_new]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        start += n_new


def test_documents_packed_in_one_row_do_not_see_each_other(pair):
    ours, _ = pair
    tokens = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[0] * 5 + [1] * 7])
    packed = ours(tokens, documents=documents)
    first = ours(tokens[:, :5])
    torch.testing.assert_close(packed[:, :5], first, rtol=1e-4, atol=1e-5)
    # RoPE sees distances only, so a document may start anywhere; learned positions may not.
    if ours.config.position == "rope":
        second = ours(tokens[:, 5:])
        torch.testing.assert_close(packed[:, 5:], second, rtol=1e-3, atol=1e-4)


def test_saved_and_sharded_weights_come_back_equal(pair, tmp_path, ragged):
    ours, theirs = pair
    tokens, _ = ragged
    ours.save(tmp_path / "ours.safetensors")
    assert torch.equal(Transformer.load(tmp_path / "ours.safetensors")(tokens), ours(tokens))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert torch.equal(hf.from_huggingface(tmp_path / "theirs")(tokens), ours(tokens))


def test_folders_that_do_not_fit_are_refused_with_every_problem_named(pair, tmp_path):
    _, theirs = pair
    theirs.save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    tensors = dict(theirs.state_dict())
    first = next(name for name in tensors if "norm" in name or "ln_" in name)
    tensors["made.up"] = tensors.pop(first)
    with pytest.raises(ValueError, match=r"missing .*surplus .*made\.up"):
        hf.from_published(published, tensors)
    with pytest.raises(ValueError, match=r"'mamba' is not known; known are \['bert', .*'t5'\]"):
        hf.from_published(published | {"model_type": "mamba"}, {})
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="pickled weights are never loaded"):
        hf.from_huggingface(tmp_path)


def test_attention_maps_are_those_transformers_returns(pair):
    ours, theirs = pair
    tokens = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(6))
    expected = torch.stack(theirs(tokens, output_attentions=True).attentions)
    torch.testing.assert_close(attention_maps(ours, tokens), expected, rtol=1e-4, atol=1e-5)
    assert not any(block.attention._forward_pre_hooks for block in ours.blocks)

"""GGUF files we write, read by the `gguf` package and by ourselves."""

import gguf
import numpy as np
import pytest
import torch

from minillm.adapt.gguf_files import save_gguf
from minillm.adapt.quant_model import dequantize_linears, packed_gguf
from minillm.data.bpe import GPT2_PATTERN
from minillm.data.tokenizer import Tokenizer
from minillm.model import hf
from minillm.model.config import llama_config
from minillm.model.gguf import GGUF
from minillm.model.gguf_llama import gguf_config, gguf_name
from minillm.model.transformer import Transformer

TEXT = "What is it? It is tea, and 12 cups of it. Ça va"


@pytest.fixture(scope="module")
def tokenizer():
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Tokenizer.train([TEXT], 270, special_tokens=specials, pattern=GPT2_PATTERN)


def randomised(tokenizer, **changes):
    settings = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96}
    generator = torch.Generator().manual_seed(0)
    config = llama_config(tokenizer.vocab_size, **settings | changes, max_length=77)
    model = Transformer(config, generator)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3 + 0.1
    return model


@pytest.fixture(scope="module", params=[(True, 4), (False, 4), (True, 8)], ids=str)
def written(request, tokenizer, tmp_path_factory):
    tied, bits = request.param
    model = randomised(tokenizer, tie_embeddings=tied)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    save_gguf(model, path, tokenizer, bits)
    return model, path, bits


def test_the_gguf_package_reads_the_weights(written):
    """And would have rounded them as we did, up to ties."""
    model, path, bits = written
    file = gguf.GGUFReader(path)
    names = {tensor.name for tensor in file.tensors}
    assert ("output.weight" in names) != model.config.tie_embeddings
    weights = hf.unpack(model, list(hf.FAMILIES["llama"].table(model.config)))
    ours = {gguf_name(name): weight for name, weight in weights.items()}
    assert names == ours.keys()
    for tensor in file.tensors:
        weight = ours[tensor.name]
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if part in tensor.name:  # the converter of llama.cpp, written down again
                weight = weight.reshape(heads, 2, -1, 64).transpose(1, 2).reshape(weight.shape)
        weight = weight.detach().numpy()
        theirs = gguf.quants.quantize(weight, tensor.tensor_type)
        mine = tensor.data.reshape(theirs.shape)
        a, b = (gguf.quants.dequantize(x, tensor.tensor_type) for x in (mine, theirs))
        assert np.isclose(a, b, atol=1e-6).mean() > 0.999
        assert np.abs(a - weight).max() < (0.1 if bits == 4 else 0.01)
    kinds = {tensor.tensor_type.name for tensor in file.tensors}
    assert kinds == {"F32", "Q8_0"} | ({"Q4_1"} if bits == 4 else set())


def test_we_read_the_same_model_back(written, tokenizer):
    model, path, bits = written
    back, words = hf.from_pretrained(path)
    assert gguf_config(GGUF(path)).to_dict() == back.config.to_dict()
    assert words.encode(TEXT) == tokenizer.encode(TEXT)
    assert words.special_tokens == tokenizer.special_tokens
    assert words.end_of_text == tokenizer.end_of_text
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    packed = packed_gguf(GGUF(path))
    torch.testing.assert_close(packed(tokens), back(tokens))
    dequantize_linears(packed)
    torch.testing.assert_close(packed(tokens), back(tokens))
    # Rounded, so not the same; much closer than another model would be.
    ours, theirs = model(tokens).flatten(), back(tokens).flatten()
    assert torch.corrcoef(torch.stack((ours, theirs)))[0, 1] > (0.95 if bits == 4 else 0.999)


def test_rounding_again_changes_nothing(written, tokenizer, tmp_path):
    """A scale in float16 moves a weight by a thousandth of its group's width at most."""
    _, path, bits = written
    first, _ = hf.from_pretrained(path)
    save_gguf(first, tmp_path / "again.gguf", tokenizer, bits)
    again, _ = hf.from_pretrained(tmp_path / "again.gguf")
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_what_the_file_cannot_say_is_refused(tokenizer, tmp_path):
    path = tmp_path / "no.gguf"
    with pytest.raises(ValueError, match="rows of 40: expected a multiple of 32"):
        save_gguf(randomised(tokenizer, d_ff=40), path, tokenizer)
    with pytest.raises(ValueError, match="cannot express this model: head_dim=32 would come back"):
        save_gguf(randomised(tokenizer, head_dim=32), path, tokenizer)
    with pytest.raises(ValueError, match="bits=5: expected 4 or 8"):
        save_gguf(randomised(tokenizer), path, tokenizer, 5)
    other = Tokenizer.train([TEXT], 270)
    with pytest.raises(ValueError, match="cuts text in a way that has no name"):
        save_gguf(randomised(tokenizer), path, other)
    assert not list(tmp_path.iterdir())

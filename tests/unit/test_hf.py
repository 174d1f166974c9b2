"""Import and export of published models: layouts, refusals, files, and the hub (no network)."""

import dataclasses
import json

import gguf
import huggingface_hub
import pytest
import torch

from minillm.data.tokenizer import Tokenizer
from minillm.data.wordpiece import WordPiece
from minillm.model import hf, layouts
from minillm.model.config import Rope, RopeScaling, gpt2_config, llama_config
from minillm.model.families import FAMILIES
from minillm.model.gguf_llama import gguf_name
from minillm.model.transformer import Transformer

SMALL = {"d_model": 12, "n_layers": 2, "n_heads": 3, "d_ff": 20, "max_length": 9}


@pytest.fixture
def model():
    return Transformer(llama_config(300, **SMALL, n_kv_heads=1))


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["some text to learn from"], 280)


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    hf.to_huggingface(model, tmp_path / "model", "llama", tokenizer)
    return tmp_path / "model"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Layouts --------------------------------------------------------------------------------------

LAYOUTS = {
    "same": (layouts.SAME, (4, 3)),
    "transposed": (layouts.TRANSPOSED, (4, 3)),
    "transposed_bias": (layouts.TRANSPOSED, (4,)),
    "plus_one": (layouts.PLUS_ONE, (5,)),
    "rows": (layouts.rows(6, 2, 2), (10, 3)),
    "without_rows": (layouts.without_rows(2), (4, 3)),
    "fused_heads": (layouts.fused_heads(6, 2, 3), (30, 5)),
    "fused_heads_bias": (layouts.fused_heads(3, 3, 2), (18,)),
    "experts": (layouts.experts(3), (3, 4, 5)),
    "gated_experts": (layouts.experts(3, 2), (3, 8, 5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_packing_undoes_unpacking(name):
    layout, shape = LAYOUTS[name]
    ours = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    assert torch.equal(layout.pack(layout.unpack(ours)), ours)
    shapes = [part.shape for part in layout.unpack(torch.empty(shape, device="meta"))]
    assert shapes == [part.shape for part in layout.unpack(ours)]


# Refusals -------------------------------------------------------------------------------------

REFUSED = {
    "llama": [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scales its rotations in a way"),
        ({"hidden_act": "relu2"}, r"hidden_act='relu2'; known are"),
        ({"attention_bias": True, "mlp_bias": False}, "both or neither"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"num_hidden_layers": "two"}, "n_layers"),
        ({"model_type": "mamba"}, r"'mamba' is not known; known are \['bert', .*'t5'\]"),
        ({"hidden_size": 24}, "embed_tokens.weight has shape .300, 12., expected .300, 24."),
    ],
    "qwen2": [
        ({"layer_types": ["linear_attention"] * 2, "use_sliding_window": True}, "layers of type"),
    ],
    "stablelm": [({"qk_layernorm": True}, "qk_layernorm=True")],
    "deepseek_v2": [({"norm_topk_prob": True}, "norm_topk_prob=True")],
}


@pytest.mark.parametrize(
    ("family", "change", "words"), [(k, *case) for k, cases in REFUSED.items() for case in cases]
)
def test_what_we_cannot_express_is_refused(folder, family, change, words):
    with pytest.raises(ValueError, match=words):
        edit(folder, **{"model_type": family, "layer_norm_eps": 0.1, **change})
        hf.from_huggingface(folder)


def test_a_field_that_is_missing_is_named(folder):
    fields = json.loads((folder / "config.json").read_text())
    del fields["vocab_size"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="no 'vocab_size', which a llama needs"):
        hf.from_huggingface(folder)


@pytest.mark.parametrize(
    ("config", "family", "words"),
    [
        (gpt2_config(30, **SMALL), "llama", "position='learned' would come back as 'rope'"),
        (llama_config(30, **SMALL, window=4), "llama", "window=4 would come back as None"),
        (llama_config(30, **SMALL), "lama", "'lama' is not known; known are"),
        (llama_config(30, **SMALL, rope=Rope(scaling=RopeScaling("ntk", 2.0))), "llama", "ntk"),
    ],
)
def test_a_model_is_not_exported_as_what_it_is_not(config, family, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        hf.to_huggingface(Transformer(config), tmp_path / "out", family)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(model, dtype):
    fields = hf.published_config(model.config, "llama")
    tensors = hf.unpack(model, list(FAMILIES["llama"].table(model.config)))
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    with pytest.raises(ValueError, match=rf"model\.norm\.weight is stored as {dtype}"):
        hf.from_published(fields, tensors)


# Files ----------------------------------------------------------------------------------------


def test_half_precision_weights_become_float32(model):
    fields = hf.published_config(model.config, "llama")
    tensors = hf.unpack(model, list(FAMILIES["llama"].table(model.config)))
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    loaded = hf.from_published(fields, half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.bfloat16().float())


def test_a_folder_that_is_not_empty_is_not_overwritten(model, folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="is not empty"):
        hf.to_huggingface(model, folder, "llama")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf.to_huggingface(model, tmp_path / "out", "llama")
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders_are_refused(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        hf.from_huggingface(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="points outside"):
        hf.from_huggingface(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="cannot be read"):
        hf.from_huggingface(folder)
    index.unlink()
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are never loaded"):
        hf.from_huggingface(folder)
    (folder / "config.json").unlink()
    for load in (hf.from_huggingface, hf.from_pretrained):
        with pytest.raises(ValueError, match=r"holds no config.json"):
            load(folder)


# from_pretrained ------------------------------------------------------------------------------


def test_a_folder_gives_model_and_tokenizer(model, tokenizer, folder):
    loaded, theirs = hf.from_pretrained(folder)
    tokens = torch.tensor([tokenizer.encode("some text")])
    assert torch.equal(loaded(tokens), model(tokens)) and loaded.config == model.config
    assert theirs.encode("learn from text") == tokenizer.encode("learn from text")
    assert theirs.end_of_text == tokenizer.end_of_text


def test_the_end_of_a_text_is_the_one_the_folder_names(folder):
    tokenizer = Tokenizer.train(["text"], 260, special_tokens=("<|endoftext|>", "<|im_end|>"))
    tokenizer.save(folder / "tokenizer.json")
    for end in ("<|im_end|>", {"content": "<|im_end|>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        assert hf.from_pretrained(folder)[1].end_of_text == 1


def test_what_ends_a_text_travels_with_the_model(model, tmp_path):
    tokenizer = Tokenizer.train(["x"], 259, special_tokens=("<|endoftext|>", "<|im_end|>"))
    tokenizer = Tokenizer(
        tokenizer.tokens, merges=[], special_tokens=tokenizer.special_tokens,
        end_of_text="<|im_end|>",
    )  # fmt: skip
    hf.to_huggingface(model, tmp_path / "out", "llama", tokenizer)
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 1
    assert hf.from_pretrained(tmp_path / "out")[1].end_of_text == 1


def test_half_precision_is_written_as_it_is(model, tmp_path):
    hf.to_huggingface(model.bfloat16(), tmp_path / "out", "llama")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    assert fields["dtype"] == "bfloat16" and fields["eos_token_id"] is None
    assert torch.equal(
        hf.from_huggingface(tmp_path / "out").embedding.weight, model.embedding.weight.float()
    )


def test_a_folder_with_wordpieces(folder):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "text"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = hf.from_pretrained(folder)[1]
    assert isinstance(tokenizer, WordPiece) and tokenizer.encode("Text") == [2, 5, 3]


def test_a_name_is_fetched_from_the_hub_without_anything_that_runs(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, **patterns):
        asked.update(name=name, **patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model, _ = hf.from_pretrained("someone/Some-Model_1.5")
    assert isinstance(model, Transformer) and asked["name"] == "someone/Some-Model_1.5"
    assert asked["allow_patterns"] == ["*.safetensors", "*.json", "vocab.txt"]
    assert asked["ignore_patterns"] == ["*/*", "consolidated*"]


def test_what_the_hub_does_not_give_is_one_clear_error(monkeypatch):
    def snapshot_download(name, **_):
        raise OSError("404: no such repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match="hub did not give 'some/one': 404"):
        hf.from_pretrained("some/one")
    for name in ("lama", "a/b/c", "../x y", "missing/model.gguf", ""):
        with pytest.raises(ValueError, match=r"expected a folder, a \.gguf file"):
            hf.from_pretrained(name) if name else hf.download(name)


def test_tokenizers_of_other_kinds_are_refused(folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(ValueError, match="'Unigram', expected byte-level BPE"):
        hf.from_pretrained(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.json; from_huggingface loads the model"):
        hf.from_pretrained(folder)


# GGUF -----------------------------------------------------------------------------------------


def write_gguf(path, model, **extra):
    """A small Llama in GGUF, q and k in the converter's order."""
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.n_layers)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_context_length(c.max_length)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_token_list([f"t{i}" for i in range(c.vocab_size)])
    tensors = hf.unpack(model, list(FAMILIES["llama"].table(c)))
    for name, tensor in tensors.items():
        for part, n in (("q_proj", c.n_heads), ("k_proj", c.n_kv_heads)):
            if part in name:
                tensor = tensor.view(n, 2, -1, c.d_model).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(gguf_name(name), tensor.contiguous().numpy())
    for name, tensor in extra.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf.GGUF(path)


def test_a_gguf_file_gives_the_same_model(model, tmp_path):
    config = dataclasses.replace(model.config, norm_eps=0.125)
    model = Transformer.from_weights(config, model.state_dict())
    loaded = hf.from_gguf(write_gguf(tmp_path / "model.gguf", model))
    assert loaded.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_tensors_of_a_gguf_file_that_nobody_asked_for_are_named(model, tmp_path):
    """Llama 3.1 keeps its slower rotations in one; leaving it out would give wrong numbers."""
    file = write_gguf(tmp_path / "model.gguf", model, **{"rope_freqs.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"surplus rope_freqs.weight"):
        hf.from_gguf(file)

"""What holds for a model of any family: packing, files and refusals.

Logits, gradients, decoding and attention maps of each are compared in `test_every_family`.
"""

import json

import cases_sparse as sparse
import pytest
import torch
from cases_classic import gpt2
from cases_llama import CASES
from pairs import load, ragged, random_tokens, randomised
from safetensors.torch import load_file, save_file

from minillm.model import hf
from minillm.model.transformer import Transformer


@pytest.fixture(params=["gpt2", "llama", "llama_tied_biases"])
def pair(request, tmp_path):
    theirs = randomised(gpt2() if request.param == "gpt2" else CASES[request.param]())
    return load(theirs, tmp_path / "saved"), theirs


def test_documents_packed_in_one_row_do_not_see_each_other(pair):
    ours, _ = pair
    tokens = random_tokens(1, 12, seed=5)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    packed = ours(tokens, documents=documents)
    first = ours(tokens[:, :5])
    torch.testing.assert_close(packed[:, :5], first, rtol=1e-4, atol=1e-5)
    # RoPE sees distances only, so a document may start anywhere; learned positions may not.
    if ours.config.position == "rope":
        second = ours(tokens[:, 5:])
        torch.testing.assert_close(packed[:, 5:], second, rtol=1e-3, atol=1e-4)


def test_saved_and_sharded_weights_come_back_equal(pair, tmp_path):
    ours, theirs = pair
    tokens, _ = ragged()
    ours.save(tmp_path / "ours.safetensors")
    assert torch.equal(Transformer.load(tmp_path / "ours.safetensors")(tokens), ours(tokens))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert torch.equal(hf.from_huggingface(tmp_path / "theirs")(tokens), ours(tokens))


def test_what_we_shard_loads_in_transformers(pair, tmp_path):
    ours, theirs = pair
    family = theirs.config.model_type
    hf.to_huggingface(ours, tmp_path / "ours", family, shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    again = type(theirs).from_pretrained(tmp_path / "ours")
    expected = theirs.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def test_files_of_older_versions_name_rotations_otherwise(tmp_path):
    """The keys ``rope_theta`` and ``rope_scaling`` of most files on the hub."""
    theirs = randomised(CASES["llama_3"]())
    ours = load(theirs, tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    rope = published.pop("rope_parameters")
    published["rope_theta"] = rope.pop("rope_theta")
    published["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    assert hf.from_published(published, theirs.state_dict()).config == ours.config


def test_modules_for_further_tokens_in_a_deepseek_file_are_left_out(tmp_path):
    theirs = randomised(sparse.CASES["deepseek_v3"]())
    ours = load(theirs, tmp_path)
    file = tmp_path / "model.safetensors"
    further = {"model.layers.3.eh_proj.weight": torch.ones(36, 72)}
    save_file(load_file(file) | further, file, metadata={"format": "pt"})
    tokens, _ = ragged()
    assert torch.equal(hf.from_huggingface(tmp_path)(tokens), ours(tokens))


def test_tensors_that_do_not_fit_are_refused_with_every_problem_named(pair, tmp_path):
    _, theirs = pair
    published, tensors = theirs.config.to_dict(), dict(theirs.state_dict())
    missing, misshapen = [name for name in tensors if "norm" in name or "ln_" in name][:2]
    tensors["made.up"] = tensors.pop(missing)
    tensors[misshapen] = tensors[misshapen][:-1]
    with pytest.raises(ValueError) as error:
        hf.from_published(published, tensors)
    for words in (f"missing {missing}", "surplus made.up", f"{misshapen} has shape (35,)"):
        assert words in str(error.value)

"""What older files of the classic families call otherwise, and what these families refuse."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from cases_classic import CASES
from pairs import our_scores, randomised
from safetensors.torch import load_file

from minillm.model import hf
from minillm.model.families import bert, bloom, falcon, gpt_neox, opt, starcoder2, t5
from minillm.model.families.common import Fields
from minillm.model.layouts import fused_heads, without_rows


def published(name):
    """What a folder of a tiny model holds: its config.json and its tensors."""
    with TemporaryDirectory() as folder:
        randomised(CASES[name]()).save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        return config, load_file(Path(folder) / "model.safetensors")


def renamed(tensors, old, new):
    return {name.replace(new, old): tensor for name, tensor in tensors.items()}


def check_same(name, config, tensors):
    """The model read from the older form is the one read from today's."""
    expected = our_scores(hf.from_published(*published(name)))
    assert torch.equal(our_scores(hf.from_published(config, tensors)), expected)


def test_gpt_neox_with_stored_masks_and_the_old_names_of_its_rotation():
    config, tensors = published("gpt_neox")
    rope = config.pop("rope_parameters")
    config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope["partial_rotary_factor"]}
    layer = "gpt_neox.layers.0.attention"
    tensors |= {f"{layer}.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    tensors[f"{layer}.rotary_emb.inv_freq"] = torch.ones(4)
    check_same("gpt_neox", config, tensors)


def test_opt_and_bloom_without_their_first_prefix():
    config, tensors = published("opt")
    check_same("opt", config, renamed(tensors, "decoder.", "model.decoder."))
    config, tensors = published("bloom")
    config["n_embed"], config["num_attention_heads"] = config.pop("hidden_size"), 4
    del config["n_head"]
    check_same("bloom", config, renamed(tensors, "", "transformer."))


@pytest.mark.parametrize("name", ["bert", "bert_masked_lm"])
def test_bert_with_the_first_names_of_its_norms(name):
    config, tensors = published(name)
    tensors = renamed(renamed(tensors, "Norm.gamma", "Norm.weight"), "Norm.beta", "Norm.bias")
    tensors |= {"bert.embeddings.position_ids": torch.arange(19)[None]}
    tensors |= {"cls.seq_relationship.weight": torch.ones(2, 36)}
    check_same(name, config, tensors)


def test_t5_says_in_two_ways_that_its_output_is_not_the_embedding():
    config, tensors = published("t5_v1_1")
    del config["scale_decoder_outputs"]
    check_same("t5_v1_1", config | {"tie_word_embeddings": False}, tensors)
    config, tensors = published("t5")
    del config["scale_decoder_outputs"], config["tie_word_embeddings"]
    layer = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    check_same("t5", config, tensors | {layer: torch.ones(32, 3)})


REFUSED = {
    "opt-350m's width": (opt, "opt", {"word_embed_proj_dim": 18}, "opt-350m.*take opt-125m"),
    "opt-350m's norms": (opt, "opt", {"do_layer_norm_before": False}, "norms after each sum"),
    "neox without biases": (gpt_neox, "gpt_neox", {"attention_bias": False}, "attention_bias"),
    "neox activation": (gpt_neox, "gpt_neox", {"hidden_act": "tanh"}, "hidden_act='tanh'; known"),
    "bloom residual": (
        bloom, "bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm=True"
    ),
    "falcon half parallel": (falcon, "falcon_40b", {"parallel_attn": False}, "parallel_attn=False"),
    "bert decoder": (bert, "bert", {"is_decoder": True}, "is_decoder=True"),
    "bert positions": (bert, "bert", {"position_embedding_type": "relative_key"}, "relative_key"),
    "bert segments": (bert, "bert", {"type_vocab_size": 3}, "type_vocab_size=3: only 2"),
    "t5 buckets": (t5, "t5", {"relative_attention_num_buckets": 16}, "num_buckets=16: only 32"),
    "t5 mlp": (t5, "t5", {"feed_forward_proj": "tanh"}, "feed_forward_proj='tanh'; known are"),
    "starcoder2 gate": (starcoder2, "starcoder2", {"hidden_act": "silu"}, "hidden_act='silu'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_settings_we_cannot_express_are_refused_by_name(case):
    family, name, changes, words = REFUSED[case]
    config = Fields(CASES[name]().config.to_dict())
    family.read(config)
    with pytest.raises(ValueError, match=words):
        family.read(Fields(config | changes))


def test_a_family_without_a_needed_field_and_a_model_that_a_family_cannot_express(tmp_path):
    config, tensors = published("bloom")
    del config["layer_norm_epsilon"]
    with pytest.raises(ValueError, match="no 'layer_norm_epsilon', which a bloom needs"):
        hf.from_published(config, tensors)
    model = hf.from_published(*published("bloom"))
    with pytest.raises(ValueError, match=r"'opt' cannot express this model.*position='alibi'"):
        hf.to_huggingface(model, tmp_path / "opt", "opt")
    assert not (tmp_path / "opt").exists()


def test_fused_heads_by_hand():
    """Two key/value heads of one channel, two query heads each: q q k v, q q k v."""
    layout = fused_heads(n_heads=4, n_kv_heads=2, head_dim=1)
    fused = torch.tensor([[1], [2], [10], [100], [3], [4], [20], [200]])
    ours = torch.tensor([[1], [2], [3], [4], [10], [20], [100], [200]])
    assert torch.equal(layout.pack([fused]), ours)
    assert torch.equal(layout.unpack(ours)[0], fused)


def test_rows_nobody_reads_are_zero_when_written():
    layout = without_rows(2)
    theirs = torch.tensor([[9], [9], [1], [2]])
    assert layout.pack([theirs]).tolist() == [[1], [2]]
    assert layout.unpack(torch.tensor([[1], [2]]))[0].tolist() == [[0], [0], [1], [2]]

"""A run's file: read, checked, and refused in words that say what to change."""

import json
from pathlib import Path

import pytest
import torch

from minillm.data import stories
from minillm.model.config import MoE, gpt2_config, llama_config
from minillm.train.__main__ import meeting_place
from minillm.train.layout import Layout
from minillm.train.run_config import Parallel, open_text, read_config

EXAMPLES = Path(__file__).parents[2] / "docs/train"
FILE = """
folder = "runs/x"
[model]
d_model = 24
n_heads = 4
n_layers = 2
[data]
stories = {n = 128, seed = 0}
tokenizer = "stories"
block_size = 8
batch_size = 4
[train]
steps = 10
lr = 0.01
"""


@pytest.fixture
def read(tmp_path):
    def read(*changes, text=FILE):
        (tmp_path / "run.toml").write_text(text)
        return read_config(tmp_path / "run.toml", changes)

    return read


def test_models_are_the_families_with_changes(read):
    V, shape = len(stories.vocabulary()), {"d_model": 24, "n_heads": 4, "n_layers": 2}
    assert read().model_config() == llama_config(V, **shape)
    assert read('model.family="gpt2"').model_config() == gpt2_config(V, **shape)
    changes = ("model.n_kv_heads=2", "model.rope={base=5e5}", 'data.tokenizer="bytes"')
    config = read(*changes, "model.moe={n_experts=4, n_active=2, d_expert=8}").model_config()
    assert (config.vocab_size, config.n_kv_heads, config.head_dim) == (257, 2, 6)
    assert config.rope.base == 5e5 and config.moe == MoE(4, 2, 8)


def test_changes_replace_what_the_file_says(read):
    config = read("train.steps=3", 'folder="other"', "parallel.tensor=2", "train.guard=true")
    assert (config.train.steps, config.train.lr, str(config.folder)) == (3, 0.01, "other")
    assert config.parallel.tensor == 2
    arguments = config.train.arguments()
    assert arguments["guard"].patience >= 1 and arguments["checkpoint_every"] == 100


def test_the_rest_of_the_processes(read):
    assert Parallel().layout(1) == Layout()
    assert Parallel().layout(4) == Layout(shard=4)
    assert Parallel(rest="data").layout(4) == Layout(data=4)
    assert Parallel(tensor=2, shard=2, rest="data").layout(8) == Layout(2, 2, 2)
    assert Parallel(tensor=2, shard=2).layout(8) == Layout(shard=4, tensor=2)
    with pytest.raises(ValueError, match=r"6 processes, and .* 4: expected a multiple"):
        Parallel(tensor=4).layout(6)


def test_text_from_files_and_from_a_grammar(read, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("né", "b")))
    source = f'data.load={{path="json", data_files="{tmp_path}/a.jsonl", split="train"}}'
    data = read(source, 'data.tokenizer="bytes"', text=FILE.replace("stories =", "#")).data
    rows, text = list(open_text(data)), data.text()
    assert [row["text"] for row in rows] == ["né", "b"]
    assert len(text.encode("né")) == 3 and max(text.encode("né")) < text.vocab_size == 257
    assert text.end_token not in text.encode("né")

    drawn = [row["text"] for row in open_text(read().data)]
    assert len(set(drawn)) > 100 and drawn == [row["text"] for row in open_text(read().data)]
    other = [row["text"] for row in open_text(read("data.stories.seed=1").data)]
    assert len(set(drawn) & set(other)) < 10
    assert drawn[0] == stories.sample_story(torch.Generator().manual_seed(0)).text


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_the_examples_are_complete(file):
    config = read_config(file, ['data.tokenizer="bytes"'])
    assert config.model_config().max_length >= config.data.block_size
    assert config.data.batch_size % config.data.streams == 0 and config.train.arguments()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.step=3", r"\[train\] has no \['step'\]"),
        ("seeds=3", r"has no \['seeds'\]"),
        ('model.family="bert"', "family='bert'"),
        ("model.d_modl=3", "d_modl"),
        ('data.load={path="json"}', "either load or stories"),
        ('train.optimizer="sgd"', "optimizer='sgd'"),
        ('parallel.rest="tensor"', "rest='tensor'"),
        ("train.steps=", "no valid TOML"),
        ("validation.batches=2", r"\[validation\] lacks \['every'\]"),
    ],
)
def test_refuses(read, change, words):
    with pytest.raises(ValueError, match=words):
        config = read(change)
        config.model_config()
        config.parallel.layout(2)


def test_a_file_that_lacks_a_table(read):
    with pytest.raises(ValueError, match=r"lacks \['train'\]"):
        read(text=FILE.split("[train]")[0])


def test_biases_are_balanced_only_where_there_are_some(read):
    experts = "model.moe={n_experts=4, n_active=2, d_expert=8, balance_bias=true}"
    assert read("train.balance=0.001", experts).model_config().moe.balance_bias
    with pytest.raises(ValueError, match="balance_bias = true"):
        read("train.balance=0.001").model_config()


def test_several_machines_are_told_what_a_restart_needs(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "16"), ("GROUP_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        meeting_place()

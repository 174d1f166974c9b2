"""Fine-tuning in one call and one command, on a model that is trained in a second."""

import io
import json

import pytest
import torch

from minillm import chat, finetune
from minillm.adapt.finetune import cut, endless
from minillm.adapt.finetune import finetune as finetune_model
from minillm.adapt.lora import LoRA
from minillm.adapt.lora_files import load_adapters
from minillm.adapt.sft import Example, encode_chat, pack, pad
from minillm.adapt.wrap import merge, trainable
from minillm.data.bpe import GPT2_PATTERN
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import CHATML, find_template
from minillm.model import hf
from minillm.model.config import gpt2_config, llama_config
from minillm.model.gguf import GGUF
from minillm.model.transformer import Transformer
from minillm.train.loop import accumulate_gradients, chunked_token_loss, token_loss

CHATS = [[("user", "What is it?"), ("assistant", "It is tea.")]] * 3
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer():
    text = "What is it? It is tea. user assistant"
    return Tokenizer.train([text], 270, special_tokens=SPECIALS, pattern=GPT2_PATTERN)


def tiny(tokenizer):
    config = llama_config(
        tokenizer.vocab_size,
        d_model=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_ff=96,
        max_length=256,
    )
    return Transformer(config, torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path, tokenizer):
    hf.to_huggingface(tiny(tokenizer), tmp_path / "model", "llama", tokenizer)
    lines = [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]})
        for chat in CHATS
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_adapters_learn_the_answers_and_nothing_else_moves(tokenizer):
    model = tiny(tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    history = finetune_model(model, tokenizer, CHATS, steps=40, lr=0.02, progress=False)
    assert history.losses[-1] < 0.3 * history.losses[0]
    after = {name.replace(".base.", "."): p for name, p in model.named_parameters()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(".updates." in name for name in trainable(model))


def test_a_seed_means_the_same_adapters(tokenizer):
    def run(seed):
        model, generator = tiny(tokenizer), torch.Generator().manual_seed(seed)
        return finetune_model(
            model, tokenizer, CHATS, steps=3, generator=generator, progress=False
        ).losses

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("packed_rows", [False, True])
def test_leaving_out_unlearned_logits_changes_no_gradient(tokenizer, packed_rows):
    template = find_template(tokenizer)
    longer = [("user", "Is it?"), ("assistant", "It is."), ("user", "Tea?"), ("assistant", "Tea.")]
    examples = [encode_chat(chat, template, tokenizer) for chat in (CHATS[0], longer)]
    batch = pack(examples, 64) if packed_rows else pad(examples)
    model = tiny(tokenizer)
    results = []
    for loss_fn in (token_loss, chunked_token_loss):
        loss, n = accumulate_gradients(model, [batch], loss_fn)
        results.append((loss, n, torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert results[0][1] == results[1][1] == sum(t >= 0 for e in examples for t in e.targets)
    torch.testing.assert_close(results[1], results[0])


def test_every_epoch_holds_every_conversation():
    examples = [Example([i], [i]) for i in range(5)]
    batches = endless(examples, 2, torch.Generator().manual_seed(0))
    for _ in range(2):
        epoch = torch.cat([next(batches).tokens.flatten() for _ in range(3)])
        assert sorted(epoch.tolist()) == list(range(5))


def test_what_is_cut_off_cannot_be_learned(tokenizer):
    assert cut(Example([1, 2, 3], [2, 3, 4]), 2) == Example([1, 2], [2, 3])
    with pytest.raises(ValueError, match="nothing to learn in 3 conversations of at most 4"):
        finetune_model(tiny(tokenizer), tokenizer, CHATS, max_tokens=4, progress=False)


def test_conversations_are_cut_to_what_the_model_can_read(tokenizer):
    config = gpt2_config(tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, max_length=32)
    long = [("user", "What?"), ("assistant", "It is tea. " * 20)]
    lora = LoRA(targets=("attention.q",))
    settings = {"lora": lora, "steps": 2, "progress": False}
    history = finetune_model(Transformer(config), tokenizer, [long], **settings)
    assert len(history.losses) == 2


def test_answering_does_not_end_training(tokenizer):
    model = tiny(tokenizer)
    for training in (True, False):
        model.train(training)
        finetune.answer(model, tokenizer, "What is it?")
        assert model.training == training


def test_the_command_trains_saves_merges_and_the_chat_reads_both(folder, capsys, monkeypatch):
    arguments = [str(folder / name) for name in ("model", "chats.jsonl", "adapters")]
    options = ["--steps", "40", "--lr", "0.02", "--save-memory"]
    options += ["--export", str(folder / "merged"), "--gguf", str(folder / "mine.gguf")]
    assert finetune.main([*arguments, *options, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "after> It is tea." in out
    assert "before> It is tea." not in out

    adapted = hf.from_huggingface(folder / "model")
    load_adapters(adapted, folder / "adapters", "llama")
    merge(adapted)
    tokens = torch.tensor([[1, 2, 3]])
    merged = hf.from_huggingface(folder / "merged")
    torch.testing.assert_close(merged(tokens), adapted(tokens), rtol=1e-4, atol=1e-5)

    for about, name in (
        (json.loads((folder / "merged/tokenizer_config.json").read_text()), "chat_template"),
        (GGUF(folder / "mine.gguf").metadata, "tokenizer.chat_template"),
    ):
        assert about[name] == CHATML.jinja()

    adapters = ["--adapters", str(folder / "adapters")]
    for model, extra in (("model", adapters), ("merged", []), ("mine.gguf", [])):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
        status = chat.main([str(folder / model), *extra, "--temperature", "0", "--device", "cpu"])
        assert (status, capsys.readouterr().out.strip()) == (0, "It is tea.")


def test_adapters_are_chatted_with_as_they_learned(folder, tokenizer, monkeypatch):
    """SmolLM2 expects instructions in front; what it learned here stood without any."""
    first_turns = {}
    monkeypatch.setattr(hf, "from_pretrained", lambda _: (tiny(tokenizer), tokenizer))
    monkeypatch.setattr(chat, "load_adapters", lambda *_: None)
    for adapters in (None, "mine"):
        given = ["smollm2", *(["--adapters", adapters] if adapters else [])]
        started = chat._start(chat._parser().parse_args([*given, "--device", "cpu"]))
        first_turns[adapters] = tokenizer.decode(started.tokens)
    assert "You are a helpful AI assistant" in first_turns[None]
    assert first_turns["mine"] == ""


def test_other_families_adapt_what_they_have_names_for(folder, tokenizer, capsys, monkeypatch):
    """GPT-2's files hold queries, keys and values in one matrix, and its MLP has no gate."""
    config = gpt2_config(tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, max_length=128)
    model = Transformer(config, torch.Generator().manual_seed(0))
    hf.to_huggingface(model, folder / "gpt2", "gpt2", tokenizer)
    paths = [str(folder / name) for name in ("gpt2", "chats.jsonl", "adapters")]
    options = ["--steps", "40", "--lr", "0.02", "--device", "cpu"]
    assert finetune.main([*paths, *options]) == 0
    assert "after> It is tea." in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
    options = ["--adapters", paths[2], "--temperature", "0", "--device", "cpu"]
    assert chat.main([paths[0], *options]) == 0
    assert capsys.readouterr().out.strip() == "It is tea."


@pytest.mark.parametrize(
    "change, words",
    [
        ({"chats": "absent.jsonl"}, "No such file"),
        ({"options": ["--four-bit"]}, "--four-bit is for smollm2"),
        ({"options": ["--gguf", "CHATS"]}, "chats.jsonl exists, or its folder does not"),
        ({"adapters": "model"}, "is not empty; choose a new folder"),
        ({"model": "absent"}, "no model"),
        ({"options": ["--steps", "0"]}, "steps=0"),
        ({"options": ["--batch-size", "0"]}, "batch_size=0: expected at least 1"),
        ({"options": ["--max-tokens", "-5"]}, "max_tokens=-5: expected at least 1"),
        ({"adapters": "chats.jsonl/new"}, "chats.jsonl is no folder to write into"),
        ({"options": ["--export", "CHATS/new"]}, "chats.jsonl is no folder to write into"),
        ({"options": ["--export", "ADAPTERS"]}, "is to hold the adapters"),
        ({"options": ["--lr", "1e30", "--steps", "9"]}, "The update was not applied"),
    ],
)
def test_the_command_refuses_in_one_line(folder, capsys, change, words):
    names = {"model": "model", "chats": "chats.jsonl", "adapters": "adapters", **change}
    places = {"CHATS": str(folder / "chats.jsonl"), "ADAPTERS": str(folder / "adapters")}
    options = names.pop("options", [])
    for word, place in places.items():
        options = [option.replace(word, place) for option in options]
    before = sorted(folder.rglob("*"))
    paths = [str(folder / name) for name in names.values()]
    assert finetune.main([*paths, *options, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_answers_on_the_way_show_what_changes(folder, capsys, monkeypatch):
    paths = [str(folder / name) for name in ("model", "chats.jsonl", "adapters")]
    options = ["--steps", "40", "--lr", "0.02", "--device", "cpu"]

    def run(name, seconds):
        monkeypatch.setattr(finetune, "BETWEEN_ANSWERS", seconds)
        assert finetune.main([*paths[:2], str(folder / name), *options]) == 0
        return capsys.readouterr().out

    often, never = run("often", -1), run("never", 1000)
    shown = [line for line in often.splitlines() if line.startswith("after ") and " s> " in line]
    assert len(shown) == 40
    assert shown[0].endswith("s> It is tea.") < shown[-1].endswith("s> It is tea.")
    assert " s> " not in never
    # Looking on changes nothing of what is learned.
    files = [folder / name / "adapter_model.safetensors" for name in ("often", "never")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_long_first_question_is_shown_in_part(folder, capsys):
    long = [{"role": "user", "content": "tea? " * 400}, {"role": "assistant", "content": "It is."}]
    short = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "It is."}]
    lines = [json.dumps({"messages": messages}) for messages in (long, short)]
    (folder / "chats.jsonl").write_text("\n".join(lines))
    paths = [str(folder / name) for name in ("model", "chats.jsonl", "adapters")]
    assert finetune.main([*paths, "--steps", "1", "--device", "cpu"]) == 0
    assert "you> " + "tea? " * 12 + "tea?\n" in capsys.readouterr().out


def test_impossible_settings_leave_the_model_without_adapters(tokenizer):
    model = tiny(tokenizer)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for wrong, words in (
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lora": LoRA(targets=("attention.query",))}, "there are .*attention.q, "),
    ):
        with pytest.raises(ValueError, match=words):
            finetune_model(model, tokenizer, CHATS, progress=False, **wrong)
        after = dict(model.named_parameters())
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], p) for name, p in before.items())
    finetune_model(model, tokenizer, CHATS, steps=1, progress=False)

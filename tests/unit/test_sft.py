"""Instruction tuning's data: which tokens are learned, and who sees whom."""

import json

import pytest
import torch

from minillm.adapt.sft import Example, encode_chat, pack, pad, padded_batches, read_chats
from minillm.data.packing import IGNORE
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import CHATML, PLAIN
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.losses import next_token_loss

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = [
    ("system", "Be kind."),
    ("user", "Hello <|im_end|>"),
    ("assistant", "Hi there"),
    ("user", "Bye"),
    ("assistant", "So long"),
]


@pytest.fixture(scope="module")
def tokenizer():
    text = ["system user assistant Hello Hi there Be kind Bye So long"]
    return Tokenizer.train(text, 280, special_tokens=SPECIALS)


def test_only_answers_and_their_end_are_learned(tokenizer):
    """Read what is learned back as text: both answers, each with its end token."""
    example = encode_chat(CHAT, CHATML, tokenizer)
    assert len(example.tokens) == len(example.targets)
    learned = [t for t in example.targets if t != IGNORE]
    end = tokenizer.special_tokens["<|im_end|>"]
    assert learned == [*tokenizer.encode("Hi there"), end, *tokenizer.encode("So long"), end]
    # Each target is the token that comes next.
    following = [*example.tokens[1:], None]
    for target, token in list(zip(example.targets, following, strict=True))[:-1]:
        assert target in (IGNORE, token)


def test_the_text_is_the_templates_and_users_cannot_forge_markers(tokenizer):
    example = encode_chat(CHAT, CHATML, tokenizer)
    last = tokenizer.encode("\n")
    assert example.tokens + last == CHATML.encode(tokenizer, CHAT, answer=False)
    end = tokenizer.special_tokens["<|im_end|>"]
    assert (example.tokens + last).count(end) == len(CHAT)


def test_learning_the_prompt_learns_every_token(tokenizer):
    example = encode_chat(CHAT, CHATML, tokenizer, learn_prompt=True)
    assert example.targets[:-1] == example.tokens[1:]
    assert IGNORE not in example.targets


def examples_of(tokenizer, n=5):
    chats = [[("user", "Hello " * i), ("assistant", "Bye " * (n - i))] for i in range(1, n + 1)]
    return [encode_chat(chat, CHATML, tokenizer) for chat in chats]


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(3)])
def test_packed_and_padded_give_the_same_loss_and_gradient(tokenizer, generator):
    """The mask keeps packed examples apart; RoPE does not mind where in a row they start."""
    examples = examples_of(tokenizer)
    model = Transformer(llama_config(tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2))
    packed, padded = pack(examples, 60, generator), pad(examples)
    assert packed.tokens.shape[0] < padded.tokens.shape[0]
    assert (packed.targets != IGNORE).sum() == (padded.targets != IGNORE).sum()
    gradients = []
    for batch in (packed, padded):
        loss = next_token_loss(model(batch.tokens, documents=batch.documents), batch.targets)
        gradients.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rows_are_filled_but_never_overfilled(tokenizer):
    examples = examples_of(tokenizer)
    sizes = [len(example.tokens) for example in examples]
    for block_size in range(max(sizes), 3 * max(sizes)):
        batch = pack(examples, block_size)
        assert batch.tokens.shape[1] == block_size
        assert (batch.documents > 0).sum() == sum(sizes)


def test_a_row_can_be_filled_to_its_last_place():
    halves = [Example([1, 2, 3, 4], [2, 3, 4, 5])] * 4
    assert pack(halves, 8).tokens.tolist() == [[1, 2, 3, 4, 1, 2, 3, 4]] * 2


def test_an_epoch_holds_every_example_once(tokenizer):
    examples = examples_of(tokenizer)
    batches = list(padded_batches(examples, 2, torch.Generator().manual_seed(0)))
    assert [len(batch.tokens) for batch in batches] == [2, 2, 1]
    learned = sorted(tuple(row[row != IGNORE].tolist()) for b in batches for row in b.targets)
    assert learned == sorted(tuple(t for t in e.targets if t != IGNORE) for e in examples)
    again = list(padded_batches(examples, 2, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(batches, again, strict=True))


def test_chats_are_read_from_a_file(tmp_path):
    messages = [{"role": role, "content": content} for role, content in CHAT]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n\n", encoding="utf-8")
    assert read_chats(path) == [CHAT]
    # As Notepad and PowerShell write it: a mark in front, and lines that end in two characters.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_chats(path) == [CHAT]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: no JSON: Expecting property name .*, at column 2"),
        (b'{"messages": "\xe9"}', "line 2: 'utf-8' codec can't decode byte 0xe9"),
        (
            '{"messages": [{"role": "assistant", "content": "\\ud800"}]}',
            r"line 2: .* can't encode character '\\ud800'",
        ),
        ('{"text": "hi"}', 'line 2: expected {"messages"'),
        ('{"messages": [{"role": "robot", "content": ""}]}', "expected a role out of"),
        ('{"messages": [{"role": "user", "content": 3}]}', "expected a text as content"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "the assistant says nothing"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "the assistant says nothing"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, words):
    good = '{"messages": [{"role": "assistant", "content": "hi"}]}'
    path = tmp_path / "chats.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(good.encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=words):
        read_chats(path)


def test_bad_input_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="'plain text' has no end token"):
        encode_chat(CHAT, PLAIN, tokenizer)
    with pytest.raises(ValueError, match=r"example 0 has .* tokens, and a row only 4"):
        pack(examples_of(tokenizer), 4)
    with pytest.raises(ValueError, match="no examples"):
        pack([], 4)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="holds no conversations"):
        read_chats(tmp_path / "empty")

"""Conversations as token ids against `apply_chat_template` of transformers.

The reference runs the template program that the model's authors published; ours is a line of data.
"""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minillm.data import assets
from minillm.data.bpe import GPT2_PATTERN
from minillm.data.tokenizer import Tokenizer
from minillm.infer.chat import CHATML, LLAMA3, PHI4, SMOLLM2_SYSTEM, TEMPLATES
from minillm.model import hf
from minillm.model.config import llama_config
from minillm.model.gguf import GGUF
from minillm.model.transformer import Transformer

# As published in tokenizer_config.json of Meta-Llama-3-8B-Instruct and of phi-4.
PUBLISHED = {
    LLAMA3: (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    PHI4: (
        "{% for message in messages %}{% if (message['role'] == 'system') %}"
        "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
        "{% elif (message['role'] == 'user') %}"
        "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
        "{% elif (message['role'] == 'assistant') %}"
        "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
}
TALK = [
    ("user", "What is\n\nthe  capital of France?"),
    ("assistant", "Paris. 巴黎 🙂"),
    ("user", " 12 + 30?"),
]
INSTRUCTIONS = ("system", "Answer in one sentence.")


def reference(tokenizer, folder, template, messages, answer):
    tokenizer.save(folder / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    theirs.bos_token = "<|begin_of_text|>"
    messages = [{"role": role, "content": content} for role, content in messages]
    return theirs.apply_chat_template(
        messages,
        chat_template=template,
        add_generation_prompt=answer,
        return_dict=False,
    )


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("system", [INSTRUCTIONS, None])
def test_smollm2(tmp_path, system, answer):
    metadata = GGUF(assets.path("smollm2")).metadata
    tokenizer, template = Tokenizer.from_gguf(metadata), metadata["tokenizer.chat_template"]
    messages = [system, *TALK] if system else TALK
    expected = reference(tokenizer, tmp_path, template, messages, answer)
    # Without instructions the published template gives these.
    messages = [system or ("system", SMOLLM2_SYSTEM), *TALK]
    assert CHATML.encode(tokenizer, messages, answer) == expected


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("template", PUBLISHED, ids=lambda template: template.name)
def test_llama_3_and_phi_4(tmp_path, template, answer):
    tokenizer = Tokenizer.train(["What is the capital of France"], 290, set(template.markers))
    messages = [(role, content.strip()) for role, content in (INSTRUCTIONS, *TALK)]
    expected = reference(tokenizer, tmp_path, PUBLISHED[template], messages, answer)
    assert template.encode(tokenizer, messages, answer) == expected


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_exported_models_bring_their_template(tmp_path, template, answer):
    """As `transformers` finds it in the folder, the template writes what ours writes."""
    specials = ("<|endoftext|>", *dict.fromkeys(template.markers))
    tokenizer = Tokenizer.train(["Paris"], 270, special_tokens=specials, pattern=GPT2_PATTERN)
    config = llama_config(tokenizer.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=8)
    given = {"tokenizer": tokenizer, "chat_template": template.jinja()}
    hf.to_huggingface(Transformer(config), tmp_path / "model", "llama", **given)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    talk = [INSTRUCTIONS, *TALK, ("assistant", "{{ 1 + 1 }} {% if %}")]
    messages = [{"role": role, "content": content} for role, content in talk]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=answer, return_dict=False)
    assert ids == template.encode(tokenizer, talk, answer=answer)

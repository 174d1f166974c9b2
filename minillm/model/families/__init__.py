"""The published model families: how each writes its configuration and its tensors.

A family is a module with

- ``read(published)``: the fields of ``config.json`` → ModelConfig (or encoder's and decoder's);
- ``write(config)``: back, and the class of `transformers` under ``architectures``;
- ``table(config)``: one `Row` for each of our tensors: its published names, and their `Layout`;
- optional ``canonical(name)``: what the table calls a tensor that some files call otherwise, None
  for a tensor to ignore;
- optional ``unread(config)``: how the names begin of tensors in files that we have no use for.

Import, export and the list of what does not fit all follow from these.

To add a family (`openai_gpt`, added last, is a file of under 40 lines, and a test counts them):

1. Build a tiny model of it in `transformers`, save it, and look at its ``config.json`` and at the
   names and shapes of its tensors.
2. ``read``: say which ideas of ModelConfig it is made of. `common.expect` refuses settings that we
   cannot express. An idea that is missing is a new field there first; a quirk is not, map it away.
3. ``write``: the same backwards. Export refuses to write what ``read`` would not read back.
4. ``table``: a dictionary of names through `naming.named_table`, or, if it looks like Llama with
   something changed, `decoder.decoder_table`. Unusual orders of numbers are layouts (`layouts`).
5. Add it below, and a tiny configuration to ``CASES`` of a test in ``tests/parity``: logits,
   gradients, decoding on a cache and the way out and back are then compared.
"""

from minillm.model.families import (
    bert,
    bloom,
    deepseek_v2,
    deepseek_v3,
    falcon,
    gemma,
    gemma2,
    glm,
    glm4,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    olmo2,
    openai_gpt,
    opt,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)

FAMILIES = {
    "bert": bert,
    "bloom": bloom,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "glm": glm,
    "glm4": glm4,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "openai-gpt": openai_gpt,
    "opt": opt,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "t5": t5,
}

"""The published model families: how each writes its configuration and its tensors.

A family is a module with

- ``read(published)``: the fields of ``config.json`` → ModelConfig (or encoder's and decoder's);
- ``write(config)``: back, and the class of `transformers` under ``architectures``;
- ``table(config)``: one `Row` for each of our tensors: its published names, and their `Layout`;
- optional ``canonical(name)``: what the table calls a tensor that some files call otherwise, None
  for a tensor to ignore.

Import, export and the list of what does not fit all follow from these.
"""

from minillm.model.families import bert, bloom, falcon, gpt2, gpt_neox, llama, opt, t5

FAMILIES = {
    "bert": bert,
    "bloom": bloom,
    "falcon": falcon,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "opt": opt,
    "t5": t5,
}

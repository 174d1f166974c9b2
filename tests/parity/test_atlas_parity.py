"""Published models at full size, on the meta device: transformers counts the same parameters."""

import pytest
import torch
import transformers

from minillm.model import hf
from minillm.model.atlas import find

# One or two entries a family; where the published figure is rounded, this is the exact witness.
FAMILY_OF = {
    "GPT-1": "openai-gpt",
    "GPT-2-XL": "gpt2",
    "GPT-NeoX-20B": "gpt_neox",
    "Pythia-12B": "gpt_neox",
    "OPT-175B": "opt",
    "BLOOM-176B": "bloom",
    "Falcon-7B": "falcon",
    "Falcon-180B": "falcon",
    "BERT-large": "bert",
    "T5-11B": "t5",
    "Llama-2-70B": "llama",
    "Llama-3.1-405B": "llama",
    "Llama-3.2-1B": "llama",
    "DeepSeek-LLM-67B": "llama",
    "SmolLM2-135M": "llama",
    "SmolLM3-3B": "smollm3",
    "Mistral-7B": "mistral",
    "Mixtral-8x22B": "mixtral",
    "Qwen2.5-72B": "qwen2",
    "QwQ-32B": "qwen2",
    "Qwen1.5-MoE-A2.7B": "qwen2_moe",
    "Qwen2-57B-A14B": "qwen2_moe",
    "Qwen3-32B": "qwen3",
    "Qwen3-235B-A22B": "qwen3_moe",
    "Gemma-7B": "gemma",
    "Gemma-2-27B": "gemma2",
    "Phi-3-mini": "phi3",
    "Phi-4": "phi3",
    "Phi-4-mini": "phi3",
    "GLM-4-9B": "glm",
    "StableLM-2-1.6B": "stablelm",
    "OLMo-2-32B": "olmo2",
    "DeepSeek-V2": "deepseek_v2",
    "DeepSeek-V2-Lite": "deepseek_v2",
    "DeepSeek-V3": "deepseek_v3",
}
CLASS_OF = {
    "bert": transformers.BertForPreTraining,
    "t5": transformers.T5ForConditionalGeneration,
}


@pytest.mark.parametrize("name", FAMILY_OF)
def test_transformers_counts_the_same(name):
    entry, family = find(name), FAMILY_OF[name]
    config = entry.stacks if entry.encoder else entry.config
    published = hf.published_config(config, family)
    theirs = transformers.AutoConfig.for_model(**published)
    with torch.device("meta"):
        if family in CLASS_OF:
            model = CLASS_OF[family](theirs)
        else:
            model = transformers.AutoModelForCausalLM.from_config(theirs)
    # Balancing biases are buffers there, and published as weights.
    n_biases = sum(b.numel() for n, b in model.named_buffers() if n.endswith("correction_bias"))
    assert sum(p.numel() for p in model.parameters()) + n_biases == entry.total_parameters

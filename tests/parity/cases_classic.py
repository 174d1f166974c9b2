"""Tiny models of the families before LLaMA, of those with an encoder, and of the one added last."""

from pairs import VOCABULARY
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

EAGER = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}


def gpt2(**changes):
    sizes = {"n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 19, "layer_norm_epsilon": 0.1}
    still = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return GPT2LMHeadModel(GPT2Config(**EAGER, **sizes, **still, **changes))


def openai_gpt():
    sizes = {"n_embd": 36, "n_layer": 3, "n_head": 3, "n_positions": 19, "layer_norm_epsilon": 0.1}
    still = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**EAGER, **sizes, **still))


def gpt_neox(**changes):
    sizes = {
        "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5,
        "intermediate_size": 44, "max_position_embeddings": 19, "layer_norm_eps": 0.1,
    }  # fmt: skip
    return GPTNeoXForCausalLM(GPTNeoXConfig(**EAGER, **sizes | changes))


def opt(**changes):
    sizes = {
        "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "ffn_dim": 44,
        "max_position_embeddings": 19, "pad_token_id": 0, "dropout": 0,
    }  # fmt: skip
    return OPTForCausalLM(OPTConfig(**EAGER, **sizes, **changes))


def bloom(n_head):
    sizes = {"hidden_size": 36, "n_layer": 3, "n_head": n_head, "layer_norm_epsilon": 0.1}
    return BloomForCausalLM(BloomConfig(**EAGER, **sizes))


def falcon(**changes):
    sizes = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
        "ffn_hidden_size": 44, "max_position_embeddings": 19, "layer_norm_epsilon": 0.1,
    }  # fmt: skip
    return FalconForCausalLM(FalconConfig(**EAGER | sizes | changes))


def bert(kind):
    sizes = {
        "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 44, "max_position_embeddings": 19, "layer_norm_eps": 0.1,
        "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0,
    }  # fmt: skip
    return kind(BertConfig(**EAGER, **sizes))


def t5(untied=False, **changes):
    sizes = {
        "d_model": 36, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3, "d_kv": 10,
        "d_ff": 44, "layer_norm_epsilon": 0.1, "dropout_rate": 0, "decoder_start_token_id": 0,
    }  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**EAGER, **sizes, **changes))
    if untied:  # `transformers` unties only what a file holds twice
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.all_tied_weights_keys.pop("lm_head.weight")
    return model


def starcoder2(**changes):
    sizes = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 44, "max_position_embeddings": 19,
        "norm_epsilon": 0.1, "residual_dropout": 0, "sliding_window": 5,
    }  # fmt: skip
    return Starcoder2ForCausalLM(Starcoder2Config(**EAGER | sizes | changes))


DECODERS = {
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tie_word_embeddings=False, activation_function="gelu"),
    "gpt_neox": gpt_neox,
    "gpt_neox_sequential": lambda: gpt_neox(
        use_parallel_residual=False,
        hidden_act="gelu_new",
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "linear", "factor": 2.5, "rope_theta": 50.0, "partial_rotary_factor": 0.5,
        },
    ),
    "opt": opt,
    "opt_gelu_no_bias": lambda: opt(
        activation_function="gelu", enable_bias=False, tie_word_embeddings=False
    ),
    "bloom": lambda: bloom(4),
    "bloom_3_heads": lambda: bloom(3),
    "falcon_7b": falcon,
    "falcon_40b": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon_11b": lambda: falcon(
        new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1, bias=True
    ),
    # Its eager path adds the slopes twice; the fused one is as published.
    "falcon_rw": lambda: falcon(
        alibi=True, multi_query=False, parallel_attn=False, bias=True, num_attention_heads=4,
        attn_implementation="sdpa",
    ),
    "falcon_sequential": lambda: falcon(parallel_attn=False, tie_word_embeddings=False),
    "openai_gpt": openai_gpt,
    "starcoder2": starcoder2,
    "starcoder2_no_bias": lambda: starcoder2(
        use_bias=False, sliding_window=None, tie_word_embeddings=False, hidden_act="gelu"
    ),
}  # fmt: skip
ENCODERS = {
    "bert": lambda: bert(BertModel),
    "bert_masked_lm": lambda: bert(BertForMaskedLM),
}
ENCODER_DECODERS = {
    "t5": t5,
    "t5_v1_1": lambda: t5(True, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}
CASES = DECODERS | ENCODERS | ENCODER_DECODERS

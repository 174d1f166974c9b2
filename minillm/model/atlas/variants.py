"""2023 onwards: dense models that made choices of their own beside LLaMA's."""

from __future__ import annotations

from minillm.model.atlas.dense import OPEN, llama
from minillm.model.atlas.entry import Entry
from minillm.model.config import ModelConfig, Rope

GEMMA = {"vocab_size": 256_000, "max_length": 8192, "mlp": "geglu_tanh", "norm_eps": 1e-6}


def gemma(shape, head_dim: int, **changes) -> ModelConfig:
    scale = shape[0] ** 0.5
    return llama(
        shape, **GEMMA, head_dim=head_dim, tie_embeddings=True, embedding_scale=scale, **changes
    )


def gemma2(shape, head_dim: int, score_dim: int) -> ModelConfig:
    return gemma(
        shape, head_dim, norm_place="sandwich", window=4096,
        global_layers=tuple(range(1, shape[1], 2)), attention_softcap=50.0, logit_softcap=30.0,
        attention_scale=score_dim**-0.5,
    )  # fmt: skip


def chatglm(n_layers: int, vocab_size: int, max_length: int, **changes) -> ModelConfig:
    rope = Rope(fraction=0.5, pairs="interleaved")
    return llama(
        (4096, n_layers, 32, 13696, 2), vocab_size, max_length, qkv_bias=True, rope=rope, **changes
    )


def falcon(shape, **changes) -> ModelConfig:
    n_layers, d_model, n_heads, n_kv_heads = shape
    return ModelConfig(
        65_024, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        max_length=2048, position="rope", mlp="gelu", bias=False, norm_bias=True,
        **{"residual": "parallel", **changes},
    )  # fmt: skip


def internlm(name: str, shape, published: str, tokens: float | None) -> Entry:
    d_model, n_layers = shape[:2]
    return Entry(
        name, "Shanghai AI Laboratory", "2023-06",
        llama(shape, 103_168, 2048, qkv_bias=True, norm_eps=1e-6), published,
        "released weights internlm: config.json, and the size of the files at 16 bits", OPEN,
        tokens=tokens, extra_parameters=n_layers * d_model,
        note="Extra: a bias after the attention's output matrix, C a layer.",
    )  # fmt: skip


GLM = "model card THUDM; GLM team 2024, ChatGLM, §2"

ENTRIES = [
    *(
        Entry(name, "Google", "2024-03", config, published,
              "Gemma team 2024, Tables 1 and 2; model cards google/gemma", "Gemma terms",
              tokens=tokens)
        for name, config, published, tokens in (
            ("Gemma-2B", gemma((2048, 18, 8, 16384, 1), 256), "2,506,172,416", 3e12),
            ("Gemma-7B", gemma((3072, 28, 16, 24576, 16), 256), "8,537,680,896", 6e12),
        )
    ),
    *(
        Entry(name, "Google", "2024-07", config, published,
              "Gemma team 2024, Gemma 2, Tables 1 and 2; model cards google/gemma-2",
              "Gemma terms", tokens=tokens)
        for name, config, published, tokens in (
            ("Gemma-2-2B", gemma2((2304, 26, 8, 9216, 4), 256, 256), "2,614,341,888", 2e12),
            ("Gemma-2-9B", gemma2((3584, 42, 16, 14336, 8), 256, 256), "9,241,705,984", 8e12),
            ("Gemma-2-27B", gemma2((4608, 46, 32, 36864, 16), 128, 144), "27,227,128,320", 13e12),
        )
    ),
    Entry(
        "ChatGLM-6B", "Tsinghua, Zhipu", "2023-03",
        ModelConfig(130_528, d_model=4096, n_layers=28, n_heads=32, max_length=2048,
                    position="rope", mask="prefix", mlp="gelu_tanh"),
        "6,173,286,400", GLM, "ChatGLM", tokens=1e12,
        note="Half of each head turns with the position in the text, half with that in the gap.",
    ),
    Entry("ChatGLM2-6B", "Tsinghua, Zhipu", "2023-06", chatglm(28, 65_024, 32_768),
          "6,243,584,000", GLM, "ChatGLM", tokens=1.4e12),
    Entry("ChatGLM3-6B", "Tsinghua, Zhipu", "2023-10", chatglm(28, 65_024, 8192),
          "6,243,584,000", GLM, "ChatGLM"),
    Entry("GLM-4-9B", "Tsinghua, Zhipu", "2024-06", chatglm(40, 151_552, 131_072),
          "9,399,951,360", GLM, "GLM-4", tokens=10e12),
    *(
        Entry(name, "TII", "2023-11", config, published,
              "Almazrouei et al. 2023, Table 15; model cards tiiuae/falcon", licence,
              tokens=tokens, note="The files hold the output matrix too, V × C numbers more; it is "
              "the embedding again.")
        for name, config, published, tokens, licence in (
            ("Falcon-7B", falcon((32, 4544, 71, 1), residual="parallel_one_norm"),
             "6,921,720,704", 1.5e12, OPEN),
            ("Falcon-40B", falcon((60, 8192, 128, 8)), "41,303,293,952", 1e12, OPEN),
            ("Falcon-180B", falcon((80, 14848, 232, 8)), "180B", 3.5e12,
             "Falcon 180B"),
        )
    ),
    internlm("InternLM-7B", (4096, 32, 32, 11008), "7.32B", None),
    internlm("InternLM-20B", (5120, 60, 40, 13824), "20B", 2.3e12),
]  # fmt: skip

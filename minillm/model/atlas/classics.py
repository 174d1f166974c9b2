"""2018 to 2022: the three architectures, and the race to ever larger dense decoders."""

from __future__ import annotations

import dataclasses

from minillm.model.atlas.entry import Entry
from minillm.model.config import ModelConfig, Rope, gpt2_config

OPEN = "permissive: Apache-2.0, MIT or BSD"
RESEARCH = "research only"
CLOSED = "closed"

# --- GPT: a causal decoder with learned positions -------------------------------------------------


def gpt(d_model: int, n_layers: int, n_heads: int, **changes) -> ModelConfig:
    shape = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    return gpt2_config(**{"vocab_size": 50257, "max_length": 1024, **shape, **changes})


GPT = [
    Entry(
        "GPT-1", "OpenAI", "2018-06",
        gpt(768, 12, 12, vocab_size=40478, max_length=512, norm_place="post"),
        "116,534,784", "released weights openai-community; Radford et al. 2019, Table 2 (117M)",
        OPEN,
    ),
    *(
        Entry(
            name, "OpenAI", "2019-02", gpt(*shape), published,
            "released weights openai-community, safetensors header; Radford et al. 2019, Table 2",
            OPEN, note="The paper's table prints sizes that are too small; these are the weights'.",
        )
        for name, shape, published in (
            ("GPT-2", (768, 12, 12), "124,439,808"),
            ("GPT-2-medium", (1024, 24, 16), "354,823,168"),
            ("GPT-2-large", (1280, 36, 20), "774,030,080"),
            ("GPT-2-XL", (1600, 48, 25), "1,557,611,200"),
        )
    ),
    *(
        Entry(
            name, "OpenAI", "2020-05", gpt(*shape, max_length=2048), published,
            "Brown et al. 2020, Table 2.1", CLOSED, tokens=300e9,
            note="Every other layer attends in a banded sparse pattern; the weights are the same.",
        )
        for name, shape, published in (
            ("GPT-3-6.7B", (4096, 32, 32), "6.7B"),
            ("GPT-3-175B", (12288, 96, 96), "175.0B"),
        )
    ),
]  # fmt: skip

# --- BERT: an encoder -----------------------------------------------------------------------------


def bert(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = ModelConfig(
        30522, d_model=d_model, n_layers=n_layers, n_heads=n_heads, max_length=512,
        mask="bidirectional", norm_place="post", norm_eps=1e-12, embedding_norm=True,
        mlm_head=True,
    )  # fmt: skip
    pair_task = d_model * (d_model + 1) + 2 * (d_model + 1)
    return Entry(
        name, "Google", "2018-10", config, published,
        "released weights google-bert, safetensors header; Devlin et al. 2019, §3", OPEN,
        extra_parameters=2 * d_model + pair_task,
        note="Extra: two segment embeddings, 2 C; the pooler, C (C + 1), and the next-sentence "
        "head, 2 (C + 1), of its second training task.",
    )  # fmt: skip


BERT = [
    bert("BERT-base", 768, 12, 12, "110,106,428"),
    bert("BERT-large", 1024, 24, 16, "336,226,108"),
]

# --- T5: encoder and decoder ----------------------------------------------------------------------


def t5_pair(d_model, n_layers, n_heads, d_ff, head_dim=64, vocab_size=32128, **changes):
    """Decoder and encoder of one shape; changes such as the MLP go to both."""
    decoder = ModelConfig(
        vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, head_dim=head_dim,
        d_ff=d_ff, max_length=512, position="relative", norm="rms", norm_eps=1e-6, bias=False,
        attention_scale=1.0, cross_attention=True,
        **{"mlp": "relu", "logit_scale": d_model**-0.5, **changes},
    )  # fmt: skip
    encoder = dataclasses.replace(
        decoder, cross_attention=False, mask="bidirectional", tie_embeddings=True, logit_scale=1.0
    )
    return {"config": decoder, "encoder": encoder}


V1_1 = {"mlp": "geglu_tanh", "tie_embeddings": False, "logit_scale": 1.0}

T5 = [
    *(
        Entry(
            f"T5-{size}", "Google", "2019-10", **t5_pair(*shape), published=published,
            source="released weights google-t5, safetensors header; Raffel et al. 2020, §3.7",
            licence=OPEN, tokens=1e12,
        )
        for size, shape, published in (
            ("small", (512, 6, 8, 2048), "60,506,624"),
            ("base", (768, 12, 12, 3072), "222,903,552"),
            ("large", (1024, 24, 16, 4096), "737,668,096"),
            ("3B", (1024, 24, 32, 16384, 128), "2,851,598,336"),
            ("11B", (1024, 24, 128, 65536, 128), "11,307,321,344"),
        )
    ),
    *(
        Entry(
            f"Flan-T5-{size}", "Google", "2022-10", **t5_pair(*shape, **V1_1),
            published=published,
            source="released weights google/flan-t5, safetensors header; Chung et al. 2022, §2",
            licence=OPEN, note="The shapes of T5 v1.1: GeGLU, and an output of its own.",
        )
        for size, shape, published in (
            ("small", (512, 8, 6, 1024), "76,961,152"),
            ("base", (768, 12, 12, 2048), "247,577,856"),
            ("large", (1024, 24, 16, 2816), "783,150,080"),
            ("XL", (2048, 24, 32, 5120), "2,849,757,184"),
            ("XXL", (4096, 24, 64, 10240), "11,135,332,352"),
        )
    ),
    Entry(
        "CPM-2", "Tsinghua, BAAI", "2021-06", **t5_pair(4096, 24, 64, 10240, 64, 26240, **V1_1),
        published="11B", source="Zhang et al. 2021, CPM-2, §3 and Table 2", licence=RESEARCH,
    ),
]  # fmt: skip

# --- Chinese and multilingual giants --------------------------------------------------------------


def pangu(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    return Entry(
        name, "Huawei", "2021-04",
        gpt(d_model, n_layers, n_heads, vocab_size=40000, max_length=1024),
        published, "Zeng et al. 2021, PanGu-α, §3.1 and Table 1", OPEN,
        extra_parameters=1024 * d_model,
        note="The last layer is a query layer: its queries come from an embedding of the next "
        "position, T × C more weights, instead of from the stream.",
    )  # fmt: skip


BIG = [
    pangu("PanGu-alpha-2.6B", 2560, 32, 40, "2.6B"),
    pangu("PanGu-alpha-200B", 16384, 64, 128, "207.0B"),
    Entry(
        "GLM-130B", "Tsinghua, Zhipu", "2022-10",
        ModelConfig(
            150528, d_model=12288, n_layers=70, n_heads=96, d_ff=32768, max_length=2048,
            position="rope", mask="prefix", norm_place="post", mlp="geglu",
        ),
        "130B", "Zeng et al. 2023, GLM-130B, §2 and Appendix", RESEARCH, tokens=400e9,
    ),
    Entry(
        "Gopher-280B", "DeepMind", "2021-12",
        gpt(16384, 80, 128, vocab_size=32000, norm="rms", position="none", bias=False),
        "280B", "Rae et al. 2021, Table 1", CLOSED, tokens=300e9,
        extra_parameters=80 * 16384**2,
        note="Transformer-XL's relative positions, which we lack: one more C × C matrix a layer.",
    ),
    Entry(
        "Chinchilla-70B", "DeepMind", "2022-03",
        gpt(8192, 80, 64, vocab_size=32000, norm="rms", position="none", bias=False),
        "70B", "Hoffmann et al. 2022, Table 4", CLOSED, tokens=1.4e12,
        extra_parameters=80 * 8192**2,
        note="Transformer-XL's relative positions, which we lack: one more C × C matrix a layer.",
    ),
]  # fmt: skip

# --- PaLM, OPT, BLOOM and others ------------------------------------------------------------------


def palm(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = ModelConfig(
        256_000, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=1, head_dim=256,
        d_ff=4 * d_model, max_length=2048, position="rope", residual="parallel_one_norm",
        mlp="swiglu", bias=False,
    )  # fmt: skip
    source = "Chowdhery et al. 2022, Table 1"
    return Entry(name, "Google", "2022-04", config, published, source, CLOSED, tokens=780e9)


def opt(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = gpt(d_model, n_layers, n_heads, vocab_size=50272, max_length=2048, mlp="relu")
    return Entry(
        name, "Meta", "2022-05", config, published, "Zhang et al. 2022, OPT, Table 1; facebook/opt",
        RESEARCH, tokens=180e9, extra_parameters=2 * d_model,
        note="The position table starts with two rows that are never used.",
    )  # fmt: skip


def bloom(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = ModelConfig(
        250880, d_model=d_model, n_layers=n_layers, n_heads=n_heads, max_length=2048,
        position="alibi", mlp="gelu_tanh", embedding_norm=True,
    )  # fmt: skip
    source = "model card bigscience/bloom; BLOOM 2022, Table 3"
    licence = "BigScience RAIL"
    return Entry(name, "BigScience", "2022-11", config, published, source, licence, tokens=366e9)


def galactica(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = gpt(d_model, n_layers, n_heads, vocab_size=50_000, max_length=2048, mlp="gelu",
                 bias=False)  # fmt: skip
    source = "Taylor et al. 2022, Table 5"
    return Entry(name, "Meta", "2022-11", config, published, source, RESEARCH, tokens=450e9)


def codegen(name: str, d_model: int, n_layers: int, n_heads: int, published: str) -> Entry:
    config = gpt(
        d_model, n_layers, n_heads, vocab_size=51200, max_length=2048, position="rope",
        rope=Rope(fraction=64 * n_heads / d_model, pairs="interleaved"),
        residual="parallel_one_norm", qkv_bias=False, tie_embeddings=False,
    )  # fmt: skip
    return Entry(
        name, "Salesforce", "2022-03", config, published, "Nijkamp et al. 2022, Table 5", OPEN,
        extra_parameters=51200 - n_layers * d_model,
        note="Extra: a bias for the output, none for the attention's last matrix.",
    )  # fmt: skip


def neox(name, shape, published, source, date="2023-04", vocab_size=50304) -> Entry:
    d_model, n_layers, n_heads = shape
    config = gpt(
        d_model, n_layers, n_heads, vocab_size=vocab_size, max_length=2048, position="rope",
        rope=Rope(fraction=0.25), residual="parallel", mlp="gelu", tie_embeddings=False,
    )  # fmt: skip
    return Entry(name, "EleutherAI", date, config, published, source, OPEN, tokens=300e9)


PYTHIA = "model card EleutherAI/pythia; Biderman et al. 2023, Table 1"

OTHERS = [
    palm("PaLM-8B", 4096, 32, 16, "8.63B"),
    palm("PaLM-62B", 8192, 64, 32, "62.50B"),
    palm("PaLM-540B", 18432, 118, 48, "540.35B"),
    codegen("CodeGen-16B", 6144, 34, 24, "16.1B"),
    neox("GPT-NeoX-20B", (6144, 44, 64), "20,554,567,680", "Black et al. 2022, §2.1", "2022-04",
         50432),
    neox("Pythia-70M", (512, 6, 8), "70,426,624", PYTHIA),
    neox("Pythia-160M", (768, 12, 12), "162,322,944", PYTHIA),
    neox("Pythia-1.4B", (2048, 24, 16), "1,414,647,808", PYTHIA),
    neox("Pythia-6.9B", (4096, 32, 32), "6,857,302,016", PYTHIA, vocab_size=50432),
    neox("Pythia-12B", (5120, 36, 40), "11,846,072,320", PYTHIA, vocab_size=50688),
    opt("OPT-125M", 768, 12, 12, "125,239,296"),
    opt("OPT-1.3B", 2048, 24, 32, "1,315,758,080"),
    opt("OPT-6.7B", 4096, 32, 32, "6,658,473,984"),
    opt("OPT-66B", 9216, 64, 72, "66B"),
    opt("OPT-175B", 12288, 96, 96, "175B"),
    bloom("BLOOM-560M", 1024, 24, 16, "559,214,592"),
    bloom("BLOOM-7B1", 4096, 30, 32, "7,069,016,064"),
    bloom("BLOOM-176B", 14336, 70, 112, "176,247,271,424"),
    galactica("Galactica-6.7B", 4096, 32, 32, "6.7B"),
    galactica("Galactica-30B", 7168, 48, 56, "30.0B"),
    galactica("Galactica-120B", 10240, 96, 80, "120B"),
]  # fmt: skip

ENTRIES = GPT + BERT + T5 + BIG + OTHERS

"""2023 onwards: LLaMA, and the dense decoders in its manner."""

from __future__ import annotations

from minillm.model.atlas.entry import Entry
from minillm.model.config import ModelConfig, Rope, RopeScaling, llama_config

OPEN = "permissive: Apache-2.0, MIT or BSD"


def llama(shape, vocab_size=32_000, max_length=4096, **changes) -> ModelConfig:
    """LLaMA of shape (channels, layers, heads, width of the MLP[, key/value heads])."""
    names = ("d_model", "n_layers", "n_heads", "d_ff", "n_kv_heads")
    sizes = dict(zip(names, shape, strict=False))
    return llama_config(vocab_size, max_length=max_length, **sizes, **changes)


def family(
    organisation: str, date: str, source: str, licence: str, models: dict, note: str = "", **common
) -> list[Entry]:
    """Models of one paper: name → (shape, published parameters, training tokens, changes…)."""
    return [
        Entry(
            name, organisation, date, llama(shape, **{**common, **dict(*changes)}), published,
            source, licence, tokens=tokens, note=note,
        )
        for name, (shape, published, tokens, *changes) in models.items()
    ]  # fmt: skip


# --- Meta -----------------------------------------------------------------------------------------

ROPE_3 = {"vocab_size": 128_256, "max_length": 8192, "rope": Rope(base=500_000.0)}


def long_rope_3(factor: float) -> dict:
    scaling = RopeScaling("llama3", factor, 8192, slow_turns=1.0, fast_turns=4.0)
    return {**ROPE_3, "max_length": 131_072, "rope": Rope(base=500_000.0, scaling=scaling)}


META = [
    *family(
        "Meta", "2023-02", "Touvron et al. 2023, LLaMA, Table 2; released weights", "research only",
        {
            "LLaMA-7B": ((4096, 32, 32, 11008), "6,738,415,616", 1e12),
            "LLaMA-13B": ((5120, 40, 40, 13824), "13,015,864,320", 1e12),
            "LLaMA-33B": ((6656, 60, 52, 17920), "32,528,943,616", 1.4e12),
            "LLaMA-65B": ((8192, 80, 64, 22016), "65,285,660,672", 1.4e12),
        },
        max_length=2048,
    ),
    *family(
        "Meta", "2023-07", "model cards meta-llama/Llama-2; Touvron et al. 2023, Table 1",
        "Llama 2 community",
        {
            "Llama-2-7B": ((4096, 32, 32, 11008), "6,738,415,616", 2e12),
            "Llama-2-13B": ((5120, 40, 40, 13824), "13,015,864,320", 2e12),
            "Llama-2-70B": ((8192, 80, 64, 28672, 8), "68,976,648,192", 2e12),
        },
    ),
    *family(
        "Meta", "2024-04", "model cards meta-llama/Meta-Llama-3", "Llama 3 community",
        {
            "Llama-3-8B": ((4096, 32, 32, 14336, 8), "8,030,261,248", 15e12),
            "Llama-3-70B": ((8192, 80, 64, 28672, 8), "70,553,706,496", 15e12),
        },
        **ROPE_3,
    ),
    *family(
        "Meta", "2024-07", "model cards meta-llama/Llama-3.1; Grattafiori et al. 2024, Table 3",
        "Llama 3.1 community",
        {
            "Llama-3.1-8B": ((4096, 32, 32, 14336, 8), "8,030,261,248", 15e12),
            "Llama-3.1-70B": ((8192, 80, 64, 28672, 8), "70,553,706,496", 15e12),
            "Llama-3.1-405B": ((16384, 126, 128, 53248, 8), "405,853,388,800", 15.6e12),
        },
        **long_rope_3(8.0),
    ),
    *family(
        "Meta", "2024-09", "model cards meta-llama/Llama-3.2", "Llama 3.2 community",
        {
            "Llama-3.2-1B": ((2048, 16, 32, 8192, 8), "1,235,814,400", 9e12),
            "Llama-3.2-3B": ((3072, 28, 24, 8192, 8), "3,212,749,824", 9e12),
        },
        tie_embeddings=True, **long_rope_3(32.0),
    ),
    *family(
        "Meta", "2024-12", "model card meta-llama/Llama-3.3-70B-Instruct", "Llama 3.3 community",
        {"Llama-3.3-70B": ((8192, 80, 64, 28672, 8), "70,553,706,496", 15e12)},
        **long_rope_3(8.0),
    ),
]  # fmt: skip

# --- Alibaba --------------------------------------------------------------------------------------

QWEN = {"qkv_bias": True, "norm_eps": 1e-6}
QWEN_LONG = {**QWEN, "rope": Rope(base=1_000_000.0), "max_length": 32_768}
QWEN_3 = {"rope": Rope(base=1_000_000.0), "qk_norm": "head", "head_dim": 128, "norm_eps": 1e-6}
TIED = {"tie_embeddings": True}

ALIBABA = [
    *family(
        "Alibaba", "2023-09", "model cards Qwen/Qwen; Bai et al. 2023, Table 1", "Tongyi Qianwen",
        {
            "Qwen-1.8B": ((2048, 24, 16, 5504), "1,836,828,672", 2.2e12),
            "Qwen-7B": ((4096, 32, 32, 11008), "7,721,324,544", 2.4e12),
            "Qwen-14B": ((5120, 40, 40, 13696), "14,167,290,880", 3e12, {"vocab_size": 152_064}),
            "Qwen-72B": ((8192, 80, 64, 24576), "72,287,920,128", 3e12, {"vocab_size": 152_064}),
        },
        vocab_size=151_936, max_length=8192, **QWEN,
    ),
    *family(
        "Alibaba", "2024-02", "model cards Qwen/Qwen1.5", "Tongyi Qianwen",
        {
            "Qwen1.5-0.5B": ((1024, 24, 16, 2816), "463,987,712", None, TIED),
            "Qwen1.5-1.8B": ((2048, 24, 16, 5504), "1,836,828,672", None),
            "Qwen1.5-4B": ((2560, 40, 20, 6912), "3,950,369,280", None),
            "Qwen1.5-7B": ((4096, 32, 32, 11008), "7,721,324,544", None),
            "Qwen1.5-14B": ((5120, 40, 40, 13696), "14,167,290,880", None, {"vocab_size": 152_064}),
            "Qwen1.5-32B": (
                (5120, 64, 40, 27392, 8), "32,512,218,112", None, {"vocab_size": 152_064}
            ),
            "Qwen1.5-72B": ((8192, 80, 64, 24576), "72,287,920,128", None, {"vocab_size": 152_064}),
            "Qwen1.5-110B": (
                (8192, 80, 64, 49152, 8), "111,209,914,368", None, {"vocab_size": 152_064}
            ),
        },
        vocab_size=151_936, **QWEN_LONG,
    ),
    *family(
        "Alibaba", "2024-06", "model cards Qwen/Qwen2; Yang et al. 2024, Table 1", OPEN,
        {
            "Qwen2-0.5B": ((896, 24, 14, 4864, 2), "494,032,768", 12e12, TIED),
            "Qwen2-1.5B": ((1536, 28, 12, 8960, 2), "1,543,714,304", 7e12, TIED),
            "Qwen2-7B": ((3584, 28, 28, 18944, 4), "7,615,616,512", 7e12, {"vocab_size": 152_064}),
            "Qwen2-72B": (
                (8192, 80, 64, 29568, 8), "72,706,203,648", 7e12, {"vocab_size": 152_064}
            ),
        },
        vocab_size=151_936, **QWEN_LONG,
    ),
    *family(
        "Alibaba", "2024-09", "model cards Qwen/Qwen2.5; Qwen2.5 Technical Report, Table 1", OPEN,
        {
            "Qwen2.5-0.5B": (
                (896, 24, 14, 4864, 2), "494,032,768", 18e12, {"vocab_size": 151_936, **TIED}
            ),
            "Qwen2.5-1.5B": (
                (1536, 28, 12, 8960, 2), "1,543,714,304", 18e12, {"vocab_size": 151_936, **TIED}
            ),
            "Qwen2.5-3B": (
                (2048, 36, 16, 11008, 2), "3,085,938,688", 18e12, {"vocab_size": 151_936, **TIED}
            ),
            "Qwen2.5-7B": ((3584, 28, 28, 18944, 4), "7,615,616,512", 18e12),
            "Qwen2.5-14B": ((5120, 48, 40, 13824, 8), "14,770,033,664", 18e12),
            "Qwen2.5-32B": ((5120, 64, 40, 27648, 8), "32,763,876,352", 18e12),
            "Qwen2.5-72B": ((8192, 80, 64, 29568, 8), "72,706,203,648", 18e12),
        },
        vocab_size=152_064, **QWEN_LONG,
    ),
    *family(
        "Alibaba", "2024-11", "model card Qwen/QwQ-32B", OPEN,
        {"QwQ-32B": ((5120, 64, 40, 27648, 8), "32,763,876,352", 18e12)},
        vocab_size=152_064, **QWEN_LONG,
        note="Qwen2.5-32B, taught to reason with reinforcement learning.",
    ),
    *family(
        "Alibaba", "2025-04", "model cards Qwen/Qwen3; Yang et al. 2025, Table 1", OPEN,
        {
            "Qwen3-0.6B": ((1024, 28, 16, 3072, 8), "596,049,920", 36e12, TIED),
            "Qwen3-1.7B": ((2048, 28, 16, 6144, 8), "1,720,574,976", 36e12, TIED),
            "Qwen3-4B": ((2560, 36, 32, 9728, 8), "4,022,468,096", 36e12, TIED),
            "Qwen3-8B": ((4096, 36, 32, 12288, 8), "8,190,735,360", 36e12),
            "Qwen3-14B": ((5120, 40, 40, 17408, 8), "14,768,307,200", 36e12),
            "Qwen3-32B": ((5120, 64, 64, 25600, 8), "32,762,123,264", 36e12),
        },
        vocab_size=151_936, max_length=40_960, **QWEN_3,
    ),
]  # fmt: skip

# --- Other laboratories, in LLaMA's manner --------------------------------------------------------

BAICHUAN = "model cards baichuan-inc; Yang et al. 2023, Baichuan 2, Table 1"

OTHERS = [
    *family(
        "Baichuan", "2023-06", BAICHUAN, "Baichuan community",
        {
            "Baichuan-7B": ((4096, 32, 32, 11008), "7,000,559,616", 1.2e12),
            "Baichuan-13B": (
                (5120, 40, 40, 13696), "13,264,901,120", 1.4e12, {"position": "alibi"}
            ),
        },
        vocab_size=64_000, norm_eps=1e-6,
    ),
    *family(
        "Baichuan", "2023-09", BAICHUAN, "Baichuan community",
        {
            "Baichuan2-7B": ((4096, 32, 32, 11008), "7,505,973,248", 2.6e12),
            "Baichuan2-13B": (
                (5120, 40, 40, 13696), "13,896,668,160", 2.6e12, {"position": "alibi"}
            ),
        },
        vocab_size=125_696, norm_eps=1e-6,
        note="The rows of the output matrix are scaled to length 1.",
    ),
    *family(
        "Mistral", "2023-10", "released weights mistralai; Jiang et al. 2023, Table 1", OPEN,
        {
            "Mistral-7B": ((4096, 32, 32, 14336, 8), "7,241,732,096", None, {"window": 4096}),
            "Mistral-Nemo-12B": (
                (5120, 40, 32, 14336, 8), "12,247,782,400", None,
                {"vocab_size": 131_072, "head_dim": 128, "rope": Rope(base=1_000_000.0)},
            ),
            "Mistral-Small-24B": (
                (5120, 40, 32, 32768, 8), "23,572,403,200", None,
                {"vocab_size": 131_072, "head_dim": 128, "rope": Rope(base=100_000_000.0)},
            ),
        },
        max_length=32_768,
    ),
    *family(
        "DeepSeek", "2024-01", "model cards deepseek-ai; DeepSeek LLM 2024, Table 2", "DeepSeek",
        {
            "DeepSeek-LLM-7B": ((4096, 30, 32, 11008), "6,910,365,696", 2e12),
            "DeepSeek-LLM-67B": ((8192, 95, 64, 22016, 8), "67B", 2e12),
        },
        vocab_size=102_400, norm_eps=1e-6,
    ),
    *family(
        "OpenBMB, Tsinghua", "2024-04", "Hu et al. 2024, MiniCPM, Table 3; openbmb/MiniCPM-2B",
        OPEN, {"MiniCPM-2B": ((2304, 40, 36, 5760), "2,724,880,896", 1.1e12)},
        vocab_size=122_753, embedding_scale=12.0, logit_scale=256 / 2304, tie_embeddings=True,
        note="Each layer's contribution is scaled by 1.4 / √40; the name counts no embeddings.",
    ),
    *family(
        "Microsoft", "2024-04", "released weights microsoft/Phi-3; Abdin et al. 2024, §2", OPEN,
        {
            "Phi-3-mini": ((3072, 32, 32, 8192), "3,821,079,552", 3.3e12, {"window": 2048}),
            "Phi-3-medium": (
                (5120, 40, 40, 17920, 10), "13,960,238,080", 4.8e12, {"window": 2048}
            ),
        },
        vocab_size=32_064,
    ),
    *family(
        "Microsoft", "2024-12", "released weights microsoft/phi-4; Abdin et al. 2024, §3", OPEN,
        {
            "Phi-4": (
                (5120, 40, 40, 17920, 10), "14,659,507,200", 9.8e12,
                {"max_length": 16_384, "rope": Rope(base=250_000.0)},
            ),
            "Phi-4-mini": (
                (3072, 32, 24, 8192, 8), "3,836,021,760", 5e12,
                {"vocab_size": 200_064, "rope": Rope(fraction=0.75), **TIED},
            ),
        },
        vocab_size=100_352,
    ),
    *family(
        "Shanghai AI Laboratory", "2024-03", "model cards internlm; Cai et al. 2024, Table 3", OPEN,
        {
            "InternLM2-7B": ((4096, 32, 32, 14336, 8), "7,737,708,544", 2.6e12),
            "InternLM2-20B": ((6144, 48, 48, 16384, 8), "19,861,149,696", 2.6e12),
        },
        vocab_size=92_544, max_length=32_768, rope=Rope(base=1_000_000.0),
    ),
    *family(
        "Hugging Face", "2025-02", "model cards HuggingFaceTB/SmolLM2; Allal et al. 2025, §4", OPEN,
        {
            "SmolLM2-135M": ((576, 30, 9, 1536, 3), "134,515,008", 2e12),
            "SmolLM2-360M": ((960, 32, 15, 2560, 5), "361,821,120", 4e12),
            "SmolLM2-1.7B": (
                (2048, 24, 32, 8192, 32), "1,711,376,384", 11e12, {"rope": Rope(base=130_000.0)}
            ),
        },
        vocab_size=49_152, max_length=8192, tie_embeddings=True, rope=Rope(base=100_000.0),
    ),
    *family(
        "Hugging Face", "2025-07", "model card HuggingFaceTB/SmolLM3-3B", OPEN,
        {"SmolLM3-3B": ((2048, 36, 16, 11008, 4), "3,075,098,624", 11.2e12)},
        vocab_size=128_256, max_length=65_536, tie_embeddings=True,
        rope=Rope(base=5_000_000.0, skip_layers=tuple(range(3, 36, 4))),
    ),
    *family(
        "Ai2", "2024-12", "released weights allenai/OLMo-2; OLMo et al. 2024, Table 3", OPEN,
        {
            "OLMo-2-1B": ((2048, 16, 16, 8192), "1,484,916,736", 4e12),
            "OLMo-2-7B": ((4096, 32, 32, 11008), "7,298,617,344", 4e12),
            "OLMo-2-13B": ((5120, 40, 40, 13824), "13,716,198,400", 5e12),
            "OLMo-2-32B": ((5120, 64, 40, 27648, 8), "32,234,279,936", 6e12),
        },
        vocab_size=100_352, norm_place="output", qk_norm="all", rope=Rope(base=500_000.0),
    ),
    *family(
        "Stability AI", "2024-02", "model cards stabilityai; Bellagente et al. 2024, Table 3",
        "Stability AI community",
        {
            "StableLM-3B-4E1T": (
                (2560, 32, 32, 6912), "2,795,443,200", 4e12, {"vocab_size": 50_304}
            ),
            "StableLM-2-1.6B": ((2048, 24, 32, 5632), "1,644,515,328", 2e12, {"qkv_bias": True}),
        },
        vocab_size=100_352, norm="layer", norm_bias=True, rope=Rope(fraction=0.25),
    ),
]  # fmt: skip

ENTRIES = META + ALIBABA + OTHERS

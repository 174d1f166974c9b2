"""Checks for the exercises of lesson 11, the model atlas."""

from collections.abc import Callable
from dataclasses import replace

from minillm.course.checks.common import assert_equal, assert_type, refuses
from minillm.model.atlas import Entry, count_active, count_by_part, find
from minillm.model.config import MoE, llama_config
from minillm.model.transformer import Transformer


def count_llama(student: Callable) -> None:
    """Against Llamas that were really built (on the meta device)."""
    shapes = [
        (61, 24, 3, 6, 2, 40),
        (32000, 4096, 32, 32, 32, 11008),
        (32000, 8192, 80, 64, 8, 28672),
    ]
    for V, C, n, H, K, F in shapes:
        config = llama_config(V, d_model=C, n_layers=n, n_heads=H, n_kv_heads=K, d_ff=F)
        right = replace(find("Llama-2-7B"), config=config).total_parameters
        answer = student(V, C, n, H, K, F)
        assert_type(answer, int, "your count")
        grouped = C * K * (C // H)
        mistakes = {
            "you count the embedding once; here the output matrix is one of its own": right - V * C,
            "your MLP has two matrices; with a gate it has three": right - n * C * F,
            "you forgot the last norm": right - C,
            "you forgot the two norms of each layer": right - n * 2 * C,
            "you forgot the output projection of attention": right - n * C * C,
            "your norms have biases; an RMSNorm has one weight a channel": right + (2 * n + 1) * C,
            "you count keys or values once; both have a matrix": right - n * grouped,
        }
        if K < H:
            message = "you gave every query head its own keys and values; only K heads have them"
            mistakes[message] = right + n * 2 * (C * C - grouped)
        name = f"your count for V={V}, C={C}, {n} layers, H={H}, K={K}, F={F}"
        assert_equal(answer, right, name=name, mistakes=mistakes)
    refuses(student, 100, 60, 2, 6, 4, 80, words="4")


def that_fit(student: Callable) -> None:
    """On models that each mistake sorts onto the wrong side of the card."""
    names = [
        "Mixtral-8x7B", "Llama-2-70B", "SmolLM2-135M", "Qwen1.5-32B", "Llama-3.1-8B", "OPT-66B",
        "Qwen-14B", "LLaMA-33B",
    ]  # fmt: skip
    entries = [find(name) for name in names]
    for card, bits, n_tokens in ((24e9, 4, 32_768), (24e9, 4, 8192), (80e9, 16, 4096)):
        right, mistakes = _lists(entries, card, bits, n_tokens)
        name = f"your list for {card / 1e9:.0f} GB, {bits} bits, {n_tokens} tokens"
        answer = student(entries, card, bits, n_tokens)
        assert_equal(answer, right, name=name, mistakes=mistakes)
    full = find("SmolLM2-135M").memory(8)
    assert_equal(
        student([find("SmolLM2-135M")], full, 8, 0),
        ["SmolLM2-135M"],
        name="your list for a card that is exactly full",
        mistakes={"a model that fills the card exactly still fits: use ≤": []},
    )
    refuses(student, entries, 24e9, 0, 8192, words="bits")


def _lists(entries, card: float, bits: float, n_tokens: int) -> tuple[list[str], dict]:
    """The models that fit, and the lists that come of mistakes."""

    def fitting(weights=None, cache=None, order=-1):
        weights = weights or (lambda m: m.total_parameters * bits / 8)
        cache = cache or (lambda m: m.kv_bytes_per_token() * n_tokens)
        by_size = sorted(entries, key=lambda m: order * m.total_parameters)
        return [m.name for m in by_size if weights(m) + cache(m) <= card]

    return fitting(), {
        "you count only the active parameters: all experts must be in memory": fitting(
            weights=lambda m: m.active_parameters * bits / 8
        ),
        "you forgot the cache": fitting(cache=lambda m: 0),
        "you take one cached token for all of them": fitting(
            cache=lambda m: m.kv_bytes_per_token()
        ),
        "you take bits for bytes: divide by 8": fitting(
            weights=lambda m: m.total_parameters * bits
        ),
        "you cache in the format of the weights; the cache has 16 bits": fitting(
            cache=lambda m: m.kv_bytes_per_token(bits) * n_tokens
        ),
        "your list begins with the smallest; the largest comes first": fitting(order=1),
        "your list keeps the order of the entries; the largest comes first": [
            entry.name for entry in entries if entry.name in fitting()
        ],
    }


def add_yi(student: Callable) -> None:
    """The entry against the published configuration and figure."""
    entry = student()
    assert_type(entry, Entry, "the result of add_yi")
    assert_equal(entry.name, "Yi-34B", name="the name")
    assert_equal(entry.date, "2023-11", name="the date")
    assert_equal(entry.published, "34,388,917,248", name="the published figure")
    c = entry.config
    right = {"vocab_size": 64_000, "d_model": 7168, "n_layers": 60, "n_heads": 56, "d_ff": 20480}
    for field, value in right.items():
        assert_equal(getattr(c, field), value, name=f"config.{field}")
    if c.n_kv_heads == c.n_heads:
        raise AssertionError("num_key_value_heads is missing: you gave every head its own keys")
    assert_equal(c.n_kv_heads, 8, name="config.n_kv_heads")
    if c.tie_embeddings:
        raise AssertionError("tie_word_embeddings is false: the output matrix is one of its own")
    if (c.position, c.norm, c.mlp, c.bias) != ("rope", "rms", "swiglu", False):
        raise AssertionError("these are not Llama's choices; begin with llama_config")
    assert_equal(
        float(c.rope.base),
        5_000_000.0,
        name="the base of the rotary positions",
        mistakes={"rope_theta is missing: 10,000 is only the default": 10_000.0},
    )
    assert_equal(
        c.max_length,
        4096,
        name="config.max_length",
        mistakes={"max_position_embeddings is missing: 256 is only the default": 256},
    )
    if entry.extra_parameters:
        raise AssertionError("a Llama needs no extra_parameters: its configuration says it all")
    assert_equal(entry.total_parameters, 34_388_917_248, name="total_parameters")
    for field in ("organisation", "source", "licence"):
        if not getattr(entry, field).strip():
            raise AssertionError(f"{field} is empty: say where the entry comes from")


def fixed_active(student: Callable) -> None:
    """Against models in which each wrong repair shows."""
    dense_first = MoE(6, 2, 40, d_shared=24, dense_layers=(0,))
    tiny = llama_config(97, d_model=32, n_layers=3, n_heads=4, moe=dense_first)
    for name, config in (
        ("Mixtral-8x7B", find("Mixtral-8x7B").config),
        ("a small mixture with a shared expert and a dense layer", tiny),
        ("DeepSeek-V3", find("DeepSeek-V3").config),
    ):
        moe, C, parts = config.moe, config.d_model, count_by_part(config)
        total, right = sum(parts.values()), count_active(config)
        n_sparse = config.n_layers - len(moe.dense_layers)
        one = 3 * C * moe.d_expert
        router, asleep = moe.n_experts * C, moe.n_experts - moe.n_active
        answer = student(config)
        assert_type(answer, int, "your count")
        assert_equal(
            answer,
            right,
            name=f"your count for {name}",
            mistakes={
                "the bug is still there: router and shared expert are scaled too": int(
                    total - parts["experts"] + moe.n_active / moe.n_experts * parts["experts"]
                ),
                "the router works for every token, all of it": right - n_sparse * asleep * C,
                "the shared expert works for every token": right - n_sparse * 3 * C * moe.d_shared,
                "you forgot the router": right - n_sparse * router,
                "you count all experts": total,
                "dense layers have no experts that could sleep": total
                - config.n_layers * asleep * one,
                "your expert has two matrices; with a gate it has three": total
                - n_sparse * asleep * 2 * C * moe.d_expert,
                "you subtract the experts that work instead of those that sleep": total
                - n_sparse * moe.n_active * one,
                "your experts are d_ff wide; their width is moe.d_expert": total
                - n_sparse * asleep * 3 * C * config.d_ff,
            },
        )
    built = Transformer(tiny)
    assert_equal(student(tiny), built.n_parameters(active=True), name="your count for real weights")
    refuses(student, find("Llama-2-7B").config, words="moe")


def n_users(student: Callable, users: dict[str, int], best: str) -> None:
    """The measurement on three models, then the numbers and the judgement drawn from it."""

    def right(entry, card, bits, n_tokens):
        left = card - entry.total_parameters * bits / 8
        return max(0, int(left // (entry.kv_bytes_per_token() * n_tokens)))

    cases = [("Llama-3.1-8B", 24e9, 8, 4096), ("Qwen1.5-72B", 160e9, 8, 8192),
             ("Mixtral-8x7B", 80e9, 8, 8192), ("Llama-2-70B", 80e9, 16, 4096)]  # fmt: skip
    for name, card, bits, n_tokens in cases:
        entry = find(name)
        per_user = entry.kv_bytes_per_token() * n_tokens
        answer = student(entry, card, bits, n_tokens)
        assert_type(answer, int, "your number of users")
        left = card - entry.total_parameters * bits / 8
        mistakes = {
            "you pay the weights again for each user; they are paid once": int(
                card // (entry.total_parameters * bits / 8 + per_user)
            ),
            "you forgot the weights": int(card // per_user),
            "you take bits for bytes: divide by 8": max(
                0, int((card - entry.total_parameters * bits) // per_user)
            ),
            "you count the active weights; all experts must be in memory": max(
                0, int((card - entry.active_parameters * bits / 8) // per_user)
            ),
            "you round up; a conversation that fits in part does not fit": int(left // per_user)
            + 1,
            "a negative number of users: if the weights do not fit, the answer is 0": int(
                left // per_user
            ),
        }
        assert_equal(
            answer,
            right(entry, card, bits, n_tokens),
            name=f"your number of users for {name} on {card / 1e9:.0f} GB",
            mistakes=mistakes,
        )
    _check_judgement(right, users, best)


def _check_judgement(right: Callable, users: dict[str, int], best: str) -> None:
    qwen = find("Qwen1.5-72B")
    changes = {
        "as it is": (qwen, 8),
        "a": (qwen, 4),
        "b": (replace(qwen, config=replace(qwen.config, n_kv_heads=8)), 8),
        "c": (replace(qwen, config=replace(qwen.config, vocab_size=76_032)), 8),
    }
    assert_type(users, dict, "users")
    for key, (entry, bits) in changes.items():
        if key not in users:
            raise AssertionError(f"users has no number for {key!r}")
        expected = right(entry, 160e9, bits, 8192)
        mistakes = {}
        if key == "b":
            mistakes["for (b) you changed the query heads; change n_kv_heads"] = users["as it is"]
        assert_equal(users[key], expected, name=f"users[{key!r}]", mistakes=mistakes)
    assert_equal(
        best,
        "b",
        name="best",
        mistakes={
            "(a) shrinks the weights, which are paid once; the cache of each user stays": "a",
            "(c) the vocabulary is 3% of this model and not in the cache at all": "c",
        },
    )

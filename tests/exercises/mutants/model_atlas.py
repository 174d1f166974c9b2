"""Wrong versions of lesson 11's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "count_llama": [
        (" + C + V * C\n", " + C\n", "the output matrix is one of its own"),
        ("mlp = 3 * C * F", "mlp = 2 * C * F", "with a gate it has three"),
        ("2 * C * K * D", "2 * C * H * D", "only K heads have them"),
        ("2 * C * K * D", "C * K * D", "you count keys or values once"),
        (" + C + V * C\n", " + V * C\n", "forgot the last norm"),
        ("attention + mlp + norms", "attention + mlp", "forgot the two norms"),
        ("if H % K:", "if False:", "raise ValueError"),
    ],
    "that_fit": [
        (
            "entry.total_parameters * bits / 8 +",
            "entry.active_parameters * bits / 8 +",
            "all experts",
        ),
        (" + entry.kv_bytes_per_token() * n_tokens", "", "forgot the cache"),
        ("kv_bytes_per_token() * n_tokens", "kv_bytes_per_token(bits) * n_tokens", "has 16 bits"),
        ("* bits / 8", "* bits", "divide by 8"),
        ("-entry.total_parameters)", "entry.total_parameters)", "begins with the smallest"),
        ("<= card_bytes", "< card_bytes", "fills the card exactly"),
        ("if bits <= 0:", "if False:", "raise ValueError"),
    ],
    "add_yi": [
        (" n_kv_heads=8,", "", "num_key_value_heads is missing"),
        ("\n        rope=Rope(base=5_000_000.0),", "", "rope_theta is missing"),
        (" max_length=4096,", "", "max_position_embeddings is missing"),
        ("norm_eps=1e-5,", "norm_eps=1e-5, tie_embeddings=True,", "tie_word_embeddings is false"),
        ("d_ff=20480", "d_ff=20490", "config.d_ff"),
    ],
    "fixed_active": [
        (
            "    return sum(count_by_part(config).values()) - n_layers * n_asleep * one_expert",
            "    parts = count_by_part(config)\n"
            "    share = moe.n_active / moe.n_experts\n"
            '    return int(sum(parts.values()) - (1 - share) * parts["experts"])',
            "your count for|the bug is still there",
        ),
        (
            "config.n_layers - len(moe.dense_layers)",
            "config.n_layers",
            "dense layers have no experts",
        ),
        ("one_expert = 3 *", "one_expert = 2 *", "with a gate it has three"),
        ("moe.n_experts - moe.n_active", "moe.n_active", "instead of those that sleep"),
        ("* moe.d_expert", "* config.d_ff", "their width is moe.d_expert"),
        ("if moe is None:", "if False:", "raises AttributeError"),
    ],
    "n_users": [
        ("- entry.total_parameters * bits / 8", "", "you forgot the weights"),
        ("bits / 8", "bits", "divide by 8"),
        ("entry.total_parameters", "entry.active_parameters", "all experts must be in memory"),
        ("max(0, int(left // (", "max(0, 1 + int(left // (", "you round up"),
        (
            "return max(0, int(left // (entry.kv_bytes_per_token() * n_tokens)))",
            "return int(left // (entry.kv_bytes_per_token() * n_tokens))",
            "a negative number of users",
        ),
        ("n_kv_heads=8))", "n_kv_heads=64))", "change n_kv_heads"),
        ('best = max("abc", key=users.get)', 'best = "a"', "paid once"),
        ('best = max("abc", key=users.get)', 'best = "c"', "not in the cache"),
    ],
}

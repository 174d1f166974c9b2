"""Wrong answers to the exercises of lesson 03, and the words that must meet them."""

MUTANTS = {
    "signature": [
        ("hashes.amin(dim=1)", "hashes.amin(dim=0)", "over the hash functions"),
        ("hashes.amin(dim=1)", "hashes.amax(dim=1)", "the largest hash"),
        ("hashes.amin(dim=1)", "hashes.amin()", "one smallest value of all"),
        (" + b[:, None])", ")", "forgot to add b"),
        (" % (2**31 - 1)", "", "forgot the remainder"),
        ("hashes.amin(dim=1)", "shingles[hashes.argmin(dim=1)]", "return the hash"),
        ("a[:, None] * shingles", "a[:, None].float() * shingles", "dtype"),
        ("if len(shingles) == 0:", "if False:", "raise ValueError"),
    ],
    "mask": [
        (r"[\w.+-]+@", r"\w+@", "a dot before or after the @"),
        (r"[\w.+-]+@(?:[\w-]+\.)+", r"[\w.]+@(?:\w+\.)+", r"\+ and - are allowed"),
        ("[A-Za-z]{2,}", r"[A-Za-z.,]{2,}", "the comma after an address stays"),
        ('return match[0]\n        return "<IP>"', 'pass\n        return "<IP>"', "at most 255"),
        (r"(?<![\d.])", "", "five parts"),
        (r"(?!\.?\d)", "", "five parts"),
        ("[ -]?", "[-]?", "separated by spaces"),
        (r"\+\d(?:", r"\+?\d(?:", r"without a leading \+"),
    ],
    "choose": [
        ("return bands, rows", "return rows, bands", "order is"),
        ("range(n_hashes, 0, -1)", "range(1, n_hashes + 1)", "fewest rows"),
        ("if n_hashes % rows:", "if False:", "exactly n_hashes"),
        ("similar**rows) ** bands", "similar**bands) ** rows", "swapped in your formula"),
        ("1 - (1 - similar**rows) ** bands", "similar**rows", "one band is enough"),
    ],
    "split": [
        (
            "kept = [texts[i] for i in dedup.deduplicate(texts, threshold=0.6)]",
            "kept = list(texts)",
            "before you split, not after",
        ),
        ("return kept[cut:], kept[:cut]", "return kept[:cut], kept[cut:]", "swapped the parts"),
        ("round(share * len(kept))", "round(share * len(texts))", r"\*after\* deduplication"),
        ("random.Random(seed).shuffle(kept)", "random.shuffle(kept)", "same seed"),
        ("random.Random(seed).shuffle(kept)", "pass", "another seed gives the same"),
        ("if not 0 <= share <= 1:", "if False:", "ValueError"),
    ],
    "shared_runs": [
        ("hits / len(documents)", "hits", "you return counts"),
        ("dedup.normalize(text)", "text.split()", "capital letters and punctuation"),
        (
            "sum(not known.isdisjoint(runs(document, n)) for document in documents)",
            "sum(len(known & runs(document, n)) for document in documents)",
            "counted once each",
        ),
        ("hits / len(documents)", "hits / len(benchmark)", "number of benchmark items"),
        ("return 12, reason", "return 4, reason", "flags innocent stories"),
        ("return 12, reason", "return 10, reason", "flags innocent stories"),
        ("return 12, reason", 'return 12, "because"', "at least twelve words"),
    ],
}

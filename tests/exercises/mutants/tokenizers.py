"""Wrong versions of the exercises of lesson 02 that a learner would really write."""

MUTANTS = {
    "encode": [
        ("bpe.pretokenize(text)", "[text]", "cross the borders of pieces"),
        ("min(found)", "min(found, key=lambda pair: pair[1])", "in reading order"),
        ("min(found)", "max(found)", "learned last first"),
        ("while found :=", "if found :=", "stop after the first merge"),
        ("[ids[part] for part in parts]", "parts", "you return tokens"),
        ("if part not in ids:", "if False:", "raises KeyError"),
        (
            "[bytes([b]) for b in piece.encode()]",
            "[c.encode() for c in piece]",
            "not from characters",
        ),
    ],
    "encode_stream": [
        (
            'buffer += chunk\n        cut = buffer.rfind(" ")',
            "yield from encode(chunk)\n        continue",
            "encode every chunk alone",
        ),
        ("    yield from encode(buffer)\n    ### END", "    ### END", "the end is missing"),
        ("if cut > 0 and", "if False and", "read all chunks before"),
        (
            'cut = buffer.rfind(" ")',
            'cut = buffer.rfind(" ") + 1\n        if cut:\n'
            "            yield from encode(buffer[:cut])\n"
            "            buffer = buffer[cut:]\n        continue",
            "belongs to the word that follows",
        ),
        ("if isinstance(chunks, str):", "if False:", "should raise ValueError"),
        ("yield from encode(buffer[:cut])", "yield encode(buffer[:cut])", "ids of the stream"),
    ],
    "merge": [
        ("min(found)", "min(found, key=lambda pair: pair[1])", "still merge in reading order"),
        ("min(found)", "max(found)", "take the last|highest rank|reading order"),
        (
            "min(found)",
            "min(found, key=lambda pair: (pair[0], -pair[1]))",
            "take the last; take the leftmost",
        ),
        (
            "[parts[i] + parts[i + 1]]",
            "[parts[i] + parts[i + 1]]\n        return parts",
            "only once",
        ),
    ],
    "compression": [
        ("len(text.encode()) / n_tokens", "len(text) / n_tokens", "characters per token"),
        ("len(text.encode()) / n_tokens", "n_tokens / len(text.encode())", "tokens per byte"),
        ("merges[: size - 256]", "merges[:size]", "256 of the tokens are the bytes"),
        ("merges[: size - 256]", "merges", "all merges for every size"),
        ("n * len(bpe", "len(bpe", "each distinct piece once"),
        ("counts = bpe.count_pieces([text])", "counts = {text: 1}", "cross the borders of pieces"),
        ("if not 256 <= size <= 256 + len(merges):", "if size < 256:", "should raise ValueError"),
    ],
    "cheapest": [
        ("(body + size * d_model)", "body", "leave out the output matrix"),
        ("(body + size * d_model)", "(body + size)", "each has d_model weights"),
        ("(body + size * d_model)", "size * d_model", "leave out the body"),
        (" / bytes_per_token[size]", "", "cost per token"),
        ("sorted(bytes_per_token)", "bytes_per_token", "two sizes cost the same"),
        ('return "grows"', 'return "shrinks"', "look at your own figure"),
    ],
}

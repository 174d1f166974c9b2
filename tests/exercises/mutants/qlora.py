"""Wrong versions of lesson 20's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "codebook": [
        ("    levels = torch.cat((below, torch.zeros(1, dtype=torch.float64), above.flip(0)))",
         "    levels = torch.cat((-above, above.flip(0)))", "has no zero"),
        ("levels = torch.cat((below, torch.zeros(1, dtype=torch.float64), above.flip(0)))",
         "levels = torch.cat((-above, torch.zeros(1), -below.flip(0)))", "halves are swapped"),
        ("(levels / levels.abs().max())", "levels", "did not divide by the largest"),
        ("m = 4 * half", "m = 32", "depends on the bits"),
        ("(levels / levels.abs().max())", "torch.linspace(-1, 1, 2**bits)", "evenly spaced"),
        ("(levels / levels.abs().max())", "(levels / levels.abs().max()).flip(0)", "upside down"),
        ("above = torch.special.ndtri(torch.linspace(outermost, 0.5, half + 1,"
         " dtype=torch.float64))[:-1]\n    below = -torch.special.ndtri("
         "torch.linspace(outermost, 0.5, half, dtype=torch.float64))[:-1]",
         "above = torch.linspace(outermost, 0.5, half + 1)[:-1] - 0.5\n"
         "    below = 0.5 - torch.linspace(outermost, 0.5, half)[:-1]", "you return probabilities"),
        (".float()\n", "\n", "dtype torch.float64"),
        ("if bits < 2:", "if False:", "ValueError"),
    ],
    "double_quantize": [
        ("(scales - mean).view", "scales.view", "did not take the mean off"),
        ("/ 127", "/ 128", "divide by 128"),
        (".abs().amax", ".amax", "largest absolute one"),
        ("mean = scales.mean()\n", "mean = scales.view(-1, group).mean(1, keepdim=True)\n"
         "    scales = scales.view(-1, group)\n", "row by row"),
        (".round().to", ".to", "cut off instead of rounding"),
        ("torch.int8", "torch.int16", "8 bits are torch.int8"),
        ("rows.abs().amax(dim=1, keepdim=True)", "rows.abs().amax()", "each row has its own"),
        ("if len(scales) % group:", "if False:", "ValueError"),
    ],
    "frozen_product": [
        ("            return x @ (table[codes.int()] * scales).T",
         "            ctx.w = table[codes.int()] * scales\n"
         "            return x @ ctx.w.T", "still kept"),
        ("    return Frozen.apply(x, codes, scales, table)",
         "    return x @ (table[codes.int()] * scales).T", "still kept"),
        ("return gradient @ (table[codes.int()] * scales), None",
         "return gradient @ table[codes.int()], None", "backward pass forgot the scales"),
        ("return x @ (table[codes.int()] * scales).T", "return x @ table[codes.int()].T",
         "you forgot the scales"),
        ("return x @ (table[codes.int()] * scales).T", "return x @ (codes * scales).T",
         "multiply with the codes"),
        ("return gradient @ (table[codes.int()] * scales), None",
         "return gradient @ (codes * scales), None", "not with what they stand for"),
    ],
    "qlora_bytes": [
        (" / 8\n    embeddings", "\n    embeddings", "bits, not bytes"),
        ("4 + 8 / 64 + 32 / (64 * 256)", "4 + 32 / 64", "without double quantization"),
        ("2 * vocabulary * width * 2", "vocabulary * width * 2", "count the embedding once"),
        ("(2 + 2 + 8)", "(2 + 2)", "forgot Adam"),
        ("(2 + 2 + 8)", "(2 + 2 + 4)", "8 bytes, not 4"),
        ("n_layers * rank *", "rank *", "those of one block"),
        ("<= 43e9", "<= 48e9", "rank 64 less than 5 GB"),
        ("max(fits, default=1)", "max(fits) // 2", "still leaves 5 GB"),
    ],
    "kept_bytes": [
        ("= tensor.nbytes", "= tensor.numel()", "count numbers, not bytes"),
        ("return sum(seen.values())", "return len(seen)", "count tensors, not bytes"),
        ("seen[tensor.data_ptr()]", "seen[len(seen)]", "count it once"),
        ("return sum(seen.values())", "return 0", "called inside the context"),
        ("kept = kept_bytes(deep, torch.ones(100, requires_grad=True))", "kept = 2000",
         "number of numbers"),
        ('remedy = "b"', 'remedy = "a"', "halves adapters"),
        ('remedy = "b"', 'remedy = "c"', "do not grow with the text"),
    ],
}  # fmt: skip

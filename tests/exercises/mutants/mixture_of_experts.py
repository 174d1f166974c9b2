"""Wrong versions of lesson 09's solutions: (correct text, wrong text, words of the message)."""

MUTANTS = {
    "top_k_gate": [
        ("weights = weights / weights.sum(dim=-1, keepdim=True)", "", "did not renormalise"),
        ("logits.softmax(dim=-1).topk", "logits.topk", "your weights for k=2"),
        ("logits.softmax(dim=-1).topk", "logits.softmax(dim=0).topk", "your chosen|the tokens"),
        ("weights.sum(dim=-1, keepdim=True)", "weights.sum(dim=0)", "sum to 1 over the tokens"),
        ("topk(k, dim=-1)", "topk(k, dim=-1, largest=False)", "the worst experts"),
        ("return weights, chosen", "return weights.detach(), chosen", "no gradient flows"),
        ("if not 1 <= k <= logits.shape[-1]:", "if k < 1:", "ValueError"),
    ],
    "balance_loss": [
        ("return E * (f", "return (f", "forgot the factor E"),
        ("/ N\n", "/ chosen.numel()\n", "f sum to 1"),
        ("f = chosen.flatten().bincount(minlength=E) / N", "f = probabilities.mean(0)", "P with P"),
        ("(f * P)", "(f * f)", "f with f"),
        ("chosen.flatten()", "chosen[:, 0]", "first choices only"),
        ("P = probabilities.mean(dim=0)", "P = probabilities.mean(dim=0).detach()", "no gradient"),
        ("if len(chosen) != N:", "if False:", "raise ValueError"),
    ],
    "keep_within": [
        ("math.ceil(capacity * len(chosen) / n_experts)",
         "int(capacity * len(chosen) / n_experts)", "rounded up"),
        ("place <= limit", "place <= limit + 1", "one token too many"),
        ("place <= limit", "place > limit", "upside down"),
        ("capacity * len(chosen) / n_experts", "capacity * len(chosen)", "forgets the number"),
        (".cumsum(dim=0)", ".flip(0).cumsum(dim=0).flip(0)", "keep their last tokens"),
        ("place = arrived.gather(1, chosen[:, None])[:, 0]", "place = arrived.sum(1)",
         "count all tokens"),
        ("if capacity <= 0:", "if False:", "raise ValueError"),
    ],
    "fixed_switch": [
        ("return weights * outputs", "return weights / weights * outputs", "bug is still there"),
        ("return weights * outputs", "return weights.detach() * outputs", "still dead"),
        ("return weights * outputs",
         "return (x @ router.T).gather(1, chosen) * outputs", "router's logit"),
        ("softmax(dim=-1)", "softmax(dim=0)", "softmax runs over the tokens"),
    ],
    "effective_experts": [
        (".sum().exp().item()", ".sum().item()", "effective experts of 0 1 0 1"),
        ("/ chosen.numel()", "/ len(chosen)", "divide the counts by all"),
        ("chosen.flatten().bincount(minlength=n_experts) / chosen.numel()",
         "chosen[:, 0].bincount(minlength=n_experts) / len(chosen)", "first choice only"),
        ("torch.special.entr(load)", "(-load * load.log())", "NaN|nan"),
        ('remedy = "b"', 'remedy = "a"', "drops the tokens"),
        ('remedy = "b"', 'remedy = "c"', "idle too"),
    ],
}  # fmt: skip

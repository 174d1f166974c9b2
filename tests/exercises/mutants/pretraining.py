"""Wrong versions of the exercises of lesson 05 that a learner would really write."""

MUTANTS = {
    "wsd": [
        ("(step + 1) / warmup_steps", "step / warmup_steps", "warm-up starts at 0"),
        ("stable_steps + 1, 0)", "stable_steps, 0)", "decay starts one step late"),
        ("(1 - (1 - floor) * k", "(1 - k", "falls to 0, not to floor"),
        (
            "min(max(step - warmup_steps - stable_steps + 1, 0), decay_steps)",
            "max(step - warmup_steps - stable_steps + 1, 0)",
            "goes on falling after the last step",
        ),
        ("if step < 0:", "if False:", r"wsd\(-1.*should raise ValueError"),
    ],
    "adamw_step": [
        ("m / (1 - beta1**step)", "m", "expected|bias"),
        (
            "m / (1 - beta1**step)  # m and v start at 0; this undoes the pull towards 0\n"
            "    v_hat = v / (1 - beta2**step)",
            "m\n    v_hat = v",
            "you do not correct the bias",
        ),
        (
            "parameter = parameter * (1 - lr * weight_decay)",
            "gradient = gradient + weight_decay * parameter",
            "Adam with L2",
        ),
        ("(1 - lr * weight_decay)", "(1 - weight_decay)", "decay is not multiplied by lr"),
        ("(1 - lr * weight_decay)", "1", "forgot the weight decay"),
        ("(v_hat.sqrt() + eps)", "(v_hat + eps).sqrt()", "eps is inside the square root"),
        ("m = beta1 * m +", "m = m.mul_(beta1) +", "in place"),
    ],
    "accumulate": [
        (
            'reduction="sum")\n        loss.backward()',
            'reduction="mean")\n        loss.backward()',
            "0 / 0",
        ),
        ("model.zero_grad()", "pass", "previous step is still in .grad"),
        ("(targets != -100).sum()", "targets.numel()", "divide by all positions"),
        ("p.grad /= max(count, 1)", "p.grad /= 1", "you never divide"),
        (
            "loss.backward()",
            "(loss / max(1, int((targets != -100).sum())) / len(micro_batches)"
            " * sum(int((t != -100).sum()) for _, t in micro_batches)).backward()",
            "average the means of the micro-batches: a target",
        ),
    ],
    "continue_greedily": [
        ("model.eval()  # dropout off: the bug", "pass", "samples in training mode"),
        ("model.train(was_training)", "pass", "training=False, but it was True"),
        ("model.train(was_training)", "model.train()", "training=True, but it was False"),
        ("with torch.no_grad():", "if True:", "graph for gradients"),
        ("    return tokens", "    return tokens[len(prompt):]", "the text is"),
    ],
    "diagnose": [
        ("losses[i : i + 10]) / 10", "losses[i : i + 1])", "healthy|noise"),
        ("if not all(math.isfinite(loss) for loss in train + valid):", "if False:", "NaN"),
        ("valid[-1] > min(valid) + 0.2", "valid[-1] > train[-1] + 0.2", "healthy|overfitting|rate"),
        (
            'return "rate too low" if last_quarter > 0.15 else "healthy"',
            'return "healthy"',
            "last quarter",
        ),
        (
            'if train[-1] > min(train) + 0.2:\n        return "diverged"\n    ',
            "",
            "you call a run 'overfitting' that is 'diverged'",
        ),
    ],
}

"""Time per token of one MoE layer as experts are added, k fixed: it should stay flat.

The layers take turns, so that a busy machine slows all of them alike; the median round counts.
"""

from functools import partial

import torch
from turns import in_turns

from minillm.model.config import MoE, llama_config
from minillm.model.moe import MoELayer

EXPERTS = (4, 8, 16, 32)


def seconds_per_token(
    n_experts: tuple[int, ...], n_tokens: int, d_model: int, d_expert: int, rounds: int = 9
) -> dict[int, float]:
    """Forward and backward of a layer with 2 active experts, for each number of experts."""
    layers = {
        n: MoELayer(llama_config(2, d_model=d_model, moe=MoE(n, 2, d_expert))) for n in n_experts
    }
    x = torch.randn(1, n_tokens, d_model, requires_grad=True)
    upstream = torch.randn(1, n_tokens, d_model)

    def step(layer: MoELayer) -> None:
        layer.zero_grad(set_to_none=True)
        layer(x).backward(upstream)

    seconds, _ = in_turns({str(n): partial(step, layer) for n, layer in layers.items()}, rounds)
    return {n: seconds[str(n)] / n_tokens for n in n_experts}


def main() -> None:
    for n_tokens, d_model, d_expert in ((2048, 128, 128), (8192, 128, 128), (4096, 256, 512)):
        seconds = seconds_per_token(EXPERTS, n_tokens, d_model, d_expert)
        times = ", ".join(f"{n}: {s * 1e6:.1f}" for n, s in seconds.items())
        print(
            f"moe N{n_tokens}/{d_model}d/{d_expert}f k2, us/token by experts {times}; "
            f"{EXPERTS[-1]} experts cost {seconds[EXPERTS[-1]] / seconds[EXPERTS[0]]:.2f}x "
            f"{EXPERTS[0]} (bar 1.3)"
        )


if __name__ == "__main__":
    main()

"""However a model is shared out, loss, gradients and update are those of one process.

Two steps of gradient accumulation over ragged rows, then clipping and an update. One process and
PyTorch's autograd are the reference.
"""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from minillm.model.config import Latent, ModelConfig, MoE, gpt2_config, llama_config
from minillm.model.transformer import Transformer, own_tensors
from minillm.train.expert_parallel import check_expert_parallel
from minillm.train.layout import Layout
from minillm.train.losses import next_token_loss
from minillm.train.parallel import (
    backward,
    batch_mesh,
    clip_gradients,
    full_gradients,
    full_weights,
    make_mesh,
    parallelize,
    plain,
)
from minillm.train.pipeline import check_pipeline, stage_of_layer
from minillm.train.processes import Processes
from minillm.train.tensor_parallel import check_tensor_parallel, split_fused

V, B, T = 37, 16, 7
SHAPE = {"d_model": 48, "n_layers": 4, "n_heads": 8, "max_length": 9}
EXPERTS = MoE(8, 2, 12, d_shared=8, balance_bias=True, shared_gate=True, dense_layers=(0,))
MODELS = {
    "dense": llama_config(V, **SHAPE, n_kv_heads=4, d_ff=20),
    "gpt2": gpt2_config(V, **SHAPE),
    "moe": llama_config(V, **SHAPE, n_kv_heads=4, d_ff=20, window=5, moe=EXPERTS),
}
AT_TWO = [Layout(**{way: 2}) for way in ("data", "shard", "tensor", "pipeline", "expert")]
AT_FOUR = [Layout(**{way: 4}) for way in ("data", "shard", "tensor", "pipeline", "expert")] + [
    Layout(**dict.fromkeys(pair.split(), 2))
    for pair in (
        "data shard",
        "data tensor",
        "data pipeline",
        "data expert",
        "shard tensor",
        "shard pipeline",
        "shard expert",
        "tensor pipeline",
        "tensor expert",
        "pipeline expert",
    )
]
AT_EIGHT = [
    Layout(**dict.fromkeys(three.split(), 2))
    for three in (
        "data tensor pipeline",
        "shard tensor pipeline",
        "data shard tensor",
        "shard tensor expert",
        "shard pipeline expert",
    )
]
CLIP, RATE = 0.25, 0.1


@pytest.fixture(scope="module")
def two():
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def four():
    with Processes(4) as processes:
        yield processes


@pytest.fixture(scope="module")
def eight():
    with Processes(8) as processes:
        yield processes


def random_model(config: ModelConfig) -> Transformer:
    """A model with no weight or buffer at its initial value."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(3)
    for tensor in own_tensors(model).values():
        tensor.detach().copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def random_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (B, T); some rows have few targets, and one has none."""
    generator = torch.Generator().manual_seed(4)
    text = torch.randint(V, (B, T + 1), generator=generator)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].clone()
    targets[1, 2:] = targets[6, :4] = targets[9, :] = -100
    return tokens, targets


def alone(config: ModelConfig) -> dict:
    """The same step in this process."""
    model, (tokens, targets) = random_model(config), random_rows()
    loss = next_token_loss(model(tokens), targets, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = float(clip_grad_norm_(model.parameters(), CLIP))
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    weights = {name: tensor.detach() for name, tensor in own_tensors(model).items()}
    return {"loss": float(loss.detach()), "gradients": gradients, "norm": norm, "weights": weights}


def together(layout: Layout, config: ModelConfig) -> dict:
    """What one of several processes sees of the step."""
    mesh = make_mesh(layout, "cpu")
    rows = batch_mesh(mesh)
    n_micro = min(2 * layout.pipeline, B // 2 // rows.size())
    model = parallelize(random_model(config), mesh, n_micro)
    names = list(plain(model).state_dict())
    held = sum(local(p).numel() for p in model.parameters())
    loss = torch.zeros(())
    for micro in zip(*(x.tensor_split(2) for x in random_rows()), strict=True):
        mine = [x.tensor_split(rows.size())[rows.get_local_rank()] for x in micro]
        loss += backward(model, *mine)
    dist.all_reduce(loss, group=rows.get_group())
    for p in model.parameters():
        local(p.grad).mul_(rows.size())  # the sum over all rows, in place of the average of sums
    gradients = full_gradients(model)
    norm = clip_gradients(model, CLIP)
    for p in model.parameters():
        local(p.data).sub_(RATE * local(p.grad))
    return {
        "loss": float(loss),
        "gradients": gradients,
        "norm": norm,
        "weights": full_weights(model),
        "names": names,
        "held": held,
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, name
        error = float((got[name] - tensor).abs().max())
        assert error <= 1e-5 * float(tensor.abs().max()), (name, error)


def check_layout(processes: Processes, layout: Layout, models: list[str]) -> None:
    for model in models:
        config = MODELS[model]
        expected, seen = alone(config), processes.run(together, layout, config)
        split = random_model(config)
        split_fused(split)
        # A checkpoint of one layout loads under another, because the names are the same.
        assert {name for one in seen for name in one["names"]} == set(split.state_dict())
        for one in seen:
            assert one["loss"] == pytest.approx(expected["loss"], rel=1e-5), model
            assert one["norm"] == pytest.approx(expected["norm"], rel=1e-5), model
            assert_same(one["gradients"], expected["gradients"])
            assert_same(one["weights"], expected["weights"])
        check_share(layout, [one["held"] for one in seen], expected["weights"])


def check_share(layout: Layout, held: list[int], weights: dict[str, torch.Tensor]) -> None:
    """The largest part is not much larger than the whole divided by the processes."""
    total = sum(weight.numel() for weight in weights.values())
    # Copies are no share. Norms stay whole under "tensor"; a first stage also has the table.
    extra = 1.5 if layout.pipeline > 1 else 1.12
    assert max(held) * layout.n_processes <= extra * layout.data * total


@pytest.mark.parametrize("layout", AT_TWO, ids=str)
def test_two_processes_compute_what_one_does(two, layout):
    check_layout(two, layout, ["moe"] if layout.expert > 1 else list(MODELS))


@pytest.mark.parametrize("layout", AT_FOUR, ids=str)
def test_four_processes_compute_what_one_does(four, layout):
    check_layout(four, layout, ["moe"] if layout.expert > 1 else list(MODELS))


@pytest.mark.parametrize("layout", AT_EIGHT, ids=str)
def test_eight_processes_in_three_ways_at_once_compute_what_one_does(eight, layout):
    check_layout(eight, layout, ["moe"] if layout.expert > 1 else ["gpt2", "moe"])


def test_a_pipeline_takes_batches_of_every_shape_and_evaluates(two):
    def losses(config):
        model = parallelize(random_model(config), make_mesh(Layout(pipeline=2), "cpu"), n_micro=2)
        tokens, targets = random_rows()
        found = [model.loss(tokens[:n, :t], targets[:n, :t]) for n, t in ((16, 7), (2, 5), (16, 7))]
        return found, [p.grad for p in model.parameters()]

    model, (tokens, targets) = random_model(MODELS["gpt2"]), random_rows()
    whole = float(next_token_loss(model(tokens), targets, "sum").detach())
    part = float(next_token_loss(model(tokens[:2, :5]), targets[:2, :5], "sum").detach())
    for found, gradients in two.run(losses, MODELS["gpt2"]):
        assert found == pytest.approx([whole, part, whole], rel=1e-5)
        assert not any(gradients), "an evaluation leaves no gradients"


def refusal(function) -> str:
    with pytest.raises(ValueError) as error:
        function()
    return str(error.value)


def test_what_does_not_fit_is_refused_in_every_process(two):
    def shared_out(model, **layout):
        return parallelize(model, make_mesh(Layout(**layout), "cpu"))

    def refusals():
        piped = shared_out(random_model(MODELS["dense"]), pipeline=2)
        later = Transformer(llama_config(V, n_layers=1, n_future=1))
        return [
            refusal(lambda: make_mesh(Layout(data=3), "cpu")),
            refusal(lambda: shared_out(torch.nn.Linear(2, 2), data=2)),
            refusal(lambda: shared_out(later, shard=2)),
            refusal(lambda: shared_out(random_model(MODELS["dense"]), expert=2)),
            refusal(lambda: backward(piped, *(x[:6] for x in random_rows()))),
        ]

    for said in two.run(refusals):
        assert "is for 3 processes, and there are 2" in said[0]
        assert "a Linear cannot be shared out: expected a Transformer" in said[1]
        assert "modules for later tokens are trained by a loss of their own" in said[2]
        assert "this model has no experts" in said[3]
        assert "6 rows do not divide into 4 micro-batches" in said[4]


def test_a_layout_multiplies_and_counts_from_one():
    assert Layout(2, 3, 4, 5, 6).n_processes == 720
    with pytest.raises(ValueError, match="tensor=0: expected a number of processes"):
        Layout(tensor=0)


def test_layers_are_dealt_out_evenly_and_in_order():
    assert stage_of_layer(5, 4) == [0, 0, 1, 2, 3]
    assert stage_of_layer(6, 3) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("check", "config", "n", "message"),
    [
        (check_tensor_parallel, MODELS["dense"], 8, "n_kv_heads=4 does not divide by tensor=8"),
        (check_tensor_parallel, gpt2_config(V, position="alibi"), 2, "no ALiBi"),
        (check_tensor_parallel, llama_config(V, qk_norm="head"), 2, "no qk_norm"),
        (check_tensor_parallel, llama_config(V, latent=Latent(8, 4)), 2, "no latent"),
        (check_expert_parallel, MODELS["dense"], 2, "has no experts"),
        (check_expert_parallel, MODELS["moe"], 3, "n_experts=8 does not divide by expert=3"),
        (check_pipeline, MODELS["dense"], 6, "4 layers are too few for pipeline=6"),
        (check_pipeline, gpt2_config(V, position="relative"), 2, "no relative position bias"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(check, config, n, message):
    with pytest.raises(ValueError, match=message):
        check(config, n)

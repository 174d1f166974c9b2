"""What a pipeline cannot do is refused, not done wrongly. Teams at work: tests/distributed."""

import pytest
import torch

from minillm.data.packing import Batch
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.parallel import blocks_of
from minillm.train.pipeline import Stage
from minillm.train.precision import in_precision
from minillm.train.team import pipeline_loss

TOKENS = torch.zeros(2, 3, dtype=torch.int64)


def test_a_pipeline_refuses_packed_documents():
    with pytest.raises(ValueError, match="mask_documents=False"):
        pipeline_loss(None, Batch(TOKENS, TOKENS, documents=TOKENS))


def test_a_pipeline_refuses_float16():
    """Its gradients are there before anybody could scale the loss: they would end divided."""
    with pytest.raises(ValueError, match="bf16"):
        in_precision(pipeline_loss, "fp16")(torch.nn.Linear(1, 1), Batch(TOKENS, TOKENS))


def test_the_blocks_of_a_stage_are_modules_as_those_of_a_model_are():
    model = Transformer(llama_config(11, d_model=8, n_layers=3, n_heads=2))
    whole = list(model.blocks)
    assert blocks_of(model) == whole
    assert blocks_of(Stage(model, 1, 2)) == whole[2:]

"""What only a CUDA device can show: `pytest -m gpu` there; elsewhere these are not selected."""

import pytest
import torch
from tiny import tiny_pipeline

from maskimg.drawing.graphs import GraphedSampler
from maskimg.pipeline import Pipeline
from maskimg.sampler import ORDERS, Sampler
from maskimg.sampling import sample

pytestmark = pytest.mark.gpu


def on_gpu(dtype: str = "fp32") -> Pipeline:
    source = tiny_pipeline()
    return Pipeline(
        source.tokenizer, source.generator, labels=source.labels.names, recipe=source.recipe, device="cuda", dtype=dtype
    )


@pytest.mark.parametrize("order", ORDERS)
def test_a_gpu_draws_the_cpus_codes_in_fp32(order):
    sampler = Sampler(order=order, steps=5, guidance=2.0)
    expected = tiny_pipeline().generate("cat", seeds=3, count=16, sampler=sampler).codes
    found = on_gpu().generate("cat", seeds=3, count=16, sampler=sampler).codes.cpu()
    assert (found == expected).flatten(1).all(1).float().mean() >= 0.9  # sums of another order turn a close draw


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_recorded_generation_equals_the_launched_one(order, dtype):
    pipeline = on_gpu(dtype)
    sampler = Sampler(order=order, steps=5, guidance=2.0)
    graphed = GraphedSampler(pipeline.running)
    for seed, label in ((1, [0, 1]), (9, [2, 0])):  # the second replays what the first recorded
        seeds = torch.arange(seed, seed + 4, device="cuda")
        condition = torch.tensor([label] * 4, device="cuda")
        masked = torch.full((4, 4, 4), 64, device="cuda")
        assert torch.equal(
            graphed(condition, sampler, seeds).codes, sample(pipeline.running, masked, condition, sampler, seeds)
        )
    assert len(graphed.recordings) == 1


def test_seeds_do_not_depend_on_the_batch():
    pipeline = on_gpu()
    whole = pipeline.generate("cat", seeds=0, count=16).codes
    parts = torch.cat([pipeline.generate("cat", seeds=i, count=4).codes for i in range(0, 16, 4)])
    assert torch.equal(whole, parts)

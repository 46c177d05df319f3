"""The judge, and what is measured of a tokenizer: right on cases where the answer is known."""

import torch

from maskimg.evaluate import train_judge


def test_a_judge_tells_dark_pictures_from_bright_ones_and_is_the_same_for_the_same_seed():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    noise = torch.randint(0, 40, (24, 3, 8, 8), generator=generator)
    pixels = (noise + 200 * labels[:, None, None, None]).to(torch.uint8)
    before = torch.random.get_rng_state()

    judge, again = (train_judge(pixels, labels, 2, 15) for _ in range(2))

    assert judge.accuracy(pixels, labels) == 1.0
    features = judge.features(pixels)
    assert features.shape == (24, 128)
    assert features.dtype == torch.float32
    assert torch.equal(features, again.features(pixels))
    assert torch.equal(torch.random.get_rng_state(), before)

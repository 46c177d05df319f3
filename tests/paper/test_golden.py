"""The engine draws what it always drew: sixty requests, compared with a record of their codes and pixels."""

import numpy as np
import pytest
from golden_requests import RECORD, Asked, draw, requests

REQUESTS = list(requests())


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORD) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_sixty_requests_are_recorded():
    assert len(REQUESTS) == 60
    assert len({request.name for request in REQUESTS}) == 60


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_a_request_draws_the_same_codes_and_pixels(request_: Asked, recorded):
    codes, pictures = draw(request_)
    assert np.array_equal(codes, recorded[f"{request_.name}: codes"])
    for i, pixels in enumerate(pictures):
        before = recorded[f"{request_.name}: {i}"]
        assert pixels.shape == before.shape
        # On another kind of processor a sum may be rounded otherwise, and a pixel with it; a code never was.
        assert np.abs(pixels.astype(int) - before).max() <= 1

"""Attention in training gives what the fused kernel gives, gradients included; rotation is the same however it runs."""

import pytest
import torch
import torch.nn.functional as F

from maskimg.networks.blocks import attention, rotary, rotate


@pytest.mark.parametrize("absent", [False, True])
def test_attention_in_training_has_the_gradients_of_the_fused_kernel(absent):
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 3, 7, 8, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    present = None
    if absent:
        present = torch.ones(2, 7, dtype=torch.bool)
        present[0, 2:4] = present[1, 0] = False
    found = attention(q, k, v, present)
    expected = F.scaled_dot_product_attention(q, k, v, None if present is None else present[:, None, None])
    torch.testing.assert_close(found, expected)
    out = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    gradients = torch.autograd.grad(found, (q, k, v), out)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (q, k, v), out))
    # In the order of the keys: otherwise every pass over it takes twice as long.
    assert gradients[1].is_contiguous()
    if absent:
        assert not gradients[1][0, :, 2:4].any() and not gradients[2][1, :, 0].any()


def test_rotation_is_the_same_when_it_is_compiled():
    x = torch.randn(2, 16, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = rotary(4, 4, 8, 0, torch.device("cpu"))
    compiled = torch.compile(rotate, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(x, rotation), rotate(x, rotation))
    turned = rotate(x, rotation).unflatten(-1, (2, 4)).square().sum(-2)
    torch.testing.assert_close(turned, x.unflatten(-1, (2, 4)).square().sum(-2))  # planes are turned, not stretched

"""Muon against torch's own, and against what it is meant to compute."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.training.optimizers import Muon, orthogonalize

SHAPES = [(12, 4), (4, 12), (4, 12), (6, 6)]


def parameters(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_steps_as_torchs_muon_does(dtype: torch.dtype) -> None:
    ours, theirs = parameters(0), parameters(0)
    optimizers = [Muon(ours, 0.1, 0.5, dtype), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5)]
    for step in range(5):
        for a, b, grad in zip(ours, theirs, parameters(1 + step), strict=True):
            a.grad, b.grad = grad.detach(), grad.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, parameters(0), strict=True):
        assert (a - start).norm() > 1
        # torch's iterates in bfloat16, with 8 bits
        assert (a - b).norm() < 0.02 * (a - start).norm()


@given(st.integers(0, 1000), st.sampled_from([(3, 8), (8, 3), (5, 5)]))
def test_it_keeps_the_singular_vectors_and_evens_out_the_values(seed: int, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(2, *shape, generator=generator), full_matrices=False)
    values = 0.2 + torch.rand(2, min(shape), generator=generator)
    out = u.mT @ orthogonalize((u * values[:, None]) @ v) @ v.mT
    diagonal = out.diagonal(dim1=1, dim2=2)
    assert (out - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()


def test_a_zero_gradient_changes_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 2)), torch.zeros(1, 3, 2))

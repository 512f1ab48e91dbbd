"""The two parts of a split measurement are independent given the light, whatever the detector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from napari_ambient.splitting import split, thin

COUNT = 300_000


def pulses(light: float, shape: float, g: torch.Generator) -> Tensor:
    """Draw sums of Poisson many Gamma pulses whose variance is their mean."""
    mean = shape / (shape + 1)
    n = torch.poisson(torch.full((COUNT,), light / mean), generator=g)
    torch.manual_seed(3)
    return torch._standard_gamma((n * shape).clamp_min(1e-6)) * (mean / shape) * (n > 0)


def camera(light: float, read: float, g: torch.Generator) -> Tensor:
    """Draw Poisson counts with read noise, shifted so that their variance is their mean."""
    counts = torch.poisson(torch.full((COUNT,), light), generator=g)
    return counts + read + read**0.5 * torch.randn(COUNT, generator=g)


def dependence(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Measure how much of k₂'s spread the sorted k₁ tells: the correlation, and the largest of ten bins' means.

    Both in standard errors; of ten independent bins the largest exceeds 3.7 once in 450 tries.
    """
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1]) * COUNT**0.5
    # ties (empty voxels) are shared out at random
    order = torch.argsort(first + 1e-6 * torch.rand(COUNT, generator=torch.Generator().manual_seed(0)))
    bins = second[order].reshape(10, -1)
    error = second.std() / bins.shape[1] ** 0.5
    return abs(correlation), float(((bins.mean(1) - second.mean()) / error).abs().max())


@pytest.mark.parametrize("light", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("p", [0.5, 0.9])
@pytest.mark.parametrize("detector", ["counter", "camera", "dim camera", "pulses"])
def test_parts_are_independent(detector: str, light: float, p: float) -> None:
    """Given the light, k₁ tells nothing of k₂: neither its mean in any bin nor the correlation."""
    g = torch.Generator().manual_seed(1)
    read, shape = {"counter": (0.0, math.inf), "camera": (2.0, math.inf), "dim camera": (0.2, math.inf)}.get(
        detector, (0.0, 4.0)
    )
    counts = pulses(light, shape, g) if shape < 9 else camera(light, read, g) if read else camera(light, 0.0, g)
    pilot = torch.full_like(counts, light + read)
    first = split(counts, pilot, torch.tensor(p), read_variance=read, pulse_shape=shape, generator=g)
    assert float(first.mean() / counts.mean()) == pytest.approx(p, abs=5 * float(first.std()) / COUNT**0.5 / light)
    correlation, bins = dependence(first, counts - first)
    assert correlation < 4
    # the pulses' first bin: at k below a hundredth one quantum is taken for granted
    assert bins < (8 if detector == "pulses" else 4)


def test_two_moments_are_not_enough() -> None:
    """Negative control: binomial thinning of uneven pulses leaves k₁ and k₂ uncorrelated, but not independent."""
    g = torch.Generator().manual_seed(2)
    counts = pulses(0.7, 4.0, g)
    first = thin(counts, torch.tensor(0.7), g)
    correlation, bins = dependence(first, counts - first)
    assert correlation < 4
    assert bins > 50


def test_read_noise_taken_for_light_is_told() -> None:
    """Negative control: a camera's counts below zero, split as light, tell of each other."""
    g = torch.Generator().manual_seed(4)
    counts = camera(0.3, 2.0, g)
    first = split(counts, torch.full_like(counts, 2.3), torch.tensor(0.7), generator=g)
    assert dependence(first, counts - first)[1] > 20


def test_bright_counts_keep_two_moments() -> None:
    """Above `BRIGHT` the split has the mean p k and the added variance p (1 - p) (λ + r²)."""
    g = torch.Generator().manual_seed(5)
    p, light, read = 0.7, 60.0, 4.0
    counts = camera(light, read, g)
    first = split(counts, torch.full_like(counts, light + read), torch.tensor(p), read_variance=read, generator=g)
    added = (first - p * counts).square().mean()
    # 1 - w of the light's own added variance is missing where the light is the pilot's: second order in r²/m
    assert float(added) == pytest.approx(p * (1 - p) * (light + read), rel=0.02)
    assert dependence(first, counts - first)[0] < 4


def test_a_split_is_repeatable() -> None:
    """The same generator gives the same parts."""
    counts = pulses(1.0, 4.0, torch.Generator().manual_seed(6))[:1000]
    one, two = (
        split(counts, counts, torch.tensor(0.5), pulse_shape=4.0, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(one, two)

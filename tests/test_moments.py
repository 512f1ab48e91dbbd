"""Mean and spread of draws of which two are mates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_ambient.moments import Moments


def draws(count: int, curve: float, seed: int, voxels: int = 4000) -> NDArray[np.float64]:
    """Draw x = 3 + 2 (z + curve (z² - 1)) per voxel, the second of them with the first's noise negated."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((count, voxels))
    z[1] = -z[0]
    return np.asarray(3 + 2 * (z + curve * (z**2 - 1)))


@pytest.mark.parametrize("curve", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_mean_and_spread_are_unbiased(count: int, curve: float) -> None:
    """Whatever ties the mates together, and the mean is never worse than the plain one."""
    means, variances, plain = [], [], []
    for seed in range(40):
        moments = Moments()
        stack = draws(count, curve, seed)
        for draw in stack:
            moments.add(draw)
        means.append(moments.mean())
        variances.append(moments.std() ** 2)
        plain.append(stack.mean(0))
    truth = 4 * (1 + 2 * curve**2)
    assert np.mean(means) == pytest.approx(3, abs=0.02)
    if count > 2:  # two draws cannot tell how they are tied together
        assert np.mean(variances) == pytest.approx(truth, rel=0.05 if curve < 1 else 0.08)
    error, usual = (float(np.mean((np.array(m) - 3) ** 2)) for m in (means, plain))
    assert error <= usual * 1.02
    if curve == 0 and count > 2:
        assert error < 0.05 * truth / count  # nearly exact where draws are linear in their noise


def test_two_draws_take_the_usual_correlation() -> None:
    """Exact for mates that are tied together by -0.9."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal(200_000)
    two = -0.9 * one + np.sqrt(1 - 0.81) * rng.standard_normal(one.shape)
    moments = Moments()
    moments.add(one)
    moments.add(two)
    assert np.mean(moments.std() ** 2) == pytest.approx(1, rel=0.02)
    # as independent draws they would claim nearly twice the variance
    assert np.mean((one - two) ** 2) / 2 > 1.8


def test_without_mates_it_is_the_usual_estimate() -> None:
    """Mean and standard deviation with n - 1."""
    stack = np.random.default_rng(1).standard_normal((5, 100))
    moments = Moments(mates=False)
    for draw in stack:
        moments.add(draw)
    np.testing.assert_allclose(moments.mean(), stack.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.std(), stack.std(0, ddof=1), atol=1e-12)


def test_independent_draws_are_recognised() -> None:
    """Mates that are not tied together at all cost nothing."""
    rng = np.random.default_rng(2)
    moments = Moments()
    stack = rng.standard_normal((6, 50_000))
    for draw in stack:
        moments.add(draw)
    assert moments.correlation == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(moments.mean(), stack.mean(0), atol=0.02)


def test_one_draw_has_no_spread() -> None:
    """It says so."""
    moments = Moments()
    moments.add(np.ones(3))
    np.testing.assert_array_equal(moments.mean(), np.ones(3))
    with pytest.raises(ValueError, match="two or more"):
        moments.std()

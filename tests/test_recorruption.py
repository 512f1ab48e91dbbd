"""Law 1: what is predicted is unbiased, because the noise added and the noise left behind are uncorrelated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_ambient.noise import NoiseModel
from napari_ambient.recorruption import (
    Gaussian,
    Thinning,
    choose_recorruption,
    fill,
    from_photons,
    look_at_quanta,
    read_variance_below_zero,
    spectrum,
    to_photons,
    trusted,
)
from napari_ambient.splitting import Lag, thin

KERNEL = np.array([[0.05, 0.2, 0.05], [0.2, 1.0, 0.2], [0.05, 0.2, 0.05]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_scalar_identity() -> None:
    """(α f + (1-α) x_t - y)/α = f - ỹ with ỹ = y - σ_y²/(σ²-σ_y²) (x_t - y), for any f."""
    g = generator()
    y, f = (torch.randn(4, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    sigma_y, sigma = 1.0, torch.tensor([1.1, 1.5, 3.0, 10.0], dtype=torch.float64)
    form = Gaussian()
    further = form.recorrupt_scaled(y, torch.full_like(y, sigma_y**2), sigma, g)
    s2 = sigma.square().reshape(-1, 1, 1, 1)
    alpha = 1 - sigma_y**2 / s2
    left = (alpha * f + (1 - alpha) * further.x_t - y) / alpha
    target = y - sigma_y**2 / (s2 - sigma_y**2) * (further.x_t - y)
    torch.testing.assert_close(left, f - target, rtol=1e-9, atol=1e-9)
    # and the loss is that residual, squared and weighted
    expected = (alpha * (f - target)).square() / alpha.clamp_min(0.05)
    torch.testing.assert_close(form.loss(f, further), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("correlation", [None, KERNEL])
def test_covariance_identity(correlation: np.ndarray | None) -> None:
    """For per-pixel and correlated S: D + (S/σ²)(x_t - D) - y = A (D - ỹ), A = I - S/σ²."""
    g = generator(1)
    n = 6
    form = Gaussian(correlation=correlation)
    variance = 0.3 + 0.7 * torch.rand(1, 1, n, n, generator=g, dtype=torch.float64)
    y, f, e = (torch.randn(1, 1, n, n, generator=g, dtype=torch.float64) for _ in range(3))
    sigma2 = 4.0
    units = torch.eye(n * n, dtype=torch.float64).reshape(n * n, 1, n, n)
    s = form.apply_covariance(units, variance.expand(n * n, -1, -1, -1)).reshape(n * n, n * n)
    torch.testing.assert_close(s, s.T)  # a covariance
    a = torch.eye(n * n, dtype=torch.float64) - s / sigma2
    x_t = y + e
    target = y.flatten() - torch.linalg.solve(a, s @ e.flatten() / sigma2)
    residual = (f + form.apply_covariance(x_t - f, variance) / sigma2 - y).flatten()
    torch.testing.assert_close(torch.linalg.solve(a, residual), f.flatten() - target, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("correlation", [None, KERNEL], ids=["per-pixel", "correlated"])
def test_added_noise_has_the_missing_covariance(correlation: np.ndarray | None) -> None:
    """Cov(e) = σ² I - S, so the noise of x_t is white, and uncorrelated with that of ỹ."""
    g = generator(2)
    n, count = 8, 40000
    form = Gaussian(correlation=correlation)
    variance = (0.5 + 0.5 * torch.rand(1, 1, n, n, generator=g)).expand(count, -1, -1, -1)
    sigma = torch.full((count,), 1.7)
    zero = torch.zeros(count, 1, n, n)
    e = form.recorrupt_scaled(zero, variance, sigma, g).x_t.reshape(count, -1).double()
    measured = e.T @ e / count
    units = torch.eye(n * n).reshape(n * n, 1, n, n)
    s = form.apply_covariance(units, variance[: n * n]).reshape(n * n, n * n).double()
    expected = 1.7**2 * torch.eye(n * n) - s
    # sampling error of a covariance entry: σ²/√count = 0.0145; 5.5 of them over 2016 entries
    assert (measured - expected).abs().max() < 0.08


def test_thinned_parts_are_uncorrelated() -> None:
    """Cov(k₁, k₂ | x) = 0 for Poisson counts, and for real counts whose variance equals their mean."""
    g = generator(3)
    count = 400_000
    for mean in (0.3, 1.0, 5.0):
        poisson = torch.poisson(torch.full((count,), mean, dtype=torch.float64), generator=g)
        # another measurement with variance = mean, not whole: shifted Poisson and Gaussian
        read = 0.4 * mean
        real = torch.poisson(torch.full((count,), mean - read, dtype=torch.float64), generator=g)
        real = real + read + read**0.5 * torch.randn(count, generator=g, dtype=torch.float64)
        for k, tolerance in ((poisson, 4.0), (real, 4.0)):
            if k is real and mean < 5:
                continue  # below zero counts need the read noise's share, next test
            k = k.clamp_min(0)
            first = thin(k, torch.tensor(0.7, dtype=torch.float64), g)
            second = k - first
            covariance = torch.cov(torch.stack([first, second]))[0, 1]
            error = (first.var() * second.var() / count).sqrt()
            assert abs(covariance) < tolerance * error
            assert abs(first.mean() - 0.7 * k.mean()) < tolerance * first.std() / count**0.5


def smeared(light: float, shape: tuple[int, ...], correlation: float, g: torch.Generator) -> torch.Tensor:
    """Count photo-electrons through electronics that smear along X; variance equals mean."""
    lag = Lag(correlation)
    return lag.applied(torch.poisson(torch.full(shape, light * lag.variance), generator=g))


@pytest.mark.parametrize("light", [2.0, 20.0])
@pytest.mark.parametrize("turned", [False, True])
def test_a_detector_with_lag_is_split_through_it(light: float, turned: bool) -> None:
    """k₁ tells nothing of k₂, at the voxel and at its neighbours along the camera's X; without the lag, of those."""
    g = torch.Generator().manual_seed(2)
    lag, p = 0.06, 0.7
    photons = smeared(light, (4, 1, 256, 256), lag, g)
    assert float(photons.var() / photons.mean()) == pytest.approx(1, abs=0.02)
    photons = photons.mT.contiguous() if turned else photons
    upright = torch.full((4,), not turned)

    def told(form: Thinning) -> list[float]:
        further = form.recorrupt(photons, None, torch.full((4,), p**-0.5), torch.Generator().manual_seed(3), upright)
        first, second = (photons - further.remainder)[:, 0], further.remainder[:, 0]
        if turned:
            first, second = first.mT, second.mT
        assert float(first.mean() / photons.mean()) == pytest.approx(p, abs=0.002)
        first, second = first - first.mean(), second - second.mean()
        scale = p * (1 - p) * light
        return [float((first[..., : 256 - step] * second[..., step:]).mean()) / scale for step in (0, 1, 2)]

    assert max(map(abs, told(Thinning(lag=lag)))) < 0.015
    assert told(Thinning())[1] == pytest.approx(lag, abs=0.015)


def test_the_lag_is_undone_up_to_the_border_and_past_hot_pixels() -> None:
    """Undone and applied is the same again; what is not trusted is not smeared into its neighbours."""
    counts = torch.rand((2, 1, 8, 33), generator=torch.Generator().manual_seed(0))
    lag = Lag(0.2)
    torch.testing.assert_close(lag.applied(lag.undone(counts)), counts)
    with torch.autocast("cpu", torch.bfloat16):  # of the network, not of counts
        torch.testing.assert_close(lag.applied(lag.undone(counts)), counts)
    hot, good = torch.full((1, 1, 16, 16), 100.0), torch.ones((1, 1, 16, 16), dtype=torch.bool)
    hot[..., 8, 8], good[..., 8, 8] = 1e6, False
    further = Thinning(lag=0.2).recorrupt(hot, good, torch.tensor([1.2]), torch.Generator().manual_seed(0))
    assert float((hot - further.remainder)[good].max()) < 150
    with pytest.raises(ValueError, match="lag is 0 to"):
        Lag(0.5)


@pytest.mark.parametrize(("light", "read"), [(0.5, 2.0), (3.0, 0.5), (0.0, 4.0)])
def test_read_noise_below_zero_is_not_given_away(light: float, read: float) -> None:
    """With the read noise's share k₁ tells nothing of k₂; without it a k₁ below zero tells that k₂ is too."""
    g = torch.Generator().manual_seed(8)
    shape, p = (1, 1, 500, 500), 0.7
    photons = torch.poisson(torch.full(shape, light), generator=g) + read + read**0.5 * torch.randn(shape, generator=g)
    sigma = torch.tensor([p**-0.5])

    def told(form: Thinning) -> tuple[float, float]:
        remainder = form.recorrupt(photons, None, sigma, torch.Generator().manual_seed(9)).remainder
        first = photons - remainder
        covariance = float(torch.cov(torch.stack([first.flatten(), remainder.flatten()]))[0, 1])
        low = first <= torch.quantile(first[..., :100].flatten(), 0.05)
        return covariance / (p * (1 - p) * (light + read)), float(remainder[low].mean() - remainder.mean())

    covariance, shift = told(Thinning(read))
    # relative to the added variance; the pilot's own noise leaves under 2 %, and skewness a little at low light
    assert abs(covariance) < 0.04
    assert abs(shift) < 0.1
    if light < 1:
        assert abs(told(Thinning())[1]) > 0.2
    assert read_variance_below_zero(photons[0]) == pytest.approx(read, rel=0.3)


def test_rounding_the_counts_would_correlate_them() -> None:
    """Negative control: rounding real counts at random before thinning adds noise that both parts share."""
    g = generator(4)
    count = 400_000
    k = 0.5 * torch.poisson(torch.full((count,), 4.0, dtype=torch.float64), generator=g)  # variance 1, mean 2
    k = k + torch.randn(count, generator=g, dtype=torch.float64)  # variance 2, mean 2: as the law asks
    k = k + 3  # away from zero; the mean's surplus of 3 is a Poisson count's
    k = k + torch.poisson(torch.full((count,), 3.0, dtype=torch.float64), generator=g) - 3
    rounded = k.floor() + (torch.rand(count, generator=g, dtype=torch.float64) < k - k.floor())

    def correlation(values: torch.Tensor) -> float:
        first = torch.binomial(values.clamp_min(0), torch.full_like(values, 0.5), generator=g)
        return float(torch.cov(torch.stack([first, values - first]))[0, 1])

    k = k.clamp_min(0)
    first = thin(k, torch.tensor(0.5, dtype=torch.float64), g)
    exact = float(torch.cov(torch.stack([first, k - first]))[0, 1])
    # p (1-p) E f(1-f) = 0.25 / 6 = 0.042; sampling error 0.004
    assert abs(exact) < 0.016
    assert correlation(rounded.clamp_min(0)) > 0.025


def test_thinning_learns_the_posterior_mean() -> None:
    """Gamma-Poisson: least squares of k₂/(1-p) on k₁ gives E[x | k₁] = (k₁ + a)/(b + p)."""
    g = generator(5)
    a, b, p = 2.0, 0.5, 0.6
    count = 1_000_000
    x = torch.distributions.Gamma(torch.tensor(a), torch.tensor(b))
    torch.manual_seed(0)
    counts = torch.poisson(x.sample((count,)), generator=g).double()
    first = thin(counts, torch.tensor(p, dtype=torch.float64), g)
    target = (counts - first) / (1 - p)
    design = torch.stack([torch.ones(count, dtype=torch.float64), first], dim=1)
    constant, slope = torch.linalg.lstsq(design, target[:, None]).solution.flatten().tolist()
    assert slope == pytest.approx(1 / (b + p), rel=0.01)
    assert constant == pytest.approx(a / (b + p), rel=0.01)
    # the same on the counts themselves, the mistake that the law forbids
    wrong = torch.linalg.lstsq(design, counts[:, None]).solution.flatten()[1].item()
    assert abs(wrong - 1 / (b + p)) > 0.1


@pytest.mark.parametrize(
    ("kind", "read", "shape"),
    [("counter", 0.0, None), ("camera", 0.6, None), ("pulses", 0.0, 4.0), ("pulses", 0.0, 1.0)],
)
def test_looks_at_the_quanta(kind: str, read: float, shape: float | None) -> None:
    """Whole counts, a camera's read noise and uneven pulses are told apart."""
    g = generator(11)
    light = torch.full((16, 128, 128), 1.3)
    if shape is not None:
        n = torch.poisson(light * (shape + 1) / shape, generator=g)
        torch.manual_seed(11)
        counts = torch._standard_gamma((shape * n).clamp_min(1e-6)) / (shape + 1) * (n > 0)
    else:
        counts = torch.poisson(light, generator=g) + read + read**0.5 * torch.randn(light.shape, generator=g)
    quanta = look_at_quanta(counts)
    assert quanta.pulse_shape == (None if shape is None else pytest.approx(shape, rel=0.35))
    assert quanta.read_variance == pytest.approx(read, rel=0.35, abs=0.01)
    assert quanta.photons == pytest.approx(1.3, rel=0.2)  # what is not read noise is light


@pytest.mark.parametrize("form", [Thinning(), Gaussian()])
def test_scaled_intensity_and_photons(form: Thinning | Gaussian) -> None:
    """`photons` and `scaled` undo each other where the transform is smooth."""
    photons = torch.tensor([5.0, 20.0, 100.0, 390.0, 2000.0])
    torch.testing.assert_close(form.photons(form.scaled(photons)), photons, rtol=0.01, atol=0.01)


def test_gaussian_inverse_is_unbiased() -> None:
    """Law 5: the inverse of E[z | λ] is λ."""
    g = generator(6)
    form = Gaussian()
    for rate in (0.2, 1.0, 5.0, 50.0):
        counts = torch.poisson(torch.full((500_000,), rate), generator=g)
        mean = form.measure(counts.reshape(1, 1, 500, 1000)).double().mean().float()
        assert float(form.photons(mean)) == pytest.approx(rate, rel=0.01)


def test_stabilised_variance_is_the_measured_one() -> None:
    """V comes from the table at the pilot's level: 1 in bright light, much less at half a photon."""
    g = generator(7)
    form = Gaussian()
    for rate in (0.5, 2.0, 30.0):
        counts = torch.poisson(torch.full((1, 1, 400, 400), rate), generator=g)
        z = form.measure(counts)
        assert float(form.variance(counts).mean()) == pytest.approx(float(z.var()), rel=0.04)
    assert float(form.variance(torch.full((1, 1, 32, 32), 0.5)).mean()) < 0.6


def test_fill_uses_good_neighbours_only() -> None:
    """A hole takes the mean of its trusted neighbours, however large the hole."""
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    bad = torch.ones_like(x, dtype=torch.bool)
    bad[..., 2, 2] = False
    broken = x.clone()
    broken[..., 2, 2] = 1e6
    filled = fill(broken, bad)
    assert filled[0, 0, 2, 2] == pytest.approx((x[..., 1:4, 1:4].sum() - 12) / 8)
    assert torch.equal(filled[bad], x[bad])
    hole = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    hole[..., 0] = True
    torch.testing.assert_close(fill(torch.full((1, 1, 9, 9), 3.0), hole), torch.full((1, 1, 9, 9), 3.0))


def test_photons_and_back_with_maps(rng: np.random.Generator) -> None:
    """Per-pixel maps are cut to the region, and `from_photons` undoes `to_photons`."""
    gain = rng.uniform(1, 3, (20, 30))
    noise = NoiseModel(gain=gain, intercept=-100 * gain, hot_pixels=rng.random((20, 30)) < 0.1)
    y = rng.uniform(100, 200, (2, 5, 7)).astype(np.float32)
    rows, columns = slice(3, 8), slice(11, 18)
    photons = to_photons(y, noise, rows, columns)
    np.testing.assert_allclose(photons, (y - 100) / gain[rows, columns], rtol=1e-5)
    np.testing.assert_allclose(from_photons(photons, noise, rows, columns), y, rtol=1e-5)
    y[0, 0, 0] = np.nan
    good = trusted(y, noise, rows, columns)
    assert not good[0, 0, 0]
    assert noise.hot_pixels is not None
    np.testing.assert_array_equal(good[1], ~noise.hot_pixels[rows, columns])


def test_the_form_follows_the_fit() -> None:
    """Thinning only if every fit allows it; a choice of the user's goes first; an unknown one is refused."""
    photon = NoiseModel(gain=2.0, intercept=-200.0, form="thinning")
    camera = NoiseModel(gain=2.0, intercept=-200.0, form="gaussian", correlation=KERNEL)
    assert isinstance(choose_recorruption([photon]), Thinning)
    both = choose_recorruption([photon, camera])
    assert isinstance(both, Gaussian)
    assert both.sigma_y > 1.2  # correlated noise has a spectrum above its mean
    assert isinstance(choose_recorruption([camera], "thinning"), Thinning)
    with pytest.raises(ValueError, match="choose auto, thinning or gaussian"):
        choose_recorruption([photon], "poisson")  # type: ignore[arg-type]


def test_spectrum_of_white_noise_is_flat() -> None:
    """An autocorrelation that is 1 at the centre alone has spectrum 1."""
    delta = np.zeros((3, 3))
    delta[1, 1] = 1
    np.testing.assert_allclose(spectrum(delta, (8, 8)), 1)
    assert spectrum(KERNEL, (32, 32)).max() == pytest.approx(KERNEL.sum())

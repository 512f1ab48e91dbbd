"""NoiseModel: the line, its samples and likelihood, and the stabilising transform with its exact inverse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import integrate, stats

from napari_ambient.noise import NoiseModel, choose_form, stabilising_table

SCMOS = NoiseModel.from_camera(2.2, 100.0, 3.1, photons=5.0)
COUNTING = NoiseModel(gain=1.0, intercept=0.0, photons=1.0)


def camera_with_map(shape: tuple[int, int] = (16, 16)) -> NoiseModel:
    rng = np.random.default_rng(0)
    gain = 2.2 * (1 + rng.normal(0, 0.02, shape))
    read = 3.1 * np.exp(rng.normal(0, 0.8, shape))
    return NoiseModel.from_camera(gain, 100 + rng.normal(0, 2, shape), read, photons=5.0)


MODELS = {
    "read noise": SCMOS,
    "pure counts": COUNTING,
    "unknown split": NoiseModel(gain=4.0, intercept=-12.0, photons=3.0),
    "per pixel": camera_with_map(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("electrons", [0.3, 4.0, 300.0])
def test_samples_have_the_mean_and_the_variance_of_the_line(
    model: NoiseModel, electrons: float, rng: np.random.Generator
) -> None:
    dark = model.zero if model.offset is None else model.offset
    mean = np.broadcast_to(dark + model.gain * electrons, (16, 16))
    draws = model.sample(np.broadcast_to(mean, (4000, 16, 16)), rng)
    error = np.sqrt(model.variance(mean) / 4000)
    # 256 pixels: 5 standard errors are passed by chance once in 7000 runs.
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * error).all()
    # The kurtosis of photon noise is 1 / electrons; the mean over pixels averages the spread of the ratio.
    ratio = (draws.var(axis=0) / model.variance(mean)).mean()
    assert ratio == pytest.approx(1, abs=5 * np.sqrt((2 + 1 / electrons) / (4000 * 256)))


def test_variance_is_never_negative() -> None:
    assert SCMOS.variance(0.0) == 0
    assert SCMOS.variance(100.0) == pytest.approx(3.1**2)


def test_samples_stop_at_saturation(rng: np.random.Generator) -> None:
    model = NoiseModel(gain=1.0, intercept=0.0, saturation=20.0)
    assert model.sample(np.full(1000, 18.0), rng).max() == 20


def test_correlated_samples_have_the_autocorrelation_asked_for(rng: np.random.Generator) -> None:
    correlation = np.zeros((3, 3))
    correlation[1] = [0.3, 1.0, 0.3]
    model = NoiseModel(gain=1.0, intercept=0.0, correlation=correlation, form="gaussian")
    noise = model.sample(np.full((40, 64, 63), 100.0), rng) - 100
    variance = noise.var()
    assert variance == pytest.approx(100, rel=0.02)
    assert (noise[..., 1:] * noise[..., :-1]).mean() / variance == pytest.approx(0.3, abs=0.01)
    assert (noise[:, 1:] * noise[:, :-1]).mean() / variance == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("mean", [0.4, 3.0, 40.0])
def test_likelihood_of_counts_is_that_of_poisson(mean: float) -> None:
    k = np.arange(30)
    model = NoiseModel(gain=4.0, intercept=-12.0)
    # The density of y = zero + gain k is the probability of k over the gain.
    expected = stats.poisson.logpmf(k, mean) - np.log(4.0)
    np.testing.assert_allclose(model.log_likelihood(3 + 4 * k, 3 + 4 * mean), expected, rtol=1e-10)


def test_gaussian_likelihood_integrates_to_one() -> None:
    model = NoiseModel(gain=2.0, intercept=-180.0, form="gaussian")
    total, _ = integrate.quad(lambda y: float(np.exp(model.log_likelihood(y, 110.0))), 60, 160)
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_table_agrees_with_simulation(model: NoiseModel, rng: np.random.Generator) -> None:
    """An independent implementation: draws, where the table uses quadrature."""
    dark = model.zero if model.offset is None else model.offset
    for electrons in (0.0, 0.5, 2.0, 20.0, 2000.0):
        mean = np.broadcast_to(dark + model.gain * electrons, (16, 16))
        z = model.stabilise(model.sample(np.broadcast_to(mean, (2000, 16, 16)), rng))
        expected, variance = model.expected_stabilised(mean), model.stabilised_variance(mean)
        assert np.abs((z.mean(axis=0) - expected).mean()) < 5 * np.sqrt(variance.mean() / (2000 * 256)) + 1e-9
        assert z.var(axis=0).mean() == pytest.approx(variance.mean(), abs=0.012)


def test_stabilised_noise_is_not_unit_in_low_light() -> None:
    """The assumption that fails: at half a photo-electron per voxel the variance is 0.45, not 1."""
    assert COUNTING.stabilised_variance(0.5) == pytest.approx(0.47, abs=0.02)
    assert COUNTING.stabilised_variance(30.0) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_inverse_undoes_the_expectation(model: NoiseModel) -> None:
    """Law 5, the table: round trip below 1e-3 photo-electron, from darkness to far beyond the table."""
    dark = model.zero if model.offset is None else model.offset
    for electrons in (0.0, 0.01, 0.3, 1.0, 5.0, 50.0, 399.0, 401.0, 5000.0):
        mean = np.broadcast_to(dark + model.gain * electrons, (16, 16))
        back = model.unstabilise(model.expected_stabilised(mean))
        assert (np.abs(back - mean) / model.gain < 1e-3 * max(1.0, electrons)).all()


def test_inverse_is_clamped_in_the_dark_and_rises() -> None:
    z = np.linspace(-1, 50, 2000)
    mean = SCMOS.unstabilise(z)
    assert mean[0] == pytest.approx(100)
    assert (np.diff(mean) >= 0).all()
    assert np.isfinite(mean).all()


@pytest.mark.parametrize("mean", [5.0, 20.0])
def test_mean_of_inverted_draws_is_unbiased_and_inverse_of_their_mean_is_not(
    mean: float, rng: np.random.Generator
) -> None:
    """Law 5: gamma-Poisson. Prior gamma(a, b), a count y: the posterior mean is (y + a) / (1 + b)."""
    a, b = 1.0, 0.2
    y = round(mean * (1 + b) - a)
    posterior = (y + a) / (1 + b)
    x = rng.gamma(y + a, 1 / (1 + b), 400_000)
    z = COUNTING.expected_stabilised(x)
    assert COUNTING.unstabilise(z).mean() == pytest.approx(posterior, rel=0.01)
    assert COUNTING.unstabilise(z.mean()) < posterior * (1 - 0.1 / mean)


def test_inverse_of_the_denoised_is_unbiased_and_the_algebraic_one_is_not(rng: np.random.Generator) -> None:
    z = COUNTING.stabilise(rng.poisson(2.0, 1_000_000)).mean()
    assert COUNTING.unstabilise(z) == pytest.approx(2.0, rel=0.005)
    assert (z / 2) ** 2 - 0.375 < 1.9


def test_table_rises_strictly() -> None:
    for read in (0.0, 0.3, 1.4, 20.0):
        nu, mean, variance = stabilising_table(read)
        assert (np.diff(nu) > 0).all()
        assert (np.diff(mean) > 0).all()
        assert (variance >= 0).all()


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_record_holds_everything(model: NoiseModel) -> None:
    record = model.to_dict()
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()}
    again = NoiseModel.from_dict(json.loads(json.dumps(plain, allow_nan=False)))
    for name, value in record.items():
        np.testing.assert_equal(again.to_dict()[name], value)


def test_record_without_light_or_with_foreign_entries() -> None:
    assert np.isnan(NoiseModel.from_dict(NoiseModel(1.0, 0.0).to_dict()).photons)
    with pytest.raises(ValueError, match=r"missing \['gain'\], not known \['slope'\]"):
        NoiseModel.from_dict({k if k != "gain" else "slope": v for k, v in COUNTING.to_dict().items()})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gain": 0.0, "intercept": 0.0}, "above 0"),
        ({"gain": float("nan"), "intercept": 0.0}, "finite"),
        ({"gain": 1.0, "intercept": float("inf")}, "intercept"),
        ({"gain": 1.0, "intercept": 0.0, "read_noise": 1.0}, "offset too"),
        ({"gain": 1.0, "intercept": 0.0, "offset": 0.0, "read_noise": -1.0}, "0 or more"),
        ({"gain": 1.0, "intercept": 0.0, "form": "poisson"}, "thinning"),
        ({"gain": 1.0, "intercept": 0.0, "correlation": np.ones((2, 2))}, "odd"),
    ],
)
def test_impossible_models_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NoiseModel(**fields)  # type: ignore[arg-type]


def test_white_noise_is_thinned_and_correlated_noise_is_not() -> None:
    """Whatever the read noise, which is split along with the photons."""
    assert choose_form(5.0, 2.0, None)[0] == "thinning"
    form, reason = choose_form(1.0, 4.0, None)
    assert form == "thinning"
    assert "1 photo-electrons" in reason
    assert "4 e^2" in reason
    assert choose_form(0.5, None, None)[0] == "thinning"
    correlation = np.array([[0.0, 0, 0], [0.3, 1, 0.3], [0, 0, 0]])
    assert choose_form(5.0, 2.0, correlation)[0] == "gaussian"


def test_samples_have_the_lag() -> None:
    """Neighbours along X share noise, others do not; mean and variance are those of the model."""
    model = NoiseModel(gain=2.0, intercept=-200.0, lag=0.2)
    noise = model.sample(np.full((400, 400), 150.0), np.random.default_rng(0)) - 150
    assert noise.var() == pytest.approx(2 * 50, rel=0.02)
    shares = [float((a * b).mean() / noise.var()) for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1]))]
    assert shares == pytest.approx([0.2, 0.0], abs=0.01)
    with pytest.raises(ValueError, match="lag is 0 to"):
        NoiseModel(gain=2.0, intercept=0.0, lag=0.5)

"""The flow: invertible with the exact log-determinant, local, and by maximum likelihood close to the true density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from napari_ambient.networks.flow import (
    ConditionalFlow,
    FlowArguments,
    choose_flow,
)
from napari_ambient.networks.unet import space_to_depth

TINY = {"steps": 2, "hidden": 6, "features": 5}
CASES = {
    "2D": FlowArguments(conditions=2, strides=((2, 2), (2, 2)), **TINY),
    "2D unconditional": FlowArguments(conditions=0, strides=((2, 2), (2, 2)), **TINY),
    "2D odd": FlowArguments(conditions=1, strides=((1, 3), (2, 1)), **TINY),
    "3D": FlowArguments(dims=3, conditions=1, strides=((2, 2, 2),), **TINY),
    "3D unconditional": FlowArguments(dims=3, conditions=0, strides=((2, 2, 2),), **TINY),
    "3D anisotropic": FlowArguments(dims=3, conditions=1, strides=((1, 2, 2), (2, 2, 2)), **TINY),
}
every_case = pytest.mark.parametrize("case", CASES)


def randomised(arguments: FlowArguments) -> ConditionalFlow:
    """Give a flow in float64 with no parameter at its start, so that nothing is zero or the identity by accident."""
    torch.manual_seed(0)
    flow = ConditionalFlow(arguments).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            # by the inputs of each output: steep couplings and nearly singular matrices would only test rounding
            inputs = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter += 0.5 * torch.randn_like(parameter) / inputs**0.5
    return flow


def images(flow: ConditionalFlow, cells: int = 2, count: int = 1) -> tuple[Tensor, Tensor | None]:
    """Give noise of `cells` strides per axis, and conditioning images where the flow takes them."""
    generator = torch.Generator().manual_seed(1)
    sizes = [cells * s for s in flow.stride]
    z = torch.randn(count, 1, *sizes, generator=generator, dtype=torch.float64)
    if not flow.arguments.conditions:
        return z, None
    return z, torch.randn(count, flow.arguments.conditions, *sizes, generator=generator, dtype=torch.float64)


def jacobian_log_det(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Give log |det| of the Jacobian by automatic differentiation."""
    jacobian = torch.autograd.functional.jacobian(function, at).reshape(at.numel(), at.numel())
    return torch.linalg.slogdet(jacobian)[1]


@every_case
def test_inverse_undoes_forward(case: str) -> None:
    """Both ways round, in float64; the log-determinants are each other's negatives."""
    flow = randomised(CASES[case])
    z, seen = images(flow, cells=3, count=3)
    with torch.no_grad():
        x, forward = flow(z, seen)
        back, inverse = flow.inverse(x, seen)
        again, _ = flow(flow.inverse(z, seen)[0], seen)
    assert x.shape == z.shape
    assert forward.shape == inverse.shape == (3,)
    assert (x - z).abs().mean() > 0.1  # not the identity
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(forward, -inverse, rtol=0, atol=1e-9)


@every_case
def test_inverse_in_float32(case: str) -> None:
    """What single precision rounds off is not blown up."""
    flow = randomised(CASES[case]).float()
    z, seen = images(flow, cells=3, count=3)
    z, seen = z.float(), None if seen is None else seen.float()
    with torch.no_grad():
        x, forward = flow(z, seen)
        back, inverse = flow.inverse(x, seen)
    assert x.dtype == forward.dtype == torch.float32
    torch.testing.assert_close(back, z, rtol=0, atol=1e-3)
    torch.testing.assert_close(forward, -inverse, rtol=1e-4, atol=1e-3)


@every_case
def test_log_determinants_are_those_of_the_jacobians(case: str) -> None:
    """Against automatic differentiation, both ways; `log_prob` is the change of variables."""
    flow = randomised(CASES[case])
    z, seen = images(flow)
    x, log_det = flow(z, seen)
    torch.testing.assert_close(log_det[0], jacobian_log_det(lambda v: flow(v, seen)[0], z), rtol=0, atol=1e-8)
    inverse = flow.inverse(x, seen)[1]
    torch.testing.assert_close(
        inverse[0], jacobian_log_det(lambda v: flow.inverse(v, seen)[0], x.detach()), rtol=0, atol=1e-8
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    torch.testing.assert_close(flow.log_prob(x, seen), (normal - log_det.sum())[None], rtol=0, atol=1e-8)


@pytest.mark.parametrize("layer", ["frame", "scales.0.1.coupling", "scales.1.0.norm", "scales.1.1.mixing"])
def test_a_log_determinant_left_out_is_noticed(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check against the Jacobian would fail if one layer forgot its part."""
    flow = randomised(CASES["2D"])
    z, seen = images(flow)
    part = flow.get_submodule(layer)
    honest = part.forward

    def forgetful(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        h, log_det = honest(*inputs)
        return h, torch.zeros_like(log_det)

    monkeypatch.setattr(part, "forward", forgetful)
    wrong = (flow(z, seen)[1][0] - jacobian_log_det(lambda v: flow(v, seen)[0], z)).abs()
    assert wrong > 1e-2


@every_case
def test_receptive_field(case: str) -> None:
    """A voxel's gradient is zero outside the receptive field for z and y; the field is not needlessly wide."""
    flow = randomised(CASES[case])
    reach, stride = flow.receptive_field, flow.stride
    sizes = [2 * (r + s) for r, s in zip(reach, stride, strict=True)]
    z = torch.randn(1, 1, *sizes, dtype=torch.float64, requires_grad=True)
    inputs = [z]
    if flow.arguments.conditions:
        inputs.append(torch.randn(1, flow.arguments.conditions, *sizes, dtype=torch.float64, requires_grad=True))
    widest = torch.zeros(len(inputs), len(sizes))
    for phase in (0, 1):
        centre = tuple(n // 2 + phase * (s - 1) for n, s in zip(sizes, stride, strict=True))
        gradients = torch.autograd.grad(flow(*inputs)[0][(0, 0, *centre)], inputs)
        for row, gradient in zip(widest, gradients, strict=True):
            touched = gradient[0].abs().sum(0).nonzero()
            row.copy_(torch.maximum(row, (touched - torch.tensor(centre)).abs().amax(0)))
    for seen, r, s in zip(widest.amax(0), reach, stride, strict=True):
        assert seen <= r
        assert seen > r - 2 * s
    assert (widest > 0).all()


@every_case
def test_a_tile_with_its_halo_equals_the_whole(case: str) -> None:
    """For tiles whose origin is a multiple of the stride, also at a border of the image, and each image for itself."""
    flow = randomised(CASES[case])
    reach, stride = flow.receptive_field, flow.stride
    sizes = [3 * r + 4 * s for r, s in zip(reach, stride, strict=True)]
    if flow.arguments.dims == 3:
        sizes[1:] = [r + 2 * s for r, s in zip(reach[1:], stride[1:], strict=True)]
    inputs = [torch.randn(2, 1, *sizes, dtype=torch.float64)]
    if flow.arguments.conditions:
        inputs.append(torch.randn(2, flow.arguments.conditions, *sizes, dtype=torch.float64))
    with torch.no_grad():
        whole = flow(*inputs)[0]
        for start in (0, reach[0] + stride[0]):  # of the core, along the first axis
            core = slice(start, start + stride[0])
            halo = slice(max(core.start - reach[0], 0), core.stop + reach[0])
            tile = flow(*(v[1:, :, halo] for v in inputs))[0]
            inner = tile[:, :, core.start - halo.start : core.stop - halo.start]
            torch.testing.assert_close(inner, whole[1:, :, core], rtol=1e-10, atol=1e-10)
        # off the grid's phase the same crop gives other voxels
        shifted = flow(*(v[1:, :, 1 : 1 + 2 * reach[0] + stride[0]] for v in inputs))[0]
        assert (shifted[:, :, reach[0]] - whole[1:, :, 1 + reach[0]]).abs().max() > 1e-3


@every_case
def test_noise_lies_where_it_acts(case: str) -> None:
    """Before training the couplings do nothing: a cell of z makes the same cell of x, by a rotation."""
    torch.manual_seed(0)
    flow = ConditionalFlow(CASES[case]).double()
    z, seen = images(flow, cells=3)
    changed = z.clone()
    cell = tuple(slice(s, 2 * s) for s in flow.stride)
    changed[(0, 0, *cell)] += 1
    with torch.no_grad():
        x, log_det = flow(z, seen)
        difference = flow(changed, seen)[0] - x
    assert difference[(0, 0, *cell)].abs().max() > 0.1
    difference[(0, 0, *cell)] = 0
    assert difference.abs().max() == 0
    # the rotations were made in float32
    torch.testing.assert_close(x.square().sum(), z.square().sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-4)


@every_case
def test_initialised_noise_has_mean_zero_and_variance_one(case: str) -> None:
    """For smooth images far from mean 0 and variance 1; statistics are taken when asked for only, and only once."""
    torch.manual_seed(0)
    flow = ConditionalFlow(CASES[case]).double()
    z, seen = images(flow, cells=3, count=6)
    x = 50 + 7 * z.cumsum(-1).cumsum(-2)
    start = {k: v.clone() for k, v in flow.state_dict().items()}
    before, _ = flow.inverse(x, seen)
    assert all(torch.equal(v, start[k]) for k, v in flow.state_dict().items())
    assert before.std() > 5
    flow.initialise(x, seen)
    with torch.no_grad():
        noise = flow.inverse(x, seen)[0]
    # float64, and the noise of every scale by itself: what is finished at the first lies in the second half of its
    # channels
    first = space_to_depth(noise, flow.arguments.strides[0])
    finished = first[:, first.shape[1] // 2 :] if len(flow.scales) > 1 else first
    for values in (noise, *finished.unbind(1)):
        assert abs(values.mean()) < 1e-9
        assert abs(values.std(correction=0) - 1) < 1e-9
    with pytest.raises(RuntimeError, match="initialised already"):
        flow.initialise(x, seen)


@every_case
def test_state_dict_and_arguments_make_the_same_flow(case: str) -> None:
    """Also whether it has been initialised."""
    flow = randomised(CASES[case])
    z, seen = images(flow, count=4)
    assert not flow.state_dict()["initialised"]
    flow.initialise(z, seen)
    torch.manual_seed(5)
    other = ConditionalFlow(FlowArguments.from_dict(flow.arguments.to_dict())).double()
    assert other.arguments == flow.arguments
    assert not torch.equal(other(z, seen)[0], flow(z, seen)[0])
    other.load_state_dict(flow.state_dict())
    assert other.initialised
    assert torch.equal(other(z, seen)[0], flow(z, seen)[0])


def test_autocast_does_not_round() -> None:
    """In bfloat16 the inverse would miss by percents."""
    flow = randomised(CASES["2D"]).float()
    z, seen = (v.float() for v in images(flow) if v is not None)
    expected = flow(z, seen)
    with torch.autocast("cpu", torch.bfloat16):
        for value, exact in zip(flow(z, seen), expected, strict=True):
            assert torch.equal(value, exact)
        torch.testing.assert_close(flow.inverse(expected[0], seen)[0], z, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 1}, "dims is 1; a flow is 2D or 3D"),
        ({"conditions": -1}, "conditions is -1"),
        ({"strides": ()}, "one 2-tuple per scale"),
        ({"strides": ((2, 2, 2),)}, "one 2-tuple per scale"),
        ({"strides": ((2, 2), (1, 1))}, "must step by 2 or more"),
        ({"strides": ((2, 0),)}, "must step by 2 or more"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"hidden": 0}, "hidden is 0"),
        ({"features": 0}, "features is 0"),
    ],
)
def test_arguments_that_make_no_flow(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FlowArguments(), **change)


def test_images_that_do_not_fit() -> None:
    """Each error says what came and what is taken."""
    flow, free = ConditionalFlow(CASES["2D"]), ConditionalFlow(CASES["2D unconditional"])
    z, seen = torch.zeros(2, 1, 8, 12), torch.zeros(2, 2, 8, 12)
    for call in (flow, flow.inverse, flow.log_prob, flow.initialise):
        with pytest.raises(ValueError, match=r"has sizes \(8, 10\) along YX.*multiples of \(4, 4\)"):
            call(z[..., :10], seen[..., :10])
        with pytest.raises(ValueError, match=r"shape \(2, 2, 8, 12\); this 2D flow takes \(B, 1, Y, X\)"):
            call(seen, seen)
        with pytest.raises(ValueError, match=r"has shape \(2, 8, 12\)"):
            call(z[:, 0], seen)
        with pytest.raises(ValueError, match=r"is conditional; give seen, of shape \(2, 2, 8, 12\)"):
            call(z)
        for wrong in (seen[:, :1], seen[:1], seen[..., :8]):
            with pytest.raises(ValueError, match=r"it must be \(2, 2, 8, 12\)"):
                call(z, wrong)
    with pytest.raises(ValueError, match=r"unconditional .*leave out seen"):
        free(z, seen)
    with pytest.raises(ValueError, match="same value everywhere"):
        free.initialise(z)
    with pytest.raises(ValueError, match="hardly varies"):
        free.initialise(torch.tensor([[0.0, 1.0], [2.0, 4.0]]).tile(2, 1, 4, 6))
    assert not free.initialised


def test_chosen_sizes() -> None:
    """`small` is for a CPU; the scales step along Z for voxels that are not longer in Z."""
    for dims in (2, 3):
        counts = [
            sum(p.numel() for p in ConditionalFlow(choose_flow(size, dims=dims)).parameters())
            for size in ("small", "medium", "large")
        ]
        assert counts[0] < 400_000
        assert counts == sorted(counts)
    assert choose_flow(conditions=0).conditions == 0
    assert choose_flow(dims=3, anisotropy=3.0).strides == ((1, 2, 2), (1, 2, 2))
    assert choose_flow(dims=3).strides == ((2, 2, 2),) * 2
    with pytest.raises(ValueError, match="choose one of small, medium, large"):
        choose_flow("huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dims is 4; a flow is 2D or 3D"):
        choose_flow(dims=4)


def fit(flow: ConditionalFlow, draw: Callable[[int], tuple[Tensor, ...]], steps: int, *, batch: int) -> None:
    """Maximise the likelihood of drawn (x, seen)."""
    flow.initialise(*draw(128))
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (-flow.log_prob(*draw(batch)).mean() / 64).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def test_maximum_likelihood_reaches_the_density_of_a_gaussian_field() -> None:
    """Voxels correlated by 0.8 per step, with a fifth of white noise: closed-form density by Cholesky.

    The mean of log p − log q over fresh images of p is the divergence of the fit q, never below 0 but for chance; so
    is that of log q − log p over images that the flow makes. White noise of the right mean and variance has 0.67 per
    voxel. A log-determinant that is missing or doubled gives another sign or size: it is of the order of the entropy.
    """
    size = 8
    line = 0.8 ** (torch.arange(size)[:, None] - torch.arange(size)).abs().double()
    covariance = 4 * torch.kron(line, line) + 0.2 * torch.eye(size**2)
    true = torch.distributions.MultivariateNormal(torch.full((size**2,), 3.0).double(), covariance)
    torch.manual_seed(0)

    def draw(count: int) -> tuple[Tensor]:
        return (true.sample((count,)).float().reshape(count, 1, size, size),)

    flow = ConditionalFlow(FlowArguments(conditions=0, strides=((2, 2), (2, 2)), steps=3, hidden=16))
    white = 0.5 * math.log(2 * math.pi * math.e * 4.2) - true.entropy() / size**2
    assert white > 0.6
    fit(flow, draw, 200, batch=64)
    with torch.no_grad():
        (x,) = draw(2000)
        z = torch.randn(2000, 1, size, size)
        made, log_det = flow(z)
        back, _ = flow.inverse(made)
        divergence = (true.log_prob(x.flatten(1).double()) - flow.log_prob(x)).mean() / size**2
    own = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1) - log_det
    reverse = (own - true.log_prob(made.flatten(1).double())).mean() / size**2
    assert -0.005 < divergence < 0.04
    assert -0.005 < reverse < 0.04
    torch.testing.assert_close(back, z, rtol=0, atol=1e-3)  # float32, of a flow that has learned something


def test_pairs_teach_the_posterior_mean_and_standard_deviation() -> None:
    """x|y is normal with mean 2 + y₁ − 0.7 y₁ of the left neighbour, and standard deviation exp(y₂ − 1)."""

    def moments(seen: Tensor) -> tuple[Tensor, Tensor]:
        first = seen[:, :1]
        left = nn.functional.pad(first, (1, 0))[..., :-1]
        return 2 + first - 0.7 * left, torch.exp(seen[:, 1:] - 1)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        seen = torch.rand(count, 2, 8, 8) * 2 - 1
        mean, std = moments(seen)
        return mean + std * torch.randn_like(mean), seen

    torch.manual_seed(0)
    flow = ConditionalFlow(FlowArguments(conditions=2, strides=((2, 2), (2, 2)), steps=2, hidden=16, features=24))
    fit(flow, draw, 200, batch=32)
    with torch.no_grad():
        x, seen = draw(1000)
        true = torch.distributions.Normal(*moments(seen)).log_prob(x).flatten(1).sum(1)
        divergence = (true - flow.log_prob(x, seen)).mean() / 64
        one = seen[:1]
        drawn = flow(torch.randn(1000, 1, 8, 8), one.expand(1000, -1, -1, -1))[0]
    mean, std = moments(one)
    assert -0.01 < divergence < 0.03
    # 1000 draws know the mean to 0.03 standard deviations and the logarithm of the standard deviation to 0.02
    assert ((drawn.mean(0) - mean) / std).square().mean().sqrt() < 0.25
    assert (drawn.std(0) / std).log().square().mean().sqrt() < 0.15
    # neither is the same everywhere
    assert mean.std() > 0.5
    assert std.log().std() > 0.4

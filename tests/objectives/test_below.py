"""Below the noise level: law 4 on the two-mode toy, and the pieces that the stages share."""

from __future__ import annotations

import pytest
import torch
from benchmarks.two_modes import WITHIN, Plain, Scalar, at_boundary, drawn_spread, fit
from torch import Tensor

from napari_ambient.objectives import BELOW, Ambient
from napari_ambient.objectives.buffer import Buffer
from napari_ambient.recorruption import Gaussian, Recorruption, Thinning


def test_buffer_replaces_the_oldest() -> None:
    """It fills up, then the oldest rows give way; a checkpoint brings back the very same buffer."""
    buffer = Buffer(4)
    for start in (0, 3, 6):
        buffer.add({"x": torch.arange(start, start + 3.0)[:, None, None, None]})
    rows = buffer.state()["x"].flatten().tolist()
    assert sorted(rows) == [5.0, 6.0, 7.0, 8.0]
    copy = Buffer(4)
    copy.load(buffer.state())
    for b in (buffer, copy):
        b.add({"x": torch.tensor([9.0])[:, None, None, None]})
        assert sorted(b.state()["x"].flatten().tolist()) == [6.0, 7.0, 8.0, 9.0]
    one, two = (b.draw(3, torch.Generator().manual_seed(1))["x"] for b in (buffer, copy))
    assert torch.equal(one, two)
    assert [buffer.due(3) for _ in range(4)] == [True, False, False, True]
    copy.load({**buffer.state(), "anchor.weight": torch.zeros(2)})  # what others keep is not the buffer's
    assert [copy.due(3) for _ in range(3)] == [False, False, True]
    assert set(copy.state()) == {"x", "next"}
    with pytest.raises(ValueError, match="at least one row"):
        Buffer(0)


@pytest.mark.parametrize(
    ("below", "form"), [("virtual_exposures", Gaussian()), ("em", Thinning()), ("consistency", Thinning())]
)
def test_the_wrong_form_is_refused(below: str, form: Recorruption) -> None:
    """Each stage says for which form of noise it is, and what to choose instead."""
    with pytest.raises(ValueError, match="choose"):
        BELOW[below](form)


@pytest.fixture(scope="module")
def ambient() -> dict[str, Tensor]:
    """Weights after ambient training alone."""
    torch.set_num_threads(1)
    model = Scalar()
    fit(model, Ambient(Plain(), boundary=0.0, far=0.02), 1200, 1, None, 2e-3)
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("below", ["em", "consistency"])
def test_two_modes(ambient: dict[str, Tensor], below: str) -> None:
    """Law 4: the spread within a mode moves toward the truth, and D at sigma_y does not degrade."""
    model, teacher = Scalar(), Scalar()
    for m in (model, teacher):
        m.load_state_dict(ambient)
    before, error_before = drawn_spread(model), at_boundary(model)
    teacher.requires_grad_(False)
    stage = BELOW[below](Plain(), **({"capacity": 4096} if below == "em" else {}))
    steps = 60 if below == "em" else 100
    for round_ in range(5):  # the moving average, in steps
        fit(model, stage, steps, 10 + round_, teacher, 1e-3)
        teacher.load_state_dict(model.state_dict())
    after = drawn_spread(model)
    assert abs(after - WITHIN) < 0.75 * abs(before - WITHIN)
    assert after > 0.6 * WITHIN  # and does not collapse
    assert at_boundary(model) < error_before + 0.03

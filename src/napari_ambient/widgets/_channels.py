"""Which of a prior's channels an image of one channel is: by its name, else by its number in the file, else asked.

Each channel of a prior has its own noise and its own scale of intensity: taken for another, it is restored wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from napari_ambient.widgets._layers import channel_number

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_ambient.prior import Prior
    from napari_ambient.volumes import Volume


def channel_titles(prior: Prior) -> list[str]:
    """Name the channels of a prior: as in its training data, else by number.

    Parameters
    ----------
    prior : Prior
        The prior.
    """
    return list(prior.record.channel_names) or [f"channel {number}" for number in range(len(prior.noise))]


def find_channel(prior: Prior, volume: Volume, layer: Image | None) -> tuple[int, str]:
    """Find which of a prior's channels an image is.

    Parameters
    ----------
    prior : Prior
        Of several channels.
    volume : Volume
        An image of one.
    layer : Image or None
        Where it comes from; None: a file.

    Returns
    -------
    (int, str)
        The number of the prior's channel, and a sentence for the user where it is not certain.
    """
    titles, names = channel_titles(prior), prior.record.channel_names
    own = volume.channel_names[0] if volume.channel_names else ""
    if own and names.count(own) == 1:
        return names.index(own), ""
    number = None if layer is None else channel_number(layer)
    if number is not None and number < len(titles):
        if not own or not names:
            return number, ""
        return number, (
            f"This image is channel “{own}”, which the prior does not know: it is taken for “{titles[number]}”, by its "
            "number in the file. Choose another one if it is not."
        )
    return 0, _unsaid(titles)


def _unsaid(titles: Sequence[str]) -> str:
    return (
        f"This image does not say which channel it is: it is taken for “{titles[0]}”. Choose another one if it is not."
    )


__all__ = ["channel_titles", "find_channel"]

"""Colours that can be read on napari's dark and light themes, where its style sheet has none.

Contrast of two colours of relative luminance L₁ > L₂ is (L₁ + 0.05) / (L₂ + 0.05); 4.5 and more can be read (W3C, Web
Content Accessibility Guidelines 2.1, 1.4.3). napari's own red and yellow are made for icons, and fall below it as text.
"""

from __future__ import annotations

from typing import Literal

from napari import current_viewer
from napari.settings import get_settings
from napari.utils.theme import get_theme

Meaning = Literal["good", "warning", "bad", "neutral"]

_SIGNALS: dict[Meaning, tuple[str, str]] = {
    "good": ("#4cc38a", "#176437"),
    "warning": ("#f0c040", "#7a4f00"),
    "bad": ("#ff8c8c", "#a8001c"),
    "neutral": ("#a9afb9", "#4f5660"),
}
"""For each meaning the colour on dark ground, and on light ground."""


def current_theme() -> str:
    """Give the name of the theme of napari's window; a shortcut changes it there, and not in the settings."""
    viewer = current_viewer()
    return str(get_settings().appearance.theme if viewer is None else viewer.theme)


def is_dark(theme: str) -> bool:
    """Whether a theme of napari has a dark ground.

    Parameters
    ----------
    theme : str
        "dark", "light" or one of the user's.
    """
    return bool(get_theme(theme).background.as_hsl_tuple()[2] < 0.5)


def signal_colour(meaning: Meaning, theme: str | None = None) -> str:
    """Give the colour of a sentence or state.

    Parameters
    ----------
    meaning : {"good", "warning", "bad", "neutral"}
        What it says.
    theme : str, optional
        Name of the theme; that of napari's window if left out.

    Returns
    -------
    str
        "#rrggbb".
    """
    dark, light = _SIGNALS[meaning]
    return dark if is_dark(theme or current_theme()) else light


def accent_style(theme: str) -> str:
    """Give the style sheet of the button that starts the work: the theme's accent, and text that can be read on it.

    Parameters
    ----------
    theme : str
        Name of the theme.

    Returns
    -------
    str
        For `QPushButton.setStyleSheet`.
    """
    colours = get_theme(theme)
    ground = colours.current.as_rgb_tuple(alpha=False)
    shades = [colours.text.as_rgb_tuple(alpha=False), (0, 0, 0), (255, 255, 255)]
    # the theme's own text where it will do, else black or white
    text = shades[0] if contrast(ground, shades[0]) >= 4.5 else max(shades, key=lambda shade: contrast(ground, shade))
    return f"QPushButton:enabled {{ background-color: rgb{ground}; color: rgb{text}; }}"


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Give the contrast of two colours, 1 (none) to 21 (black on white).

    Parameters
    ----------
    one, other : tuple of int
        Red, green and blue, 0 to 255.
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: tuple[int, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (n / 255 for n in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

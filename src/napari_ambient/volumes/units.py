r"""Units of length and time, spelled as OME-NGFF spells them.

Each file format has its own spelling ("µm", "um", "micron", "\\u00B5m"); a volume has one, so that no step is
misread.
"""

from __future__ import annotations

_PREFIXES = {
    "yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3, "hecto": 2,
    "": 0, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "pico": -12, "femto": -15,
    "atto": -18, "zepto": -21, "yocto": -24,
}  # fmt: skip

MICROMETERS = {f"{prefix}meter": float(f"1e{power + 6}") for prefix, power in _PREFIXES.items()}
"""Each OME-NGFF unit of space, in µm."""
MICROMETERS |= {"angstrom": 1e-4, "inch": 25400.0, "foot": 304800.0, "yard": 914400.0, "mile": 1.609344e9}
MICROMETERS |= {"parsec": 3.0856775814913673e22}

SECONDS = {f"{prefix}second": float(f"1e{power}") for prefix, power in _PREFIXES.items()}
"""Each OME-NGFF unit of time, in s."""
SECONDS |= {"minute": 60.0, "hour": 3600.0, "day": 86400.0}

OME_SYMBOLS = {
    "femtometer": "fm", "picometer": "pm", "nanometer": "nm", "micrometer": "µm", "millimeter": "mm",
    "centimeter": "cm", "decimeter": "dm", "meter": "m", "kilometer": "km", "megameter": "Mm",
    "angstrom": "Å", "inch": "in", "foot": "ft", "yard": "yd", "mile": "mi", "parsec": "pc",
    "femtosecond": "fs", "picosecond": "ps", "nanosecond": "ns", "microsecond": "µs", "millisecond": "ms",
    "second": "s", "minute": "min", "hour": "h", "day": "d",
}  # fmt: skip
"""How OME-XML spells them."""

_SPELLINGS = {symbol: name for name, symbol in OME_SYMBOLS.items()}
_SPELLINGS |= {"um": "micrometer", "micron": "micrometer", "microns": "micrometer", "inches": "inch"}
_SPELLINGS |= {"us": "microsecond", "sec": "second", "msec": "millisecond", "hr": "hour"}


def unit_name(text: str | None, axis: str) -> str | None:
    r"""Spell a unit as OME-NGFF does.

    Parameters
    ----------
    text : str or None
        A unit as a file spells it: "µm", "um", "micron", "Micrometres", "\u00B5m", "sec", …
    axis : str
        The axis it belongs to: "T" takes units of time, the others units of length.

    Returns
    -------
    str or None
        The OME-NGFF name, or None where the text is no such unit (empty, "pixel", "frame", …).
    """
    # ImageJ writes the micro sign as an escape; Unicode has two micro signs and two of Ångström.
    text = (text or "").strip().replace("\\u00B5", "µ").replace("\u03bc", "µ").replace("\u212b", "Å")
    plain = text.lower().replace("metre", "meter")
    units = SECONDS if axis == "T" else MICROMETERS
    # The case of a symbol counts (mm, Mm), that of a word does not.
    for name in (
        _SPELLINGS.get(text),
        _SPELLINGS.get(plain) if len(plain) > 2 else None,
        plain,
        plain.rstrip("s"),
    ):
        if name in units:
            return name
    return None

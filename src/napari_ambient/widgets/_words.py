"""Messages of the library in the words of the forms: what to do is said by fields and buttons, not by options.

    "name the axes (--axes ZYX, in Python axes='ZYX')" → "name the axes (“Axes” ZYX)"

The library says what to do for those who call it, on the command line and in Python. Who works in a form knows neither.
Each rule turns an option into the field that does the same; what has no field is said to be possible elsewhere.
"""

from __future__ import annotations

import copy
import re

_RULES: tuple[tuple[str, str], ...] = (
    # choices of a box
    (r"leave out --still(?: \(in Python still\))?, or ", "have them checked by held-out photons, or "),
    (r"\bturns is (\d+)", r"“Average over” is \1 turns"),
    (r"\bleave turns at 1\b", "leave “Average over” at no turns"),
    # what is also said for Python, inside of brackets; alone there, it is only possible in a notebook
    (r"\(in Python (?:[^()]|\([^()]*\))*\)", "(in a notebook)"),
    (r",\s*in Python (?:[^()]|\([^()]*\))*(?=\))", ""),
    (r"--overwrite; in napari ", ""),
    (r"axes=\"(\w+)\" \(on the command line --axes \w+\)", r"\1"),
    (r"\bbelow='auto', --below auto", "--below auto"),
    (r"start=prior, --from PRIOR", "“Start from”"),
    (r"lower learning_rate \(now [^)]*\), and check that the noise fit suits the data \(napari-ambient fit-noise\)",
     "check that the noise suits the data (“Estimate noise”)"),
    (r"napari-ambient fit-noise", "“Estimate noise”"),
    (r"the stage below the noise moved", "the training of the error bars moved"),
    (r"keep a prior without it for means", "for means keep a prior without “Error bars too”"),
    (r"(?:, or )?(?:pass )?overwrite=True(?: \(--overwrite\)| to replace it)?", ""),
    (r"--psf or --na, --mask, --finer as for train", "“PSF” and “Mask”"),
    # fields
    (r"--gain and --zero(?: of train)?", "“Gain” and “Zero”"),
    (r"--border open", "“Around it”: unknown"),
    (r"--psf-is bead", "“It is”: image of a bead"),
    (r"--axes (\w+)", r"“Axes” \1"),
    (r"--axes", "“Axes”"),
    (r"--dims 2D or 3D", "“Network” 2D or 3D"),
    (r"--dims (\S+?)(?=[),;. ])", r"“Network” \1"),
    (r"--size (\w+)", r"“Size” \1"),
    (r"--device (\w+)", r"device “\1” in the plugin's settings"),
    (r"--below auto", "“Error bars too”"),
    (r"--noise fit", "by a click on “Fit the noise anew”, or noise “fitted to each file”"),
    (r"--voxel-size(?: Z Y X)?", "“Voxel size”"),
    (r"--sheet-thickness", "“Sheet”"),
    (r"--excitation", "“Excitation”"),
    (r"--resume", "“Resume”"),
    (r"--channel", "“Channel”; or split the layer"),
    (r"--steps", "“Steps”"),
    (r"--overwrite", "without “skip files whose result is there”"),
    (r"--from(?: PRIOR)?\b", "“Start from”"),
    (r"give dark frames or --offset", "give “Offset”"),
    (r"--psf\b", "“PSF”"),
    (r"--na\b", "“NA”"),
    (r"--dark", "on the command line"),
    (r"--(?:posterior|finer|still)", "on the command line"),
    (r"--method samples", ""),
    # arguments of functions
    (r"\bdims='([\w.]+)'", r"“Network” \1"),
    (r"\baxes='(\w+)'", r"“Axes” \1"),
    (r"choose dims and slices as it was trained", "choose “Network” as it was trained"),
    (r"\blow_rank=0", "“Change”: all weights"),
    (r"\blow_rank is\b", "“Change” is"),
    (r"\bdims is\b", "“Network” is"),
    (r" \(\)", ""),
)  # fmt: skip


def in_forms(text: str) -> str:
    """Say it in the words of the forms.

    Parameters
    ----------
    text : str
        A message of the library.

    Returns
    -------
    str
        The same without options of the command line and arguments of functions.
    """
    for pattern, words in _RULES:
        text = re.sub(pattern, words, text)
    return text


def error_in_forms(error: Exception) -> Exception:
    """Give an error that says it in the words of the forms: a copy of the same type, or the error itself.

    Parameters
    ----------
    error : Exception
        Of the library.
    """
    text = in_forms(str(error))
    if text == str(error) or len(error.args) != 1:
        return error
    told = copy.copy(error)
    told.args = (text,)
    return told.with_traceback(error.__traceback__) if str(told) == text else error


__all__ = ["error_in_forms", "in_forms"]

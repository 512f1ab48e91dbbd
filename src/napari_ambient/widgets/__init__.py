"""The napari plugin: forms that call the same public functions as notebooks and the command line.

    form → public function (as a `Job`, off the Qt thread) → layer

Nothing outside this folder imports napari or Qt.
"""

from __future__ import annotations

"""What every test shares: one thread, no windows from matplotlib, and a seeded generator."""

from __future__ import annotations

import os

# Before anything loads torch or a BLAS: sums in a fixed order, and no quarrel over the cores. Inherited by
# subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that is the same in every run and fresh for every test."""
    return np.random.default_rng(20240410177)

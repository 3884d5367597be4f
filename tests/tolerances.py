"""Every tolerance of the tests in one place, each with its reason."""

from __future__ import annotations

import numpy as np

# Same mathematics in float32, another order of summation. Measured: 2e-6.
CONFORMANCE = 2e-5
# Decoders of the same MP3 differ by rounding and by a few samples of delay.
OTHER_AUDIO_DECODER = 5e-2
# A greedy token may differ where the two best logits of the original are closer than this.
GREEDY_MARGIN = 1e-3
# The same rows computed in another grouping: only the order of BLAS sums differs.
REGROUPED = 2e-5


def relative_rmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the expected values."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    difference = got.astype(np.float64) - expected.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))

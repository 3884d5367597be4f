"""Every tolerance of the tests in one place, each with its reason."""

from __future__ import annotations

import numpy as np
import PIL

# Same mathematics in float32, another order of summation. Measured: 2e-6.
CONFORMANCE = 2e-5
# Pillow 13, which needs Python 3.11, rounds bicubic resampling as the original's outputs were made; before it some
# pixels of a resized picture differ by one. Measured with Pillow 12.3: 2.8e-4 on one picture, the others as above.
RESIZED_BY_OLD_PILLOW = 5e-4
# Decoders of the same MP3 differ by rounding and by a few samples of delay.
OTHER_AUDIO_DECODER = 5e-2
# A greedy token may differ where the two best logits of the original are closer than this.
GREEDY_MARGIN = 1e-3
# The same rows computed in another grouping: only the order of BLAS sums differs.
REGROUPED = 2e-5


def conformance() -> float:
    """Return the tolerance of features and logits against the original's, with the Pillow that is installed."""
    return CONFORMANCE if int(PIL.__version__.partition(".")[0]) >= 13 else RESIZED_BY_OLD_PILLOW


def relative_rmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the expected values."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    difference = got.astype(np.float64) - expected.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


# Logits and features of each storage format against float32 on the conformance checkpoint. Its weights are random,
# so every rounding error passes through undamped; a trained model is gentler (docs/formats.md). Per format:
# (features, logits). The checkpoint is stored in bfloat16, so bfloat16 loses only the float16 keys and values.
STORAGE = {
    "float32": (2e-5, 2e-5),
    "bfloat16": (2e-5, 1e-3),
    "float16": (2e-3, 2e-3),  # values of the checkpoint below 6e-5 lose bits
    "int8": (9e-2, 1.1e-1),  # 7-bit weights and activations. Measured: up to 7.5e-2, 8.5e-2
    "int4": (9e-2, 4e-1),  # towers as int8; 4-bit language model. Measured: 7.5e-2, 3.3e-1
    "int4-asym": (9e-2, 4e-1),
    "int4-small": (5e-1, 5e-1),
}
# Logits with keys and values in a smaller format against float32 ones, everything else float32.
KV_STORAGE = {"float16": 1e-3, "int8": 3e-2}
# Native against reference with the same stored weights: native also rounds activations, to 8 bits for int4 weights
# and to 7 bits for int8 ones.
SAME_WEIGHTS = {"float32": 2e-5, "bfloat16": 1e-3, "float16": 1e-3, "int8": 9e-2, "int4": 1e-1}
# Features of vLLM's encoders in a smaller format against float32: products round their inputs to 8 or 11 bits, the
# residual stream does not. Measured: 9e-3 and 1.2e-3.
TOWERS_IN_HALF = {"bfloat16": 1.5e-2, "float16": 2e-3}

"""How a video's frames are to be shown: turned or mirrored, as the matrix in the file says.

The matrix takes a stored pixel (x, y) to (a x + c y, b x + d y); phones write quarter turns, front cameras mirror.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from av import VideoFrame
from av.sidedata.sidedata import Type

_NUMBERS = 9  # of the matrix, int32: a, b, u, c, d, v, x, y, w


class Orientation(NamedTuple):
    """What is to be done to a stored frame, in this order."""

    swap: bool  # rows and columns
    mirror: bool  # left and right
    flip: bool  # top and bottom

    def upright(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return pixels (H, W, 3) as they are to be seen."""
        if self.swap:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip else 1, :: -1 if self.mirror else 1]


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return how a frame is to be shown; as it is stored where the file does not say."""
    by_type: Any = frame.side_data  # its stub says it is by name
    matrix = by_type.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation(False, False, False)
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32, _NUMBERS).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)

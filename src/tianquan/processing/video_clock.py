"""The time of a video's packets and frames, in seconds from its first frame.

Transport streams may be joined end to end, and a camera that starts again begins at 0 again: where decoding times fall
back, what follows is shown behind what came before.
"""

from __future__ import annotations

from typing import Any

from av.packet import Packet

MAX_BACK = 1.0  # seconds decoding times may fall back without a new part: some writers state them badly


class VideoClock:
    """Reads one container from its beginning."""

    def __init__(self) -> None:
        self.first: float | None = None  # of the first frame, in the stream's own time
        self.end: float | None = None  # where the last packet ends, likewise, parts behind each other
        self._shift = 0.0  # of the present part
        self._shift_before = 0.0
        self._decoding_time: float | None = None  # of the last packet

    def packet_time(self, packet: Packet[Any], is_picture: bool) -> float | None:
        """Return when a packet begins, from the first frame; None at the end or where it does not say.

        Args:
            packet: of any stream; the longest is the length the container states.
            is_picture: whether it is of the stream whose frames are shown.
        """
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.time_base is None:
            return None
        if is_picture:
            self._go_on(packet)
        elif self._shift:  # of which part it is cannot be told
            return None
        time = float(stamp * packet.time_base) + self._shift
        end = time + float((packet.duration or 0) * packet.time_base)  # the last of a slide show stands for long
        self.end = end if self.end is None else max(self.end, end)
        return 0.0 if self.first is None else time - self.first  # all packets of a short video come before its frames

    def frame_time(self, time: float) -> float:
        """Return when a decoded frame is shown, from the first one; `time` is what the stream says."""
        shown = time + self._shift
        if self.end is not None and shown > self.end + MAX_BACK:  # the decoder kept it back: of the part before
            shown = time + self._shift_before
        if self.first is None:
            self.first = shown
        return shown - self.first

    def _go_on(self, packet: Packet[Any]) -> None:
        if packet.dts is None:
            return
        time = float(packet.dts * packet.time_base) + self._shift
        if self._decoding_time is not None and self.end is not None and time < self._decoding_time - MAX_BACK:
            self._shift_before, self._shift = self._shift, self._shift + self.end - time
            time = self.end
        self._decoding_time = time

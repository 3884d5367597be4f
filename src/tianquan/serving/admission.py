"""A bounded queue: how many answers may be computed or waited for at the same time, and 429 beyond that.

A place is taken before the body of a request is read, so waiting bodies and decoded media are bounded too; so are the
bytes of all bodies together.
"""

from __future__ import annotations

import math
import time

from tianquan.serving.api_error import ApiError

_MAX_RETRY_SECONDS = 60
_MEMORY = 0.9  # of the running mean of how long places are held


class Admission:
    """Places for answers. Used by one event loop.

    Args:
        max_running: answers computed side by side.
        max_queue: answers that wait.
        max_bytes: of the bodies of all requests that hold places.
    """

    def __init__(self, max_running: int, max_queue: int, max_bytes: int) -> None:
        self.capacity = max_running + max_queue
        self.max_bytes = max_bytes
        self.num_taken = 0
        self.num_bytes = 0
        self._max_running = max_running
        self._mean_seconds = 1.0

    def enter(self) -> Place:
        """Take one place.

        Raises:
            ApiError: 429, all are taken.
        """
        place = Place(self)
        place.extend(1)
        return place

    def refuse(self) -> ApiError:
        """Return the answer to one request too many, with an estimate of when a place is free."""
        seconds = self._mean_seconds * max(1, self.num_taken // self._max_running)
        wait = min(max(1, math.ceil(seconds)), _MAX_RETRY_SECONDS)
        return ApiError(
            429,
            f"all {self.capacity} places of the queue, or the memory for their bodies, are taken; try again later",
            code="queue_full",
            headers={"Retry-After": str(wait)},
        )

    def record(self, seconds: float) -> None:
        """Learn how long a place was held."""
        self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * seconds


class Place:
    """One or more places held by a request, until `give_back`, and the bytes that came with it, until its end."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_held = 0
        self._num_bytes = 0
        self._since = time.monotonic()

    def extend(self, num_more: int) -> None:
        """Take more places: a request for n answers needs n.

        Raises:
            ApiError: 429 when they are not there; 400 when they could never be.
        """
        admission = self._admission
        if self._num_held + num_more > admission.capacity:
            raise ApiError(
                400,
                f"{self._num_held + num_more} answers are asked for; this server computes {admission.capacity} at most",
                code="invalid_value",
            )
        if admission.num_taken + num_more > admission.capacity:
            raise admission.refuse()
        admission.num_taken += num_more
        self._num_held += num_more

    def hold(self, num_bytes: int) -> None:
        """Count bytes of the request's body.

        Raises:
            ApiError: 429, the bodies of all requests are too many bytes.
        """
        self._num_bytes += num_bytes
        self._admission.num_bytes += num_bytes
        if self._admission.num_bytes > self._admission.max_bytes:
            raise self._admission.refuse()

    def give_back(self) -> None:
        """Give all places back: others may be answered. The bytes stay until the client has taken its answer."""
        if self._num_held:
            self._admission.num_taken -= self._num_held
            self._admission.record(time.monotonic() - self._since)
            self._num_held = 0

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
        self._admission.num_bytes -= self._num_bytes
        self._num_bytes = 0

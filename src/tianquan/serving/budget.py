"""An amount that requests share: who needs more than is left waits until others give back, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """Hands out parts of an amount, on one event loop.

    Args:
        amount: what may be held at once, in any unit.
    """

    def __init__(self, amount: float) -> None:
        self._amount = amount
        self._held = 0.0
        self._first = asyncio.Lock()  # of those who wait one looks whether there is enough, the others queue here
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def hold(self, most: float) -> AsyncIterator[Share]:
        """Wait for `most`, or for everything if it is more, and hold it until the end."""
        most = min(most, self._amount)
        async with self._first:
            while self._held + most > self._amount:
                self._given_back.clear()
                await self._given_back.wait()
            self._held += most
        share = Share(self, most)
        try:
            yield share
        finally:
            share.keep(0.0)

    def give_back(self, amount: float) -> None:
        """Take back a part; what waits looks again."""
        self._held -= amount
        self._given_back.set()


class Share:
    """What one request holds."""

    def __init__(self, budget: Budget, amount: float) -> None:
        self._budget = budget
        self.amount = amount

    def keep(self, amount: float) -> None:
        """Give back all but an amount; more than is held cannot be kept."""
        kept = min(amount, self.amount)
        self._budget.give_back(self.amount - kept)
        self.amount = kept

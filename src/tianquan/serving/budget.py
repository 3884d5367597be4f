"""An amount that requests share: who needs more than is left waits until others give back, in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Wait = Callable[[Awaitable[None]], Awaitable[None]]


async def _for_ever(work: Awaitable[None]) -> None:
    await work


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
    async def hold(self, most: float, wait: Wait = _for_ever) -> AsyncIterator[Share]:
        """Hold `most`, or everything if it is more, until the end.

        Args:
            most: of the amount.
            wait: awaits until it is there, or raises where it need not be any more.
        """
        share = Share(self, 0.0)
        try:
            await wait(self._take(min(most, self._amount), share))
            yield share
        finally:
            share.keep(0.0)

    async def _take(self, most: float, share: Share) -> None:
        async with self._first:
            while self._held + most > self._amount:
                self._given_back.clear()
                await self._given_back.wait()
            self._held += most
            share.amount = most

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

"""What requests share is never more than there is, and who waits gets it in the order they came."""

from __future__ import annotations

import asyncio

from tianquan.serving.budget import Budget


def test_who_needs_more_than_is_left_waits_and_order_is_kept():
    async def story():
        budget, begun = Budget(10), []
        release = {name: asyncio.Event() for name in "abcd"}

        async def work(name, most, kept):
            async with budget.hold(most) as share:
                begun.append(name)
                share.keep(kept)
                await release[name].wait()

        tasks = [asyncio.create_task(work(*each)) for each in (("a", 8, 6), ("b", 5, 5), ("c", 1, 1), ("d", 99, 1))]
        await asyncio.sleep(0.01)
        assert begun == ["a"]  # b needs more than the 4 that are left, and c came later
        release["a"].set()
        await asyncio.sleep(0.01)
        assert begun == ["a", "b", "c"]
        release["b"].set()
        await asyncio.sleep(0.01)
        assert begun == ["a", "b", "c"]  # d wants all there is
        release["c"].set()
        await asyncio.sleep(0.01)
        assert begun == ["a", "b", "c", "d"]
        release["d"].set()
        await asyncio.gather(*tasks)
        async with budget.hold(10):
            pass

    asyncio.run(story())


def test_who_goes_away_while_waiting_holds_nothing():
    async def story():
        budget = Budget(2)
        async with budget.hold(2):
            waiting = asyncio.create_task(budget.hold(1).__aenter__())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(1) if hasattr(asyncio, "timeout") else budget.hold(0), budget.hold(2):
            pass

    asyncio.run(story())

"""Steps of many coroutines on one loop: one in each turn, in order, with results, errors and cancellation as without."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ctl.api.turns import InTurns, Turns


def test_one_step_is_taken_in_each_turn_of_the_loop() -> None:
    async def scene() -> None:
        loop, turns = asyncio.get_running_loop(), Turns()
        seen: list[str] = []

        def turn() -> None:
            seen.append("turn")
            if seen.count("step") < 30:
                loop.call_soon(turn)

        async def work() -> None:
            for _ in range(3):
                seen.append("step")
                await asyncio.sleep(0)

        async def in_turns() -> None:
            await InTurns(work(), turns)

        loop.call_soon(turn)
        await asyncio.gather(*(in_turns() for _ in range(10)))
        assert seen.count("step") == 30
        steps = "".join("s" if each == "step" else "t" for each in seen)
        assert "ss" not in steps, f"what else is ready runs between two steps: {steps}"

    asyncio.run(scene())


async def of(work: Coroutine[Any, Any, Any]) -> Any:
    return await InTurns(work, Turns())


def test_results_and_errors_pass_through() -> None:
    async def answer() -> int:
        return await asyncio.to_thread(lambda: 41) + 1

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    async def handle() -> str:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.001)
        except TimeoutError:
            return "handled"
        return ""

    assert asyncio.run(of(answer())) == 42
    assert asyncio.run(of(handle())) == "handled"
    with pytest.raises(LookupError, match="no such thing"):
        asyncio.run(of(fail()))


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_coroutine_cleans_up(begun: bool) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            done.append("begun")
            await asyncio.get_running_loop().create_future()
        finally:
            done.append("cleaned up")

    async def scene() -> None:
        task = asyncio.create_task(of(work()))
        for _ in range(10 if begun else 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert done == (["begun", "cleaned up"] if begun else [])

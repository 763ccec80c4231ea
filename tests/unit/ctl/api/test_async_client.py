"""The client for an event loop: many requests at once, and a daemon that stops, is silent or starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ctl.api.async_client import MAX_IN_PROGRESS, MAX_WAITING, AsyncClient
from ctl.api.server import ApiServer
from ctl.errors import Code, InvalidInput
from tests.refusals import refused
from tests.wait import wait_until_async

Dispatch = Callable[[str, dict[str, Any]], Awaitable[Any]]


def run(
    tmp_path: Path, dispatch: Dispatch, use: Callable[[AsyncClient, ApiServer], Awaitable[None]], timeout_ms: int = 5000
) -> None:
    async def main() -> None:
        server = ApiServer(tmp_path / "s", dispatch)
        server.start()
        client = AsyncClient(tmp_path / "s", timeout_ms)
        try:
            await use(client, server)
        finally:
            await client.close()
            await server.close()

    asyncio.run(main())


def test_answers_reach_who_asked_in_any_order(tmp_path: Path) -> None:
    async def dispatch(command: str, arguments: dict[str, Any]) -> Any:
        for _ in range(20 - arguments["number"]):
            await asyncio.sleep(0)
        return [command, arguments["number"]]

    async def use(client: AsyncClient, _: ApiServer) -> None:
        answers = await asyncio.gather(*(client.call("x", {"number": number}) for number in range(20)))
        assert [each.result for each in answers] == [["x", number] for number in range(20)]

    run(tmp_path, dispatch, use)


def test_an_error_is_raised_as_it_was(tmp_path: Path) -> None:
    async def dispatch(_: str, __: dict[str, Any]) -> Any:
        raise InvalidInput("is wrong", "port", Code.INVALID_VALUE)

    async def use(client: AsyncClient, _: ApiServer) -> None:
        for ask in (client.call, client.listed):
            with refused(Code.INVALID_VALUE) as caught:
                await ask("x")
            assert caught.value.key == "port" and caught.value.detail == "is wrong"

    run(tmp_path, dispatch, use)


def test_a_list_is_read_item_by_item(tmp_path: Path) -> None:
    async def dispatch(command: str, _: dict[str, Any]) -> Any:
        if command == "within":
            return {"before": 1, "numbers": list(range(2000)), "after": {"x": [2]}}
        return [] if command == "none" else [{"number": number} for number in range(100)]

    async def use(client: AsyncClient, _: ApiServer) -> None:
        assert [each["number"] for each in (await client.listed("some")).items] == list(range(100))
        assert list((await client.listed("none")).items) == []
        found = await client.listed("within", key="numbers")
        assert list(found.items) == list(range(2000)) and found.rest == {"before": 1, "after": {"x": [2]}}
        assert list((await client.listed("within", key="others")).items) == []
        for command, key in (("some", "numbers"), ("within", "")):
            with refused(Code.REFUSED):
                await client.listed(command, key=key)

    run(tmp_path, dispatch, use)


def test_no_more_are_in_progress_than_leave_a_place_for_others(tmp_path: Path) -> None:
    gate, running = asyncio.Event(), 0

    async def dispatch(_: str, __: dict[str, Any]) -> Any:
        nonlocal running
        running += 1
        await gate.wait()

    async def use(client: AsyncClient, _: ApiServer) -> None:
        asked = [asyncio.ensure_future(client.call("x")) for _ in range(MAX_IN_PROGRESS + MAX_WAITING)]
        await wait_until_async(lambda: running == MAX_IN_PROGRESS, "the places are taken")
        with refused(Code.BUSY):
            await client.call("x")
        waits = asyncio.ensure_future(client.call("watch", waits=True))
        await wait_until_async(lambda: running == MAX_IN_PROGRESS + 1, "one that waits takes no place")
        gate.set()
        await asyncio.gather(*asked, waits)

    run(tmp_path, dispatch, use)


def test_a_daemon_that_stops_is_no_silence(tmp_path: Path) -> None:
    async def dispatch(_: str, __: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    async def use(client: AsyncClient, server: ApiServer) -> None:
        asked = asyncio.ensure_future(client.call("x"))
        await wait_until_async(lambda: bool(server._running), "the request is in progress")
        await server.close()
        with refused(Code.DAEMON_SILENT):
            await asyncio.wait_for(asked, 4)
        with refused(Code.DAEMON_NOT_RUNNING):
            await client.call("x")

        async def answering(_: str, __: dict[str, Any]) -> Any:
            return "again"

        later = ApiServer(tmp_path / "s", answering)
        later.start()
        assert (await client.call("x")).result == "again"
        await later.close()

    run(tmp_path, dispatch, use, timeout_ms=20_000)


def test_silence_has_a_limit(tmp_path: Path) -> None:
    async def dispatch(_: str, __: dict[str, Any]) -> Any:
        await asyncio.Event().wait()

    async def use(client: AsyncClient, _: ApiServer) -> None:
        with refused(Code.DAEMON_SILENT):
            await client.call("x")

    run(tmp_path, dispatch, use, timeout_ms=100)

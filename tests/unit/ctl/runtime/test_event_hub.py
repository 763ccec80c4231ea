"""Events reach the log, the history and readers that wait, from any thread; nobody can hold up the one who reports."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ctl.events.catalogue import FARM_DOWN, FARM_UP, RATES, Event
from ctl.runtime.event_hub import EventHub

log = logging.getLogger("ctl.events.test")


def down(name: str = "web") -> Event:
    return FARM_DOWN(f"farm {name}: no backend is up", farm=name)


def some_rates() -> Event:
    return RATES("", packets_per_s=1, bits_per_s=8, new_connections_per_s=0, drops_per_s=0, connections=3)


def names(answer: dict[str, Any]) -> list[str]:
    return [event["event"] for event in answer["events"]]


def test_an_event_is_logged_kept_and_given_to_listeners(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        hub = EventHub("lb1", now_s=lambda: 1_800_000_000.1234)
        heard: list[dict[str, Any]] = []
        hub.listen(heard.append)
        hub.report(log, down())
        hub.report(log, some_rates())
        (event,) = hub.newest(5)["events"]
        assert event == heard[0] and len(heard) == 1, "rates are neither kept nor passed on"
        assert event == {
            "number": 1,
            "time": "2027-01-15T08:00:00.123Z",
            "node": "lb1",
            "event": "farm.down",
            "severity": "error",
            "message": "farm web: no backend is up",
            "fields": {"farm": "web"},
        }

    asyncio.run(run())
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == (log.name, logging.ERROR, "farm web: no backend is up")


def test_the_level_of_the_log_does_not_matter_to_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "level", logging.CRITICAL)

    async def run() -> None:
        hub = EventHub("lb1")
        hub.report(log, FARM_UP("up", farm="web"))
        assert names(hub.newest(5)) == ["farm.up"]

    asyncio.run(run())


def test_a_reader_waits_for_what_is_new_and_a_burst_is_one_answer() -> None:
    async def run() -> None:
        hub = EventHub("lb1")
        hub.report(log, down("old"))
        waiting = [asyncio.create_task(hub.after(1, None, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        for name in ("a", "b", "c"):
            hub.report(log, down(name))
        for answer in await asyncio.gather(*waiting):
            assert [event["fields"]["farm"] for event in answer["events"]] == ["a", "b", "c"] and answer["last"] == 4
        assert (await hub.after(4, None, 0.01))["events"] == [], "nothing, after the time it was to wait"

    asyncio.run(run())


def test_events_of_other_threads_arrive() -> None:
    async def run() -> None:
        hub = EventHub("lb1")
        waiting = asyncio.create_task(hub.after(0, None, 10))
        await asyncio.to_thread(hub.report, log, down())
        assert names(await waiting) == ["farm.down"]

    asyncio.run(run())


def test_rates_are_for_those_who_ask_and_only_the_latest() -> None:
    async def run() -> None:
        hub = EventHub("lb1")
        assert not hub.rates_wanted
        assert (await hub.after(0, None, 0))["rates"] is None and not hub.rates_wanted
        assert (await hub.after(0, 0, 0))["rates"] is None and hub.rates_wanted
        for _ in range(3):
            hub.report(log, some_rates())
        answer = await hub.after(0, 0, 10)
        assert (answer["rates"]["fields"]["connections"], answer["rates"]["number"], answer["rates_last"]) == (3, None, 3)
        assert (await hub.after(0, 3, 0.01))["rates"] is None

    asyncio.run(run())

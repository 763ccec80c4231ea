"""Passes what happens on to the streams of the pages: each has a short queue, and a slow one gets the number of lost items.

Pure but for waking who waits. Must not know what an event means.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

MAX_STREAMS = 64
QUEUE = 256
KEPT = 1000
STATES = ("rates", "job")


@dataclass(frozen=True, slots=True)
class Item:
    """kind: the event type of server-sent events. data: one line of JSON. number: empty unless a stream can resume there."""

    kind: str
    data: str
    number: str = ""

    def encoded(self) -> bytes:
        """As https://html.spec.whatwg.org/#server-sent-events has it."""
        number = f"id: {self.number}\n" if self.number else ""
        return f"{number}event: {self.kind}\ndata: {self.data}\n\n".encode(errors="replace")


class Stream:
    """What one page has not got yet."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.ended = False
        self._items: deque[Item] = deque()
        self._lost = 0
        self._news = asyncio.Event()

    def put(self, item: Item) -> None:
        """Pass an item on, or count it as lost. Of STATES only the newest of a kind matters."""
        if item.kind in STATES:
            self._items = deque(each for each in self._items if each.kind != item.kind)
        if len(self._items) >= QUEUE:
            self._lost += len(self._items)
            self._items.clear()
        self._items.append(item)
        self._news.set()

    def end(self, why: str) -> None:
        """Pass on what there is, then `bye`."""
        self.ended = True
        self.put(Item("bye", f'{{"why":"{why}"}}'))

    async def take(self, wait_s: float) -> list[Item]:
        """What is new, or nothing after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            return []
        self._news.clear()
        items, lost = list(self._items), self._lost
        self._items.clear()
        self._lost = 0
        return [Item("lost", f'{{"lost":{lost}}}'), *items] if lost else items


class Feed:
    """The streams, and the last events for one that resumes."""

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self._kept: deque[Item] = deque(maxlen=KEPT)

    @property
    def full(self) -> bool:
        return len(self.streams) >= MAX_STREAMS

    def open(self, owner: str, after: str = "") -> Stream:
        """A new stream, with what came after the event `after` (Last-Event-ID)."""
        stream = Stream(owner)
        if after:
            self._resume(stream, after)
        self.streams.add(stream)
        return stream

    def _resume(self, stream: Stream, after: str) -> None:
        kept = list(self._kept)
        at = next((at for at, each in enumerate(kept) if each.number == after), None)
        if at is None:
            stream.put(Item("lost", '{"lost":null}'))
            return
        for each in kept[at + 1 :][-QUEUE + 1 :]:
            stream.put(each)

    def close(self, stream: Stream) -> None:
        self.streams.discard(stream)

    def publish(self, item: Item) -> None:
        """Pass an item on to every stream."""
        if item.number:
            self._kept.append(item)
        for each in self.streams:
            each.put(item)

    def end(self, owner: str, why: str) -> None:
        """End the streams of a session."""
        for each in self.streams:
            if each.owner == owner:
                each.end(why)

    def end_all(self, why: str) -> None:
        for each in self.streams:
            each.end(why)

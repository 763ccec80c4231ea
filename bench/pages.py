"""Pages that people have open, and a Prometheus, as load for benches: both ask the real xlb-web of each node of a pair."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.web import insecure
from tests.rig import Node
from tests.rig.web_process import WebProcess, add_user, web_section

POLL_S, SCRAPE_S, RETRY_S = 2.0, 1.0, 0.5
POLLED = ("/api/v1/cluster", "/api/v1/rates")
AT_EVENTS = ("/api/v1/farms", "/api/v1/status")  # at most once per POLL_S

Failed = (OSError, http.client.HTTPException)


class Pages:
    """done: what was answered. failed: what was not, as while a node's xlbd is down. most_mb: resident size of an xlb-web."""

    def __init__(self, nodes: list[Node], each: int) -> None:
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.most_mb = 0.0
        self._webs = [WebProcess(node) for node in nodes]
        self._each = each
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def open(self, active: Node) -> Iterator[None]:
        """Start xlb-web on each node, and everybody who asks it; stop all."""
        add_user(active, "olga", "operator")
        for web in self._webs:
            web.node.config.write_text(web.node.config.read_text() + web_section(web.node))
            web.start()
        try:
            for web in self._webs:
                self._begin(web, self._again, self._scrape, SCRAPE_S)
                for _ in range(self._each):
                    asks = threading.Event()
                    self._begin(web, self._again, self._polled(asks), POLL_S)
                    self._begin(web, self._watch, asks)
            yield
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join(30)
            for web in self._webs:
                web.close()

    def _begin(self, web: WebProcess, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            web.node.namespace.enter()
            work(web, *arguments)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _again(self, web: WebProcess, ask: Callable[[_Asker], None], every_s: float) -> None:
        asker = _Asker(web, self)
        due_s = time.monotonic()
        while not self._stopped.is_set():
            asker.ask(ask)
            due_s = max(due_s + every_s, time.monotonic())
            self._stopped.wait(due_s - time.monotonic())
        asker.close()

    def _scrape(self, asker: _Asker) -> None:
        self.most_mb = max(self.most_mb, asker.web.resident_mb())
        asker.get("/metrics", "scrapes")

    def _polled(self, asks: threading.Event) -> Callable[[_Asker], None]:
        def poll(asker: _Asker) -> None:
            wanted = AT_EVENTS if asks.is_set() else ()
            asks.clear()
            for path in (*POLLED, *wanted):
                asker.get(path, "page requests")

        return poll

    def _watch(self, web: WebProcess, asks: threading.Event) -> None:
        """The stream of events."""
        asker = _Asker(web, self)
        while not self._stopped.is_set():
            asker.ask(lambda asker: self._read(asker, asks))
            self._stopped.wait(RETRY_S)
        asker.close()

    def _read(self, asker: _Asker, asks: threading.Event) -> None:
        answer = asker.begin("/api/v1/events")
        while not self._stopped.is_set():
            line = answer.readline()
            if not line or line.startswith(b"event: bye"):
                return
            if line.startswith(b"event: event"):
                self.done["events on pages"] += 1
                asks.set()


class _Asker:
    """One connection that is kept, and its login."""

    def __init__(self, web: WebProcess, pages: Pages) -> None:
        self.web, self._pages = web, pages
        self._client = web.client()
        self._connection: http.client.HTTPSConnection | None = None

    def ask(self, work: Callable[[_Asker], None]) -> None:
        """One round; a failure is counted, and ends the connection."""
        try:
            if "Cookie" not in self._client.headers and self._client.login("olga").status != 200:
                self._pages.failed["logins"] += 1
                return
            work(self)
        except Failed:
            self._pages.failed["connections"] += 1
            self.close()

    def begin(self, path: str) -> http.client.HTTPResponse:
        """Ask; the body is read by the caller."""
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(self._client.host, self._client.port, timeout=30, context=insecure())
        self._connection.request("GET", path, headers=self._client.headers)
        return self._connection.getresponse()

    def get(self, path: str, name: str) -> None:
        answer = self.begin(path)
        answer.read()
        (self._pages.done if answer.status == 200 else self._pages.failed)[name] += 1

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

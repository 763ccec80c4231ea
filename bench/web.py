"""What xlb-web costs: first byte of the page, requests per second, its memory, and what xlbd pays for it.

    sudo .venv/bin/python -m bench.web [--json] [--farms 1000] [--backends 10] [--seconds 15]

The real daemon in a private network namespace; then with a page that is open (a stream of events, views that are asked for
each two seconds, a scrape each second), compared with an xlbctl that lists the farms as often. Rates are compared with the
same question on the control socket.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bench.node import Measure, farms_document
from bench.pages import Pages
from tests.fakes.web import WebClient, insecure
from tests.rig import Layout, Node, Rig
from tests.rig.web_process import WebProcess, add_user, web_section

MAX_MB = 80.0
FIRST_BYTE_MS, LISTED_RATIO = 50.0, 2.0
XLBD_MORE_MB, LATE_MORE_MS = 2.0, 5.0
REST_S = 3.0
"""After which xlbd has given back what its answers took."""

T = TypeVar("T")

CONTEXT = insecure()  # reads the authorities of the system, which takes longer than an answer


def main() -> None:
    """Print each measure with its limit; exit 1 if one is missed."""
    options = _options()
    with Rig(Layout(backends=1)) as rig:
        node = rig.node
        node.start(deadline_s=60)
        node.call("config.apply", document=farms_document(options.farms, options.backends))
        rows = [each.view() for each in (*_alone(node), *_with_pages(node, options.seconds))]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            verdict = "ok" if row["ok"] else "MISSED"
            print(f"{row['name']:<58} {row['median']:>10.3f} {row['unit']:<4} limit {row['limit']:>8g}  {verdict}")
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


def _alone(node: Node) -> list[Measure]:
    """One client: latency, rates, memory."""
    add_user(node, "olga", "operator")
    node.config.write_text(node.config.read_text() + web_section(node))
    web = WebProcess(node)
    web.start()
    try:
        client = _within(node, lambda: _logged_in(web))
        first = [_within(node, lambda: _first_byte_ms(web.port, "/", client)) for _ in range(20)]
        listed = [_within(node, lambda: _first_byte_ms(web.port, "/api/v1/farms", client, whole=True)) for _ in range(5)]
        asked = [_timed_ms(lambda: node.call("farm.list")) for _ in range(5)]
        memory = web.resident_mb()
        health = _within(node, lambda: _per_second(_asking(web.port, "/healthz", client)))
        vips = _within(node, lambda: _per_second(_asking(web.port, "/api/v1/vips", client)))
        direct = _per_second(lambda: node.call("vip.list"))
        _within(node, lambda: client.get("/metrics"))
        scraped = web.resident_mb()
    finally:
        web.stop()
    print(f"requests per second on one connection: {health:.0f} healthz, {vips:.0f} vips; {direct:.0f} vip.list directly")
    return [
        Measure("page: first byte on a new TLS connection", "ms", tuple(first), FIRST_BYTE_MS),
        Measure("farms: the whole list, in control socket calls", "x", (min(listed) / min(asked),), LISTED_RATIO),
        Measure("xlb-web resident after login, page and lists", "MB", (memory,), MAX_MB),
        Measure("xlb-web resident after a scrape too", "MB", (scraped,), MAX_MB),
        Measure("time of a GET that asks xlbd, in control socket calls", "x", (direct / vips,), 10.0),
    ]


def _with_pages(node: Node, seconds: float) -> list[Measure]:
    """xlbd without a page, and while a page is open and scraped."""
    node.stop()
    node.config.write_text(node.config.read_text().partition("[web]")[0])
    node.start(deadline_s=60)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        node.call("farm.list")  # somebody with xlbctl
        time.sleep(2.0)
    time.sleep(REST_S)
    quiet = _of_xlbd(node)
    pages = Pages([node], each=1)
    node.call("user.delete", name="olga")
    with pages.open(node):
        time.sleep(seconds)
    time.sleep(REST_S)
    watched = _of_xlbd(node)
    return [
        Measure("xlbd resident, more after a page than after xlbctl", "MB", (watched[0] - quiet[0],), XLBD_MORE_MB),
        Measure("xlbd loop late, worst, more with a page than with xlbctl", "ms", (watched[1] - quiet[1],), LATE_MORE_MS),
        Measure("xlb-web resident, most with a page open and scrapes", "MB", (pages.most_mb,), MAX_MB),
    ]


def _of_xlbd(node: Node) -> tuple[float, float]:
    lag = node.call("stats")["loop_lag"]
    return node.call("status")["memory_bytes"] / 1e6, float(lag["worst_minute"])


def _logged_in(web: WebProcess) -> WebClient:
    client = web.client()
    assert client.login().status == 200
    return client


def _first_byte_ms(port: int, path: str, client: WebClient, whole: bool = False) -> float:
    began = time.perf_counter()
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=CONTEXT)
    connection.request("GET", path, headers=client.headers)
    answer = connection.getresponse()
    assert answer.status == 200
    answer.read(None if whole else 1)
    took = (time.perf_counter() - began) * 1000
    connection.close()
    return took


def _timed_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _asking(port: int, path: str, client: WebClient) -> Callable[[], object]:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=CONTEXT)

    def ask() -> bytes:
        connection.request("GET", path, headers=client.headers)
        return connection.getresponse().read()

    return ask


def _per_second(ask: Callable[[], object], rounds: int = 5) -> float:
    rates = []
    for _ in range(rounds):
        began, count = time.perf_counter(), 0
        while time.perf_counter() < began + 0.2:
            ask()
            count += 1
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def _within(node: Node, work: Callable[[], T]) -> T:
    """In a thread of the node's network namespace."""

    def run() -> T:
        node.namespace.enter()
        return work()

    with ThreadPoolExecutor(1, "within") as threads:
        return threads.submit(run).result()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    parser.add_argument("--farms", type=int, default=1000)
    parser.add_argument("--backends", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="how long xlbd is watched, without and with a page")
    return parser.parse_args()


if __name__ == "__main__":
    main()

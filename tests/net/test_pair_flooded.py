"""Ten thousand requests of local clients at once, on a pair with the shortest times: they cost it no lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import msgpack
import pytest
import zmq

from tests.net.paired import PairSite, paired
from tests.rig import Node
from tests.wait import wait_until

CLIENTS, REQUESTS = 10, 1000
FLOODED = 500
"""So many answers prove that the requests were worked on; all of them would take longer than a test should."""


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(apart=True) as pair:
        pair.add_farm("tcp")
        yield pair


class Flood:
    """Requests on many connections, as fast as they are taken. Use as a context manager."""

    def __init__(self, node: Node, command: str) -> None:
        self.answered = self.refused = 0
        self._done = threading.Event()
        self._request = msgpack.packb({"v": 1, "id": 7, "cmd": command, "args": {}})
        self._thread = threading.Thread(target=self._run, args=(f"ipc://{node.run_dir}/control.sock",))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _run(self, socket_path: str) -> None:
        with zmq.Context() as context:
            clients = [context.socket(zmq.DEALER) for _ in range(CLIENTS)]
            poller = zmq.Poller()
            for one in clients:
                for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
                    one.set(option, 0)
                one.connect(socket_path)
                poller.register(one, zmq.POLLIN)
                for _ in range(REQUESTS):
                    one.send(self._request)
            while not self._done.is_set():
                for one, _ in poller.poll(100):
                    ok = msgpack.unpackb(one.recv())["ok"]
                    self.answered, self.refused = self.answered + ok, self.refused + (not ok)
            for one in clients:
                one.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(10)


@pytest.mark.parametrize("command", ["cluster.status", "status"])
def test_a_flood_of_requests_costs_no_lease(site: PairSite, command: str) -> None:
    site.settle()
    serving = site.node
    epoch, before = site.status(serving)["epoch"], len(serving.tail(10_000))
    with Flood(serving, command) as flood:
        wait_until(lambda: flood.answered >= FLOODED, "requests to be answered", 60)
        assert site.status(serving)["role"] == "active", "another client is answered meanwhile"
    assert not flood.refused
    assert site.status(serving)["epoch"] == epoch, serving.tail()
    logged = serving.tail(10_000)[before:]
    assert "lease expired" not in logged and "discarded" not in logged, logged

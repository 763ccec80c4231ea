"""TCP through each balancer, between real sockets: bulk, new connections, and round trips on a kept connection.

Client programs run on one core and servers on another; what the balancer does runs where its packets come from. Must not know
which balancer is measured.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.wire.balancers import PING_PORT, REQUEST_PORT, STREAM_PORT, TCP_PORTS, Balancer, listens
from bench.wire.generator import ksoftirqd, ran_s
from bench.wire.outputs import iperf3_mbit_per_s, percentile, wrk_per_s
from bench.wire.site import Site

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
HTTP_SERVER = f"""\
global
  nbthread 1
  maxconn 2000
defaults
  mode http
  timeout client 1m
  timeout http-request 10s
  timeout connect 1s
  timeout server 1s
frontend answer
  bind 0.0.0.0:{REQUEST_PORT}
  http-request return status 200 content-type text/plain string ok
"""
_PONG = Path(__file__).with_name("pong.py")
_REQUEST_S = 1
_MESSAGE = bytes(64)
_WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Cores:
    """Numbers of processors."""

    client: int
    server: int


class Servers:
    """The three servers of a site, started."""

    def __init__(self, site: Site, core: int, directory: Path) -> None:
        self.site = site
        (directory / "http.cfg").write_text(HTTP_SERVER)
        commands = (
            ("iperf3", "-s", "-p", str(STREAM_PORT)),
            ("haproxy", "-q", "-db", "-f", str(directory / "http.cfg")),
            (sys.executable, str(_PONG), str(PING_PORT)),
        )
        self._processes = [
            site.server.popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for command in commands
        ]

    def wait(self) -> None:
        for port in TCP_PORTS:
            listens(self.site.server, port)

    @property
    def processes(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)


class Tcp:
    """servers: by site, for each that is measured."""

    def __init__(self, cores: Cores, servers: dict[Site, Servers]) -> None:
        self._cores, self._servers = cores, servers
        self._ksoftirqd = tuple(ksoftirqd(core) for core in (cores.client, cores.server))

    def bulk(self, balancer: Balancer, streams: int, mbytes: int) -> dict[str, float]:
        """Mbit/s, and µs of processor time per MB, of all streams together."""
        command = ("iperf3", "-c", balancer.vips[4], "-p", str(STREAM_PORT), "-n", f"{mbytes}M", "-P", str(streams), "--json")
        output, cpu_s = self._client(balancer, *command)
        return {"rate": iperf3_mbit_per_s(output), "cpu": cpu_s * 1e6 / mbytes}

    def connections(self, balancer: Balancer, concurrency: int) -> dict[str, float]:
        """New HTTP connections per second, each for one request, and µs of processor time of each."""
        url = f"http://{balancer.vips[4]}:{REQUEST_PORT}/"
        command = ("wrk", "-t1", f"-c{concurrency}", f"-d{_REQUEST_S}s", "-H", "Connection: close", url)
        output, cpu_s = self._client(balancer, *command)
        rate = wrk_per_s(output)
        return {"rate": rate, "cpu": cpu_s * 1e6 / (rate * _REQUEST_S)}

    def round_trips(self, balancer: Balancer, count: int) -> dict[str, float]:
        """Percentiles in µs of 64 bytes sent and returned, on one connection."""
        balancer.prepare()

        def measure() -> list[float]:
            os.sched_setaffinity(0, {self._cores.client})
            with socket.create_connection((balancer.vips[4], PING_PORT), timeout=10) as one:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return [_round_trip_us(one) for _ in range(count + _WARM_UP)][_WARM_UP:]

        found = balancer.site.client.call(measure)
        return {name: percentile(found, percent) for name, percent in PERCENTILES.items()}

    def _client(self, balancer: Balancer, *command: str) -> tuple[str, float]:
        """What a client printed, and the processor time in seconds of it, the servers and what is between them."""
        balancer.prepare()
        site = balancer.site
        others = (*self._servers[site].processes, *balancer.processes, *self._ksoftirqd)
        before = _children_s() + sum(map(ran_s, others))
        output = site.client.run("taskset", "-c", str(self._cores.client), *command, timeout_s=30, check=False).stdout
        return output, _children_s() + sum(map(ran_s, others)) - before


@contextmanager
def serving(sites: set[Site], cores: Cores) -> Iterator[Tcp]:
    """Servers on every site, and its ends as sockets need them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xlb-bench-")))
        servers = {}
        for site in sites:
            site.ends_have_no_program()
            servers[site] = Servers(site, cores.server, directory)
            stack.callback(servers[site].close)
        for each in servers.values():
            each.wait()
        yield Tcp(cores, servers)


def _round_trip_us(one: socket.socket) -> float:
    began_ns = time.perf_counter_ns()
    one.sendall(_MESSAGE)
    left = len(_MESSAGE)
    while left:
        received = len(one.recv(left))
        if not received:
            raise ConnectionError("closed before all was returned")
        left -= received
    return (time.perf_counter_ns() - began_ns) / 1e3


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

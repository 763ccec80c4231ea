"""UDP packets per second of one core, through each balancer.

The core runs the generator, the balancer and the receiver, because a veth's frames are received on the core that sent them.
What all subjects share, sending and counting, is in the subject that only redirects, and is subtracted for the lines "over a
redirect". Time is that of the generator's thread and of the core's ksoftirqd, so that other work on the machine delays a run
but does not count as its time.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from bench.wire.balancers import Balancer
from bench.wire.generator import Generator, Run
from bench.wire.packets import template
from bench.wire.site import SOURCES6

CHUNK = 50_000
"""Connections that are opened before their packets are repeated: fewer than xlb holds in its map of embryonic ones."""
LOST = 0.001
"""The share of packets that a run may lose, as a connection that finds no free source port does."""


class Udp:
    """generators: by IP version, on the core that is measured. spare: the same on another core, to open connections twice as
    fast; may be empty."""

    def __init__(self, generators: Mapping[int, Generator], spare: Mapping[int, Generator]) -> None:
        self._generators, self._spare = generators, spare
        self._unused = itertools.count(1 << 26, 1 << 20)

    def aim(self, balancer: Balancer, version: int, first: int, flows: int, generator: Generator | None = None) -> Generator:
        """Let the generator send packets of these flows to the balancer, through whose site they are counted."""
        generator = generator or self._generators[version]
        site = balancer.site
        frame = template(generator.family, site.macs_to_balancer(), SOURCES6, balancer.vips[version], balancer.udp_port)
        balancer.prepare()
        generator.plan(frame, first, flows)
        return generator

    def establish(self, balancers: Iterable[Balancer], version: int, first: int, flows: int) -> None:
        """Open the flows in each balancer, with answers from the servers. Raises AssertionError if packets were lost."""
        waiting: queue.SimpleQueue[Balancer] = queue.SimpleQueue()
        for balancer in balancers:
            waiting.put(balancer)

        def work(generator: Generator) -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._open(generator, waiting.get_nowait(), version, first, flows)

        with ThreadPoolExecutor(2) as workers:
            generators = [each[version] for each in (self._generators, self._spare) if version in each]
            for done in [workers.submit(work, each) for each in generators]:
                done.result()

    def _open(self, generator: Generator, balancer: Balancer, version: int, first: int, flows: int) -> None:
        site = balancer.site
        site.offloads(large=False, merge=not balancer.native)
        generator.attach(site.client, "eth0", "receive")
        generator.attach(site.server, "eth0", "answer")
        for start in range(first, first + flows, CHUNK):
            count = min(CHUNK, first + flows - start)
            self.aim(balancer, version, start, count, generator)
            for _ in range(balancer.exchanges):
                run = generator.run(site.client, "eth0", count)
            assert run.at_client == run.sent == count, f"{site.name}: flows were not answered: {run}"

    def receive(self, balancer: Balancer, version: int) -> None:
        """From now on the site's ends count packets and do not answer."""
        site, generator = balancer.site, self._generators[version]
        site.offloads(large=False, merge=not balancer.native)
        generator.attach(site.client, "eth0", "receive")
        if site.server is not site.client:
            generator.attach(site.server, "eth0", "receive")

    def known(self, balancer: Balancer, version: int, first: int, flows: int, count: int) -> Run:
        """`count` packets of flows that are established."""
        generator = self.aim(balancer, version, first, flows)
        generator.run(balancer.site.client, "eth0", min(flows, count // 4))
        return _complete(balancer, generator.run(balancer.site.client, "eth0", count))

    def new(self, balancer: Balancer, version: int, count: int) -> Run:
        """`count` packets, each the first of its flow, to a balancer without earlier ones if they would change its speed."""
        balancer.forget()
        generator = self.aim(balancer, version, next(self._unused), count)
        return _complete(balancer, generator.run(balancer.site.client, "eth0", count))


def _complete(balancer: Balancer, run: Run) -> Run:
    assert run.at_server >= (1 - LOST) * run.sent, f"{balancer.site.name} lost packets: {run}"
    return run

"""bench.wire measures what it claims: each packet sent is received, or dropped by name, in every kind of subject."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bench.wire.balancers import Balancer, Nftables, Redirect, Xlb, started
from bench.wire.generator import generator
from bench.wire.packets import V4
from bench.wire.short import short_connections
from bench.wire.site import Site
from bench.wire.udp import Udp

FLOWS, COUNT, CORE = 200, 5_000, 0


def test_counters_of_sender_balancer_and_receiver_agree() -> None:
    with ExitStack() as stack:
        sender = stack.enter_context(generator(V4, CORE))
        udp = Udp({4: sender}, {})
        short = stack.enter_context(short_connections(CORE))
        xlb = Xlb(Site("xlb"), "native", 4096, CORE)
        subjects: dict[str, Balancer] = {
            "redirect": Redirect(Site("redirect"), sender),
            "one interface": Redirect(Site("redirect 1", 1), sender),
            "nftables": Nftables(Site("nftables")),
            "xlb": xlb,
        }
        missing: dict[str, str] = {}
        stack.enter_context(started(subjects, missing))
        assert not missing
        udp.establish((subjects["nftables"], xlb), 4, 0, FLOWS)
        for balancer in subjects.values():
            udp.receive(balancer, 4)
            before = xlb.counters()
            run = udp.known(balancer, 4, 0, FLOWS, COUNT)
            assert run.sent == run.at_server == COUNT
            assert run.at_client == 0
            assert run.per_s == pytest.approx(1e9 / run.ns)
            assert udp.new(balancer, 4, FLOWS).at_server == FLOWS
        handled = {name: count - before[name] for name, count in xlb.counters().items() if not name.startswith("pass_")}
        warm_up = FLOWS
        assert {name: count for name, count in handled.items() if count} == {"forward_redirect": warm_up + COUNT + FLOWS}

        xlb.udp_port += 100  # which no farm serves
        before = xlb.counters()
        udp.aim(xlb, 4, 0, FLOWS)
        run = sender.run(xlb.site.client, "eth0", COUNT)
        dropped = sum(count - before[name] for name, count in xlb.counters().items() if name.startswith("drop_"))
        assert (run.sent, run.at_server, dropped) == (COUNT, 0, COUNT)

        for balancer in (subjects["redirect"], subjects["nftables"], xlb):
            short.attach(balancer)
            assert short.per_core_s(balancer, 500, 8) > 0

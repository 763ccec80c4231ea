"""Events of a real pair: what `xlbctl watch` on the survivor and its `[notify] command` see of a node that is killed."""

from __future__ import annotations

import json
import signal

from tests.fakes.watch import Watch
from tests.net.paired import PAIR, PairSite, write_pair
from tests.rig import Rig
from tests.wait import wait_until

TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}


def test_a_takeover_is_seen_by_watchers_and_the_command() -> None:
    with Rig(PAIR) as rig:
        write_pair(rig, TIMES)
        for node in rig.nodes:
            seen = node.directory / "seen"
            seen.mkdir()
            seen.chmod(0o777)
            for directory in seen.parents[:-1]:
                directory.chmod(directory.stat().st_mode | 0o011)
            command = ["/bin/sh", "-c", f"cat >> {seen}/events"]
            with node.config.open("a") as file:
                file.write(f"[notify]\ncommand = {json.dumps(command)}\n")
            node.start()
        site = PairSite(rig)
        survivor, killed = site.other, site.node
        watches = [Watch(node.xlbctl_command("watch", "-o", "json", "--last", "0")) for node in (survivor, killed)]
        try:
            for watch in watches:
                assert watch.until("rates")["fields"]["drops_per_s"] >= 0
            killed.signal(signal.SIGKILL)
            killed.wait(30)
            assert watches[0].until("role.changed", role="active")["fields"]["cause"] == "peer_silent"
            assert watches[0].until("takeover.done")["fields"]["took_ms"] < 1000
            assert watches[0].until("peer.lost")["severity"] == "warning"
            watches[1].until("watch.interrupted")
            killed.start()
            assert watches[1].until("watch.resumed")["fields"] == {"restarted": True}
            watches[1].until("role.changed", role="backup")
            assert watches[0].until("sync.changed", in_step=True)
            assert watches[0].end() == (0, "")
        finally:
            for watch in watches:
                watch.process.kill()
                watch.process.communicate()

        def told() -> list[str]:
            path = survivor.directory / "seen" / "events"
            return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []

        wait_until(lambda: {"node.ready", "peer.lost", "takeover.done"} <= set(told()), "the command to have got them")
        assert "notify.failed" not in survivor.tail(200)

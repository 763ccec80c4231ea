"""`xlbctl cluster`: the node's role and the state of its pair."""

from __future__ import annotations

from typing import Any

import click

from ctl.cli import pairing
from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.output import duration, plural, print_fields, share, show


@click.group(cls=XlbGroup, examples=["xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2", "xlbctl cluster status"])
def cluster() -> None:
    """The pair: which node serves, and whether the other could."""


cluster.add_command(pairing.create)
cluster.add_command(pairing.join)


@cluster.command("status", examples=["xlbctl cluster status", "xlbctl cluster status -o json"])
@pass_session
def status(session: Session) -> None:
    """Show this node's role, how its interfaces run XDP, and what it knows of its peer."""
    show(session.json, session.call("status"), lambda answer: print_fields(status_fields(answer)))


cluster.add_command(pairing.check)
cluster.add_command(pairing.destroy)


def status_fields(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of `cluster status` as names and values."""
    fields = [("node", str(answer["node"])), ("role", str(answer["role"]))]
    fields += [("epoch", str(answer["epoch"])), ("generation", str(answer["generation"]))]
    lease_ms = answer.get("lease_ms_left")
    fields.append(("lease", "never runs out" if lease_ms is None else f"{lease_ms} ms left"))
    for interface in answer["interfaces"]:
        fields.append((f"xdp {interface['name']}", interface_sentence(interface)))
    flows = answer["flows"]
    serves = f"{plural(answer['farms'], 'farm')} on {plural(answer['vips'], 'VIP')}"
    fields.append(("serves", f"{serves}, {plural(flows['connections'], 'connection')} (room for {flows['max']})"))
    fields.append(("xlbd", f"{answer['version']}, up for {duration(answer['uptime_s'])}, pins {answer['pins']['origin']}"))
    return fields + peer_fields(answer.get("peer"), answer.get("sync"))


def interface_sentence(interface: dict[str, Any]) -> str:
    """Return how an interface runs the program, and why not natively: "native, driver virtio_net"."""
    driver = f", driver {interface['driver']}" if interface["driver"] else ""
    reason = f" ({interface['reason']})" if interface["reason"] else ""
    return f"{interface['xdp_mode'] or 'none'}{driver}{reason}"


def peer_fields(peer: dict[str, Any] | None, sync: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return what is known of the other node; a single node has none."""
    if not peer:
        return [("peer", "none: this node is single")]
    heard = peer.get("last_heard_ms")
    fields = [
        ("peer", f"{peer['name']}, {peer['role']}, {'alive' if peer['alive'] else 'silent'}"),
        ("last heard", "never" if heard is None else f"{heard} ms ago" if heard < 10_000 else f"{duration(heard / 1000)} ago"),
    ]
    if sync:
        fields.append(("in step", "yes" if sync["in_step"] else "no"))
        fields.append(("protected", share(sync["protected"], 1)))
        fields.append(("lag", f"{sync['lag_ms']} ms"))
    return fields

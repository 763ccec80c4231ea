"""`xlbctl cluster`: the node's role and the state of its pair."""

from __future__ import annotations

from typing import Any

import click

from ctl.cli import pairing
from ctl.cli.base import Session, XlbGroup, pass_session
from ctl.cli.output import duration, plural, print_fields, share, show


@click.group(cls=XlbGroup, examples=["xlbctl cluster create --local 10.99.0.1 --peer 10.99.0.2", "xlbctl cluster status"])
def cluster() -> None:
    """The pair of nodes: which node is active, and whether its peer can take over."""


cluster.add_command(pairing.create)
cluster.add_command(pairing.join)


@cluster.command("status", examples=["xlbctl cluster status", "xlbctl cluster status -o json"])
@pass_session
def status(session: Session) -> None:
    """Show this node's role, the XDP mode of its interfaces, and the state of its peer."""
    show(session.json, session.call("status"), lambda answer: print_fields(status_fields(answer)))


@cluster.command("switchover", examples=["xlbctl cluster switchover"])
@pass_session
def switchover(session: Session) -> None:
    """Make the backup node active without losing a connection.

    Works on either node. Refused, with nothing changed, unless the backup is ready and has every connection.
    """
    show_roles(session, session.call("cluster.switchover"))


@cluster.command("maintenance", examples=["xlbctl cluster maintenance on", "xlbctl cluster maintenance off"])
@click.argument("state", type=click.Choice(["on", "off"]))
@click.option("--force", is_flag=True, help="Even if the peer cannot take over: no node serves the VIPs then.")
@pass_session
def maintenance(session: Session, state: str, force: bool) -> None:
    """Put this node into maintenance, or back into service; the setting survives a restart.

    An active node hands over to its peer first.
    """
    show_roles(session, session.call("cluster.maintenance", on=state == "on", force=force or None))


@cluster.command("failback", examples=["xlbctl cluster failback"])
@pass_session
def failback(session: Session) -> None:
    """Make the node with the higher priority active; `failback = true` in its node file does this automatically."""
    show_roles(session, session.call("cluster.failback"))


cluster.add_command(pairing.check)
cluster.add_command(pairing.destroy)


def show_roles(session: Session, answer: dict[str, Any]) -> None:
    """Print the roles of both nodes."""
    peer = answer["peer"]
    message = f"{answer['node']} is {answer['role']}, {peer['name']} is {peer['role']}"
    show(session.json, answer, lambda _: click.echo(message))


def status_fields(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of `cluster status` as names and values."""
    fields = [("node", str(answer["node"])), ("role", str(answer["role"]))]
    fields += [("reason", str(answer["why"]))] if answer.get("why") else []
    fields += [("epoch", str(answer["epoch"])), ("generation", str(answer["generation"]))]
    lease_ms = answer.get("lease_ms_left")
    fields.append(("lease", "none (a single node needs no lease)" if lease_ms is None else f"{lease_ms} ms left"))
    for interface in answer["interfaces"]:
        fields.append((f"xdp {interface['name']}", interface_message(interface)))
    flows = answer["flows"]
    service = f"{plural(answer['farms'], 'farm')} on {plural(answer['vips'], 'VIP')}"
    fields.append(("service", f"{service}, {plural(flows['connections'], 'connection')} (limit {flows['max']})"))
    fields.append(("xlbd", f"{answer['version']}, up for {duration(answer['uptime_s'])}, pins {answer['pins']['origin']}"))
    return fields + peer_fields(answer.get("peer"), answer.get("sync"), answer.get("paths"), answer["role"] == "active")


def interface_message(interface: dict[str, Any]) -> str:
    """Return XDP mode and driver of an interface, and the reason for a generic mode: "native, driver virtio_net"."""
    driver = f", driver {interface['driver']}" if interface["driver"] else ""
    reason = f" ({interface['reason']})" if interface["reason"] else ""
    return f"{interface['xdp_mode'] or 'none'}{driver}{reason}"


def peer_fields(
    peer: dict[str, Any] | None, sync: dict[str, Any] | None, paths: dict[str, bool] | None = None, active: bool = False
) -> list[tuple[str, str]]:
    """Return the state of the peer; a single node has none. active: whether this node is; then the peer does not advertise."""
    if not peer:
        return [("peer", "none: this node is single")]
    heard = peer.get("last_heard_ms")
    fields = [
        ("peer", f"{peer['name']}, {peer['role']}, {'alive' if peer['alive'] else 'silent'}"),
        ("last heard", "never" if heard is None else f"{heard} ms ago" if heard < 10_000 else f"{duration(heard / 1000)} ago"),
    ]
    if paths:
        absent = {"data": "not expected (this node is active)"} if active else {}
        heard_on = ", ".join(f"{name} {'yes' if alive else absent.get(name, 'no')}" for name, alive in sorted(paths.items()))
        fields.append(("heartbeats", heard_on))
    if sync:
        fields.append(("in step", "yes" if sync["in_step"] else "no"))
        fields.append(("protected", share(sync["protected"], 1)))
        fields.append(("lag", f"{sync['lag_ms']} ms"))
    return fields

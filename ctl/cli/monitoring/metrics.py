"""`xlbctl metrics`: what a node measures, for Prometheus."""

from __future__ import annotations

import click

from ctl.cli.base import Session, XlbCommand, pass_session
from ctl.cli.output import print_json


@click.command(
    "metrics",
    cls=XlbCommand,
    examples=["xlbctl metrics", "xlbctl metrics --format text > /var/lib/prometheus/node-exporter/xlb.prom"],
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["openmetrics", "text"]),
    default="openmetrics",
    help="OpenMetrics 1.0, or Prometheus' text format 0.0.4 for promtool and node_exporter.",
)
@pass_session
def metrics(session: Session, form: str) -> None:
    """Print every metric of this node once. docs/METRICS.md lists them.

    With -o json the text is in a document, with its media type.
    """
    from ctl.metrics import families

    openmetrics = form == "openmetrics"
    text = families.render(session.call("metrics"), openmetrics)
    if session.json:
        print_json({"type": families.OPENMETRICS if openmetrics else families.TEXT, "text": text})
    else:
        click.echo(text, nl=False)

"""What the measuring programs print, as figures. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence


class Unexpected(Exception):
    """The program did not print a valid measurement; the text is what it did print."""


def iperf3_mbit_per_s(document: str) -> float:
    """Of all streams, as their receiver counted them: `iperf3 --json`."""
    fields = json.loads(document)
    if "error" in fields:
        raise Unexpected(f"iperf3: {fields['error']}")
    return float(fields["end"]["sum_received"]["bits_per_second"]) / 1e6


def wrk_per_s(text: str) -> float:
    """Requests per second. A run with failed connections is no measurement."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)$", text, re.MULTILINE)
    errors = re.search(r"^\s*Socket errors: (.+)$", text, re.MULTILINE)
    counts = [int(count) for count in re.findall(r"\d+", errors[1])] if errors else []
    if rate is None or any(counts) or "Non-2xx" in text:
        raise Unexpected(f"wrk: {text.strip()[-300:]}")
    return float(rate[1])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]

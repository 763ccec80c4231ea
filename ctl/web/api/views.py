"""What xlb-web makes of the daemon's answers: rates, series, metrics, farms files, imports."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
from collections.abc import Sequence
from typing import Any

from ctl.config.validation import check_device
from ctl.errors import Code, InvalidInput
from ctl.web.access.turns import Turns
from ctl.web.api import results
from ctl.web.api.handler import Api
from ctl.web.api.request import Handler, Reply, Request
from ctl.web.live.sampler import SCRAPE_S, Sampler
from ctl.web.serving import problems
from ctl.web.serving.answers import Answering
from ctl.web.serving.json_text import dump

TOML = "application/toml"


class LiveHandlers:
    """What the sampler knows."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._rendering = asyncio.Lock()
        self._rendered: dict[bool, bytes] = {}

    def handlers(self) -> dict[str, Handler]:
        """By the name in the table."""
        return {"rates": self.rates, "series": self.series, "metrics": self.metrics}

    async def rates(self, request: Request, _: Answering) -> Reply:
        """Traffic per second."""
        return Reply(await self._sampler.rates(request.given.query.get("farm", "")))

    async def series(self, request: Request, _: Answering) -> Reply:
        """The last hour."""
        return Reply(self._sampler.last_hour(request.given.query.get("farm", "")))

    async def metrics(self, request: Request, answering: Answering) -> None:
        """For Prometheus; scrapes at the same time share one text."""
        from ctl.metrics import families

        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        async with self._rendering:
            if openmetrics not in self._rendered:
                text = await asyncio.to_thread(families.render, await self._sampler.scrape(), openmetrics)
                self._rendered[openmetrics] = text.encode()
                asyncio.get_running_loop().call_later(SCRAPE_S, self._rendered.clear)
            body = self._rendered[openmetrics]
        await answering.whole(200, body, families.OPENMETRICS if openmetrics else families.TEXT)


class ExportHandler:
    """The configuration, as JSON or as a farms file."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def export(self, request: Request, answering: Answering) -> Reply | None:
        """By the parameter `format`, else by the header Accept."""
        wanted = request.given.query.get("format") or ("toml" if TOML in request.headers.get("accept", "") else "json")
        if wanted not in ("json", "toml"):
            raise InvalidInput(f'expected json or toml, got "{wanted[:40]}"', "format")
        version = await self._api.version()
        found = (await self._api.run(request, {})).result
        if wanted == "json":
            return Reply(results.document(found), version=version)
        from ctl.config import farms_file

        text = await asyncio.to_thread(farms_file.to_text, found)
        await answering.whole(200, text.encode(), f"{TOML}; charset=utf-8", {"etag": f'"{version}"'})
        return None


class ImportHandler:
    """Configurations of other load balancers, one at a time."""

    def __init__(self) -> None:
        self._turns = Turns()

    async def make(self, request: Request, _: Answering) -> Reply:
        """A farms file. Files that the input includes are not read."""
        kind, device = request.given.path["kind"], request.given.query.get("device", "")
        vips = _vips(request.given.query.get("vip", ""))
        if device:
            check_device(device, "device")
        return Reply(await self._turns.run(_imported, kind, request.text, device, vips))


async def openapi(_: Request, answering: Answering) -> None:
    """The document."""
    await answering.whole(200, _openapi(), "application/json")


@functools.cache
def _openapi() -> bytes:
    """Made once: anybody may ask for it."""
    from ctl.web.api import openapi as document
    from ctl.web.api.table import ROUTES

    return dump(document.make(ROUTES))


def _imported(kind: str, text: str, device: str, vips: Sequence[tuple[str, int | None]]) -> dict[str, Any]:
    from ctl.importing.addresses import Choices
    from ctl.importing.form import Included, Source
    from ctl.importing.kinds import READERS, NothingToImport, import_from

    if kind not in READERS:
        raise problems.unknown_path(f"import/{kind[:40]} (there are {', '.join(READERS)})")
    source = Source("body", text, lambda _pattern, _within: Included(problems=["included files are not part of the request"]))
    try:
        result = import_from(kind, [source], Choices(device, tuple(vips)))
    except NothingToImport as error:
        notes = "; ".join(map(str, error.findings[:5]))
        raise InvalidInput(f"{error.detail}{': ' if notes else ''}{notes}", error.key, error.code) from None
    return result.as_document() | {"notes": [str(each) for each in result.findings]}


def _vips(text: str) -> list[tuple[str, int | None]]:
    made: list[tuple[str, int | None]] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            interface = ipaddress.ip_interface(each)
        except ValueError:
            raise InvalidInput(f'expected ADDRESS or ADDRESS/LENGTH, got "{each[:80]}"', "vip", Code.INVALID_VALUE) from None
        made.append((str(interface.ip), interface.network.prefixlen if "/" in each else None))
    return made

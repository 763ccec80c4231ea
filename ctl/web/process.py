"""The process of xlb-web: composes the parts, starts them, and stops them at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

from ctl.api.async_client import AsyncClient
from ctl.errors import Code, XlbError, storage_code
from ctl.runtime import memory
from ctl.runtime.systemd import Notifier
from ctl.state.node_file import NodeSettings, listen_address
from ctl.web.access.gate import Gate
from ctl.web.access.sessions import Session
from ctl.web.api import own, views
from ctl.web.api.accounts import AccountHandlers
from ctl.web.api.events import EventStreams
from ctl.web.api.handler import Api
from ctl.web.api.request import Handler
from ctl.web.api.routes import Router
from ctl.web.api.table import ROUTES
from ctl.web.app import Application
from ctl.web.creation.job import CreationJob, Settings
from ctl.web.live.feed import Feed, Item
from ctl.web.live.sampler import Sampler
from ctl.web.live.watcher import Watcher
from ctl.web.serving import certificate
from ctl.web.serving.admission import Admission
from ctl.web.serving.certificate import Certificate
from ctl.web.serving.files import Directory
from ctl.web.serving.hosts import Hosts
from ctl.web.serving.json_text import dump
from ctl.web.serving.listener import Listener, bind

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
CHARTS = Path("/usr/share/javascript/chart.js")
GRACE_S = 1.0
CERTIFICATE_EVERY_S = 3600.0


def serve(settings: NodeSettings, charts: Path = CHARTS) -> None:
    """Run until SIGTERM or SIGINT. Raises XlbError if it cannot start."""
    asyncio.run(_serve(settings, charts))


async def _serve(settings: NodeSettings, charts: Path) -> None:
    memory.share_arenas()
    stop, failures = asyncio.Event(), list[BaseException]()

    def failed(cause: BaseException) -> None:
        failures.append(cause)
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    async with running(settings, charts, failed):
        gc.collect()
        memory.settle()  # what a flood leaves in cycles is found soon, not once per quarter of everything
        await stop.wait()
    if failures:
        raise XlbError(f"a part of xlb-web failed, so it stops: {failures[0]!r}; its log has the stack trace", Code.INTERNAL)


@contextlib.asynccontextmanager
async def running(
    settings: NodeSettings, charts: Path = CHARTS, failed: Callable[[BaseException], None] = lambda _: None
) -> AsyncIterator[list[socket.socket]]:
    """xlb-web on this loop; yields the sockets it listens on. failed: called with the exception of a part that ended by one."""
    make_directory(settings.web.state_dir)
    current = await asyncio.to_thread(find_certificate, settings)
    sockets = bind([listen_address(each, "web.listen") for each in settings.web.listen])
    context = current.context()
    web = _Web(settings, current, charts)
    listener = Listener(web.application, sockets, context, Admission())
    notifier = Notifier()
    await web.gate.load()
    parts = (web.gate.run(), web.watcher.run(), web.sampler.run(), _renew(settings, context))
    tasks = [asyncio.create_task(_forever(each, failed)) for each in parts]
    listener.start()
    for each in sockets:
        log.info("listening on https://%s, certificate SHA256 fingerprint %s", _shown(each), current.fingerprint)
    notifier.ready("serving")
    try:
        yield sockets
    finally:
        notifier.stopping()
        web.feed.end_all("stopping")
        await listener.stop(GRACE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await web.creation.close()
        await web.gate.store()
        await web.client.close()
        notifier.close()


class _Web:
    """The parts; none knows the whole."""

    def __init__(self, settings: NodeSettings, current: Certificate, charts: Path) -> None:
        lasts_s = settings.web.session_minutes * 60.0
        self.client = AsyncClient(Path(settings.control_endpoint.removeprefix("ipc://")))
        self.feed = Feed()
        self.gate = Gate(self.client, settings.web.state_dir, lasts_s, self._ended)
        self.watcher = Watcher(self.client, self.feed, self._seen, self.gate.refresh_soon)
        self.creation = CreationJob(self.client, Settings(settings.web.state_dir, settings.web.remote_command), self._created)
        self.sampler = Sampler(self.client, self.feed, lambda: bool(self.feed.streams))
        handlers: dict[str, Handler] = {
            **own.SessionHandlers(self.gate, lasts_s).handlers(),
            **own.CreationHandlers(self.creation).handlers(),
            **views.LiveHandlers(self.sampler).handlers(),
            "import": views.ImportHandler().make,
            "openapi": views.openapi,
            "version": own.version,
            "events": EventStreams(self.feed, self.gate).serve,
        }
        api = Api(Router(ROUTES), self.client, self.gate, handlers)
        handlers["config.export"] = views.ExportHandler(api).export
        handlers |= AccountHandlers(api, self.gate).handlers()
        files = {"/lib/chart.js/": Directory(charts), "/": Directory(PAGE)}
        self.application = Application(
            api, Hosts({*host_names(settings), *current.names}), files, {"/healthz": b'{"status":"ok"}'}
        )

    def _ended(self, sessions: Iterable[Session]) -> None:
        for each in sessions:
            self.feed.end(each.key, "session")

    def _created(self, view: dict[str, Any] | None) -> None:
        self.feed.publish(Item("job", dump(view).decode()))

    def _seen(self, event: dict[str, Any]) -> None:
        if event["event"].startswith("config."):
            self.gate.refresh_soon()


async def _forever(work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]) -> None:
    """Without one of its parts xlb-web would show old accounts or old events as if they were present ones."""
    try:
        await work
    except Exception as error:
        log.exception("a part of xlb-web failed")
        failed(error)


def make_directory(path: Path) -> None:
    """The directory of xlb-web's state. Raises XlbError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise XlbError(
            f"cannot make {path}: {error.strerror}; make it for the user of xlb-web, or set web.state_dir", storage_code(error)
        ) from None


def find_certificate(settings: NodeSettings) -> Certificate:
    """The operator's, or the self-signed one. Blocks. Raises XlbError."""
    web = settings.web
    if web.tls_certificate:
        return certificate.given(Path(web.tls_certificate), Path(web.tls_key))
    addresses = {listen_address(each, "web.listen")[0] for each in web.listen} - {"0.0.0.0", "::"}
    made = certificate.self_signed(web.state_dir, {*host_names(settings), "localhost", "127.0.0.1", "::1", *addresses})
    if made.made:
        names = ", ".join(sorted(made.names))
        log.warning("new self-signed certificate for %s, SHA256 fingerprint %s", names, made.fingerprint)
    return made


def host_names(settings: NodeSettings) -> Iterator[str]:
    """What this node may be called."""
    name = socket.gethostname()
    for each in {name, socket.getfqdn(name), settings.node.name}:
        if each.isascii() and len(each) < 254 and "_" not in each:
            yield each.lower()


async def _renew(settings: NodeSettings, context: Any) -> None:
    """Connections get a certificate that was replaced, and a self-signed one before it expires."""
    while True:
        await asyncio.sleep(CERTIFICATE_EVERY_S)
        try:
            (await asyncio.to_thread(find_certificate, settings)).load_into(context)
        except XlbError as error:
            log.warning("the certificate is not read again: %s", error)


def _shown(listening: socket.socket) -> str:
    address, port = listening.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

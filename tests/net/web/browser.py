"""A real headless Chromium, driven as a person would: by labels, names of buttons and keys. Knows nothing of the page.

Browser and driver live in a PID namespace of their own, whose first process dies with this one: none of them is left behind.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chromium.remote_connection import ChromiumRemoteConnection
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.wait import wait_until

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
DESK, PHONE = (1280, 800), (360, 740)

_TOOLS = Path(__file__).with_name("in_page.js")


def why_no_browser() -> str:
    """Why no browser can run here; empty if it can."""
    missing = [path for path in (CHROMIUM, DRIVER) if not Path(path).exists()]
    missing += [tool for tool in ("setpriv", "unshare") if shutil.which(tool) is None]
    return f"missing: {', '.join(missing)} (packages chromium, chromium-driver, util-linux)" if missing else ""


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Remote) -> None:
        self.driver = driver
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=_TOOLS.read_text())
        self.size(*DESK)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chromium's devtools protocol."""
        return self.driver.execute("executeCdpCommand", {"cmd": command, "params": parameters})["value"]

    def js(self, script: str, *arguments: Any) -> Any:
        """The value of a function body in the page; of a promise, what it comes to."""
        return self.driver.execute_script(script, *arguments)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Width and height of the window in pixels, and the system's theme."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def view(self, name: str) -> None:
        """Go to a view of the page by its address, and wait until it is shown."""
        self.js("location.hash = arguments[0]", f"#/{name}")
        self.until("location.hash === arguments[0] && document.querySelector('main h1')?.checkVisibility()", f"#/{name}")

    def until(self, expression: str, *arguments: Any, what: str = "", timeout_s: float = 20) -> Any:
        """The value of a JavaScript expression once it is true."""
        return wait_until(lambda: self.js(f"return {expression}", *arguments), what or expression, timeout_s, every_s=0.03)

    def text(self, selector: str = "main") -> str:
        """What a person reads in an element; empty without one."""
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def reads(self, pattern: str, selector: str = "main", timeout_s: float = 20) -> re.Match[str]:
        """The match of a pattern in what a person reads, once it is there."""
        found = wait_until(lambda: re.search(pattern, self.text(selector)), f"{pattern} in {selector}", timeout_s, 0.03)
        assert found is not None
        return found

    def field(self, label: str) -> WebElement:
        """The input of a label, in the open dialog if there is one."""
        found = wait_until(lambda: self.js("return tools.field(arguments[0])", label), f"a field {label}", 5, 0.03)
        assert isinstance(found, WebElement)
        return found

    def has_button(self, name: str) -> bool:
        return self.js("return tools.button(arguments[0])", name) is not None

    def fill(self, **values: str) -> None:
        """Type into fields: label with "_" for spaces."""
        for label, value in values.items():
            self.type(label.replace("_", " "), value)

    def type(self, label: str, value: str) -> None:
        element = self.field(label)
        if element.tag_name == "select":
            self.js("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", element, value)
            return
        element.clear()
        element.send_keys(value)

    def press(self, name: str) -> None:
        """Click a button or link by its name."""
        found = wait_until(lambda: self.js("return tools.button(arguments[0])", name), f"a button {name}", 10, 0.03)
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def keys(self, *keys: str) -> None:
        """Type where the focus is, as on a keyboard."""
        for each in keys:
            self.driver.switch_to.active_element.send_keys(each)

    def tab_to(self, label: str, limit: int = 60) -> None:
        """Press Tab until the focus is on the field or button of this name."""
        for _ in range(limit):
            if self.focused() == label:
                return
            self.keys(Keys.TAB)
        raise AssertionError(f"Tab does not reach {label}; the focus is on {self.focused()}")

    def focused(self) -> str:
        """The name of what has the focus: of its label, or its own."""
        return str(self.js("return tools.focused()"))

    def login(self, name: str, password: str) -> None:
        """In the form that is shown."""
        self.fill(Name=name, Password=password)
        self.press("Log in")

    def shot(self, path: Path, most: int = 4000) -> None:
        """A picture of the page, at most `most` pixels high."""
        width, height = self.js(
            "scrollTo(0, 0); return [innerWidth, Math.max(innerHeight, document.documentElement.scrollHeight)]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most), "scale": 1}
        taken = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the browser complained of since the last time: violations of the policy, scripts that failed."""
        found = [f"policy: {each}" for each in self.js("return tools.violations.splice(0)")]
        for entry in self.driver.execute("getLog", {"type": "browser"})["value"]:
            if not re.search(r"status of (401|403|404|409|412|422|429|503)|ERR_|net::|MIME type", entry["message"]):
                found.append(entry["message"])
        return found


@contextlib.contextmanager
def chromium(directory: Path) -> Iterator[Browser]:
    """A browser with a fresh profile below `directory`."""
    with (directory / "chromedriver.log").open("wb") as log:
        alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"]
        process = subprocess.Popen([*alone, DRIVER, "--port=0"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:

        def started() -> re.Match[str] | None:
            assert process.poll() is None, (directory / "chromedriver.log").read_text()
            return re.search(r"started successfully on port (\d+)", (directory / "chromedriver.log").read_text())

        found = wait_until(started, "chromedriver listens")
        assert found is not None
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "ignore-certificate-errors")
        quiet = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "hide-scrollbars")
        for switch in (*switches, *quiet, f"user-data-dir={directory / 'profile'}"):
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        connection = ChromiumRemoteConnection(f"http://127.0.0.1:{found[1]}", "goog", "chrome")
        driver = webdriver.Remote(connection, options=options)
        driver.set_script_timeout(30)
        try:
            yield Browser(driver)
        finally:
            with contextlib.suppress(Exception):
                driver.quit()
    finally:
        process.kill()
        process.wait(10)

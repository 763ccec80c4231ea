"""xlb-web's page as a person uses it: a real Chromium, two real daemons, a real SSH server. The tests are one story, in order.

Screenshots of each view land in build/screenshots, or in the directory that XLB_SCREENSHOTS names; index.html there shows all.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from ctl.accounts.passwords import hash_password
from tests.fakes.web import PASSWORD
from tests.net.web import looks
from tests.net.web.browser import DESK, PHONE, Browser, chromium, why_no_browser
from tests.net.web.pictures import PICTURES, write_index
from tests.net.web.site import LOCAL, PEER, ROOT_PASSWORD, WebSite, web_site
from tests.rig import HTTP_PORT, TCP_PORT, VIP4, HeldConnections, Tally, http_get, repeat, tcp_connect
from tests.rig.sshd import why_no_sshd
from tests.wait import wait_until

VIEWS = (
    "overview",
    "farms",
    "farms/web",
    "connections",
    "drops",
    "graphs",
    "cluster",
    "events",
    "configuration",
    "accounts",
    "doctor",
)
NEW_PASSWORD = "another 馬 battery staple"
FIRST_PAINT_MS, EVENT_MS = 1000, 1000
ATTACK = '"><img src=x onerror=window.attacked=1><script>window.attacked=2</script>${window.attacked=3}'


@pytest.fixture(scope="module")
def site() -> Iterator[WebSite]:
    if reason := why_no_sshd() or why_no_browser():
        pytest.skip(reason)
    with web_site() as made:
        yield made


@pytest.fixture(scope="module")
def page(site: WebSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as made:
        yield made
    write_index()


@pytest.fixture(autouse=True)
def nothing_was_executed(page: Browser) -> Iterator[None]:
    """After each test: no text became a program, and the browser complains of nothing."""
    yield
    assert page.js("return window.attacked ?? null") is None
    assert page.complaints() == []


def picture(page: Browser, name: str, most: int = 4000) -> None:
    page.shot(PICTURES / f"{name}.png", most)


def row(page: Browser, name: str) -> dict[str, str]:
    """Column to text of the row with this header, of the first table that has it; empty without one."""
    found: dict[str, str] = page.js("return tools.row(arguments[0])", name)
    return found


def roles(page: Browser) -> dict[str, str]:
    """Node to role, in the head of the page."""
    return dict(re.findall(r"(lb\d)\s+(\S+(?: answer)?)", page.text(".health")))


def wait_for_roles(page: Browser, **wanted: str) -> None:
    wait_until(lambda: roles(page) == wanted, f"the page shows {wanted}", every_s=0.03)


def confirm(page: Browser, button: str, *lines: str) -> None:
    """Press a button, read what would happen, and press it in the dialog."""
    page.press(button)
    for line in lines:
        page.reads(line, "dialog")
    page.until("document.querySelector('dialog .actions button')", what="the buttons, once the effect is computed")
    page.press(
        button if page.has_button(button) else page.js("return document.querySelector('dialog .actions button').textContent")
    )
    page.until("!document.querySelector('dialog')")


def test_the_first_paint(page: Browser, site: WebSite, record_property: Any) -> None:
    page.open(site.url)
    page.reads("Log in to xlb")
    painted = page.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
    record_property("first_paint_ms", painted)
    print(f"first paint {painted:.0f} ms")
    assert painted <= FIRST_PAINT_MS
    assert looks.unnamed(page) == [] and page.focused() == "Name"
    picture(page, "login-light")


def test_a_wrong_password(page: Browser) -> None:
    page.login("olga", f"not the {PASSWORD}")
    page.reads("(?i)password", "[role=alert]")
    assert page.focused() == "Password" and page.js("return document.activeElement.value") == ""
    picture(page, "login-wrong-password-light")


def test_a_name_that_is_an_attack(page: Browser) -> None:
    page.login(ATTACK, "whatever it is")
    page.reads("(?i)password|name", "[role=alert]")


def test_logging_in(page: Browser, site: WebSite) -> None:
    wait_until(lambda: site.client().login("olga").status == 200, "the delay after a wrong password ends", every_s=0.2)
    page.login("olga", PASSWORD)
    page.reads("lb1\\s+single", ".health")
    page.reads("OK")
    page.reads("live", ".stream")
    picture(page, "overview-single-light")


def test_the_form_refuses_what_is_wrong_at_the_field(page: Browser) -> None:
    page.view("cluster")
    labels = page.js("return tools.labels('main form')")
    assert labels == ["Local IP", "Remote IP", "Remote root password", "Repeat password"]
    page.field("Local IP").click()
    page.keys(LOCAL, Keys.TAB, ATTACK, Keys.TAB, ROOT_PASSWORD, Keys.TAB, "another", Keys.ENTER)
    page.reads("The two passwords differ")
    assert page.focused() == "Repeat password" and looks.unnamed(page) == []
    page.keys(Keys.CONTROL + "a" + Keys.NULL, ROOT_PASSWORD, Keys.ENTER)
    page.reads("(?i)expected|address", ".field-error:not(:empty), [role=alert]")
    assert page.field("Remote IP").get_attribute("value") == ATTACK
    picture(page, "cluster-create-refused-light")


def test_a_pair_is_created_by_keyboard(page: Browser, site: WebSite) -> None:
    page.view("overview")
    page.view("cluster")
    page.tab_to("Local IP")
    page.keys(LOCAL, Keys.TAB, PEER, Keys.TAB, ROOT_PASSWORD, Keys.TAB, ROOT_PASSWORD, Keys.TAB, Keys.TAB)
    assert page.focused() == "Create"
    page.keys(Keys.ENTER)
    page.reads("Is this the host key of the other node", timeout_s=30)
    assert site.sshd.fingerprint in page.text(".question")
    assert looks.unnamed(page) == []
    picture(page, "cluster-create-host-key-light")
    page.tab_to("It is its key: continue", 5)
    page.keys(Keys.ENTER)
    page.reads("Farm old\\s+VIP 10.77.0.200", ".question", timeout_s=30)
    assert site.two.call("farm.list")[0]["name"] == "old"
    picture(page, "cluster-create-replaces-light")
    page.tab_to("Replace it: continue", 5)
    page.keys(Keys.SPACE)
    page.reads("lb1 and lb2 are a pair", timeout_s=60)
    wait_for_roles(page, lb1="active", lb2="backup")
    assert page.reads("Both nodes") and site.two.call("farm.list") == []
    assert ROOT_PASSWORD not in site.web.log.read_text() + site.one.log.read_text()
    picture(page, "cluster-created-light")


def test_a_virtual_address_a_farm_and_a_backend(page: Browser, site: WebSite) -> None:
    page.view("farms")
    page.press("Add a virtual address")
    page.fill(Address=f"{VIP4}/24", Interface="eth0")
    page.press("Show the effect")
    page.press("Add")
    wait_until(lambda: row(page, f"{VIP4}/24"), "the VIP is listed", every_s=0.03)
    page.tab_to("Add a farm")
    page.keys(Keys.ENTER)
    page.field("Name")
    page.keys(ATTACK, Keys.TAB, Keys.CONTROL + "a" + Keys.NULL, VIP4, Keys.TAB, "80")
    page.tab_to("Show the effect")
    page.keys(Keys.ENTER)
    message = page.reads("(?i)expected|letters", "dialog .field-error:not(:empty)")
    assert message and page.focused() == "Name"
    picture(page, "farm-add-refused-light", DESK[1])
    page.keys(Keys.CONTROL + "a" + Keys.NULL, "web", Keys.ENTER)
    page.reads("Effect on clients", "dialog")
    assert page.focused() == "Add the farm"
    page.keys(Keys.ENTER)
    page.reads("No backends yet")
    for backend in site.rig.backends:
        page.press("Add a backend")
        page.fill(Address=backend.address4, Port=str(HTTP_PORT))
        page.press("Show the effect")
        page.reads(re.escape(backend.address4), "dialog .effect-box")
        if backend is site.rig.backends[1]:
            picture(page, "backend-add-effect-light", DESK[1])
        page.press("Add the backend")
        wait_until(lambda b=backend: "up" in row(page, f"{b.address4}:{HTTP_PORT}").get("State", ""), "it is up", every_s=0.03)  # type: ignore[misc]
    assert site.two.call("farm.show", name="web")["backends"]


@pytest.fixture(scope="module")
def traffic(site: WebSite) -> Iterator[Tally]:
    """A client that asks the farm again and again."""
    tally = Tally()
    running = site.rig.client.start(repeat(lambda: http_get(VIP4, 80), None, tally, concurrency=2, pause_s=0.02))
    yield tally
    tally.stop()
    running.result(20)


def test_real_traffic_is_seen(page: Browser, site: WebSite, traffic: Tally) -> None:
    page.view("farms")
    wait_until(lambda: re.search(r"[1-9]", row(page, "web").get("New/s", "")), "new connections of the farm", every_s=0.05)
    page.view("farms/web")
    wait_until(
        lambda: re.search(r"[1-9]", row(page, f"{site.rig.backends[0].address4}:{HTTP_PORT}").get("Packets", "")),
        "packets of a backend",
        every_s=0.05,
    )
    page.view("overview")
    page.reads(r"New connections\s+[1-9]", ".tiles")


def test_a_switchover(page: Browser, site: WebSite) -> None:
    site.settle()
    page.view("cluster")
    page.press("Switch over")
    page.reads("lb2 becomes active", "dialog")
    picture(page, "cluster-switchover-light", DESK[1])
    page.keys(Keys.ESCAPE)
    page.until("!document.querySelector('dialog')")
    assert page.focused() == "Switch over"
    page.keys(Keys.ENTER)
    page.reads("lb2 becomes active", "dialog")
    page.js("[...document.querySelectorAll('dialog button')].find((each) => each.textContent === 'Switch over').click()")
    wait_for_roles(page, lb1="backup", lb2="active")
    assert site.active() is site.two


def test_a_pulled_cable_is_seen_as_a_takeover_at_once(page: Browser, site: WebSite, record_property: Any) -> None:
    site.settle()
    page.view("cluster")
    page.js("tools.watch('lb1')")
    site.rig.cut_off("lb2")
    try:
        page.until("tools.arrived.some((each) => each.event === 'takeover.done')")
        wait_for_roles(page, lb1="active", lb2="no answer")
        took = page.js("return tools.arrived.find((each) => each.event === 'takeover.done')")
        shown_ms = page.js("return tools.roleShown") - took["at_ms"]
        print(f"takeover in the list of events {took['late_ms']} ms after it, in the head {shown_ms} ms")
        record_property("event_ms", took["late_ms"])
        record_property("role_ms", shown_ms)
        picture(page, "cluster-takeover-light")
        assert took["late_ms"] <= EVENT_MS and shown_ms <= EVENT_MS
        assert page.text("#announcer") != "" or page.js("return document.getElementById('announcer').textContent") != ""
        page.view("overview")
        page.reads("CRITICAL|WARNING")
        page.reads("Remedy")
        picture(page, "overview-takeover-light")
        page.js("return import('/app/api.js').then((api) => api.change('PATCH', '/farms/web', {idle_timeout_s: 1800}))")
        page.reads("stored on this node only|has not confirmed", "#toasts")
    finally:
        site.rig.mend_all("lb2")
    site.settle()
    wait_for_roles(page, lb1="active", lb2="backup")


def test_another_change_came_first(page: Browser, site: WebSite) -> None:
    backend = site.rig.backends[0]
    page.view("farms/web")
    page.press(f"Edit backend {backend.address4}:{HTTP_PORT}")
    page.fill(Weight="7")
    site.active().call("backend.set", farm="web", address=backend.address4, port=HTTP_PORT, weight=5)
    page.press("Show the effect")
    page.press("Save")
    page.reads("Another change came first", "dialog")
    assert page.field("Weight").get_attribute("value") == "7"
    picture(page, "backend-edit-overtaken-light", DESK[1])
    page.press("Load the present state")
    page.reads("Weight is now 5", "dialog")
    page.press("Show the effect")
    page.press("Save")
    page.until("!document.querySelector('dialog')")
    wait_until(
        lambda: row(page, f"{backend.address4}:{HTTP_PORT}").get("Weight") == "7", "the weight on the page", every_s=0.03
    )
    assert site.one.call("farm.show", name="web")["backends"][0]["weight"] == 7


def test_the_history_names_the_user_and_rolls_back(page: Browser, site: WebSite) -> None:
    page.view("configuration")
    page.reads(r"olga.*backend\.set")
    generation = next(each["name"] for each in site.active().call("config.history")[1:])
    page.press(f"Generation {generation}")
    page.press("Roll back to this generation …")
    page.reads("weight", "dialog .changes")
    page.press(f"Roll back to {generation}")
    page.until("!document.querySelector('dialog')")
    assert site.active().call("farm.show", name="web")["backends"][0]["weight"] == 5


def test_why_a_connection_goes_there_and_why_a_client_cannot_connect(page: Browser) -> None:
    page.view("connections")
    forms = "main .columns > section:nth-child({})"
    for number, (action, port) in enumerate((("Explain", "80"), ("Find out", "81")), 1):
        scope = forms.format(number)
        for name, value in (
            ("source", "10.77.0.10"),
            ("source_port", "4711"),
            ("destination", VIP4),
            ("destination_port", port),
        ):
            element = page.driver.find_element("css selector", f"{scope} [name={name}]")
            element.send_keys(value)
        page.press(action)
        page.reads("forwarded|cannot connect", f"{scope} .answer")
    assert "maglev" in page.text(forms.format(1))
    assert "Remedy" in page.text(forms.format(2))
    picture(page, "connections-answers-light")


def test_a_prefix_list_of_a_farm(page: Browser, site: WebSite) -> None:
    page.view("farms")
    page.press("Add a prefix list")
    page.fill(Name="office", Prefixes="10.0.0.0/8\n2001:db8::/3x")
    page.press("Save")
    page.reads("2001:db8::/3x", "dialog .field-error:not(:empty)")
    page.fill(Prefixes="10.0.0.0/8\n2001:db8::/32")
    page.press("Save")
    wait_until(lambda: row(page, "office").get("IPv6") == "1", "the list is shown", every_s=0.03)
    confirm(page, "Delete prefix list office", "No farm uses it")
    wait_until(lambda: not row(page, "office"), "the list is gone", every_s=0.03)
    assert site.one.call("prefixes.list") == []


@pytest.fixture(scope="module")
def held(page: Browser, site: WebSite) -> Iterator[HeldConnections]:
    """Connections that are held through a farm "echo" of their own; the pair is in step."""
    site.add_farm("tcp", name="echo", closing_timeout_s=1)
    made = HeldConnections(VIP4, TCP_PORT, 40, pause_s=0.02)
    site.rig.client.run(made.open())
    assert site.rig.client.run(made.confirm()) == 0
    site.settle()
    yield made
    site.rig.client.run(made.close())


def effect(page: Browser) -> dict[str, int]:
    """What the open dialog shows: how many connections continue, move and end."""
    page.reads("Effect on clients", "dialog")
    found = re.findall(r"(\d+) connections? (continue|move|end)s?", page.text("dialog .effect"))
    return {what: int(count) for count, what in found if count != "0"}


def still_held(site: WebSite, held: HeldConnections) -> int:
    """How many connections continue: each has answered since the call."""
    behind = site.rig.client.run(held.confirm())
    assert behind == len(held.broken) and held.wrong_bytes == 0
    return held.count - behind


def expire(site: WebSite, living: int) -> None:
    """Wait until the connections of "echo" that were reset have expired: until then they count."""
    wait_until(lambda: site.active().call("conn.count", farm="echo")["total"] == living, f"{living} connections", every_s=0.05)


def test_the_effect_of_a_drain_is_what_happens(page: Browser, site: WebSite, held: HeldConnections) -> None:
    first, second = (f"{each.address4}:{TCP_PORT}" for each in site.rig.backends)
    on_first, on_second = len(held.on_backend("b1")), len(held.on_backend("b2"))
    assert on_first and on_second and on_first + on_second == held.count
    page.view("farms/echo")
    page.press(f"Drain backend {second}")
    page.fill(Deadline="1", At_the_deadline="keep")
    page.press("Show the effect")
    assert effect(page) == {"continue": held.count}
    page.press("Drain")
    page.until("!document.querySelector('dialog')")
    wait_until(lambda: "until" in row(page, second).get("State", ""), "the drain with its deadline", every_s=0.03)
    page.view("events")
    page.reads(rf"drain of backend {re.escape(second)} of farm echo reached its deadline: \d+ connections continue")
    assert still_held(site, held) == held.count
    page.view("farms/echo")
    confirm(page, f"End the drain of backend {second}", "takes new connections again")
    wait_until(lambda: row(page, second).get("State", "").startswith("up"), "the end of the drain", every_s=0.03)
    page.press(f"Drain backend {first}")
    assert page.focused() == "Deadline"
    page.keys("1")
    page.fill(At_the_deadline="cut")
    picture(page, "backend-drain-light", DESK[1])
    page.keys(Keys.ENTER)
    assert effect(page) == {"continue": on_second, "end": on_first}
    assert looks.everything(page) == []
    picture(page, "backend-drain-effect-light", DESK[1])
    page.press("Drain")
    wait_until(lambda: len(held.broken) == on_first, "the connections of the backend are cut", every_s=0.03)
    assert still_held(site, held) == on_second
    page.view("events")
    page.reads(rf"drain of backend {re.escape(first)} of farm echo reached its deadline: \d+ connections ended")


def test_the_effect_of_a_setting_and_of_stopping(page: Browser, site: WebSite, held: HeldConnections) -> None:
    living = held.count - len(held.broken)
    expire(site, living)
    page.view("farms/echo")
    confirm(page, f"End the drain of backend {site.rig.backends[0].address4}:{TCP_PORT}")
    page.press("Edit")
    page.press("More settings")
    page.fill(Lookup_table="509", Connections_of_a_removed_backend="keep")
    page.press("Show the effect")
    assert effect(page) == {"continue": living}
    page.reads(r"Farm echo: [1-9][\d.]* % of the clients get another backend", "dialog")
    picture(page, "farm-edit-effect-light", DESK[1])
    page.press("Save")
    page.until("!document.querySelector('dialog')")
    found = site.two.call("farm.show", name="echo")
    assert (found["table_size"], found["on_backend_removed"]) == (509, "keep")
    page.press("Stop")
    assert effect(page) == {"continue": living}
    page.press("Stop the farm")
    page.reads("stopped", ".verdict")
    assert site.rig.client.run(tcp_connect(VIP4, TCP_PORT, timeout_s=0.3)).error
    assert still_held(site, held) == living
    confirm(page, "Start", "takes new connections again")
    page.reads("2 of 2 backends up", ".verdict")
    assert not site.rig.client.run(tcp_connect(VIP4, TCP_PORT)).error


def test_the_effect_of_removing_a_backend_and_of_deleting_a_farm(page: Browser, site: WebSite, held: HeldConnections) -> None:
    address = site.rig.backends[1].address4
    more = HeldConnections(VIP4, TCP_PORT, 20, pause_s=0.02)
    site.rig.client.run(more.open())
    expire(site, held.count - len(held.broken) + more.count)
    went, left = len(more.on_backend("b2")) + len(held.on_backend("b2")), len(more.on_backend("b1"))
    page.view("farms/echo")
    page.press(f"Remove backend {address}:{TCP_PORT}")
    wait_until(lambda: effect(page) == {"continue": went + left}, "the farm keeps them", every_s=0.03)
    page.field("At once: its connections end now").click()
    wait_until(lambda: effect(page) == {"continue": left, "end": went}, "the effect of at once", every_s=0.03)
    assert looks.everything(page) == []
    picture(page, "backend-remove-light", DESK[1])
    page.press("Remove")
    wait_until(lambda: not row(page, f"{address}:{TCP_PORT}"), "the backend is gone", every_s=0.03)
    wait_until(lambda: len(held.broken) == held.count, "its connections have ended", every_s=0.03)
    assert still_held(site, more) == left
    expire(site, left)
    page.press("Delete")
    page.reads("Delete farm echo\\?", "dialog h2")
    assert effect(page) == {"end": left}
    picture(page, "farm-delete-light", DESK[1])
    page.press("Delete the farm")
    page.until("location.hash === '#/farms'")
    wait_until(lambda: row(page, "web") and not row(page, "echo"), "the farm is gone", every_s=0.03)
    wait_until(lambda: len(more.broken) == more.count, "its connections have ended", every_s=0.03)
    site.rig.client.run(more.close())


def test_import_shows_what_it_could_not_carry_over_as_text(page: Browser) -> None:
    page.view("configuration")
    page.fill(Kind="haproxy")
    page.js(
        "const area = document.querySelector('main [name=text]'); area.value = arguments[0];",
        f"defaults\n mode tcp\nlisten web\n bind 10.77.0.100:8081\n {ATTACK} of nobody\n server a 10.77.0.21:8080\n",
    )
    page.press("Convert")
    page.reads("Not carried over")
    page.reads(re.escape("<img src=x"))
    page.press("Dry run")
    page.reads("It would change")
    picture(page, "configuration-import-light")


def test_whatever_a_peer_or_a_backend_reports_is_text(page: Browser, site: WebSite) -> None:
    """Every string of every answer is an attack: nodes, farms, errors of checks, events, findings, counters, users."""
    page.js("tools.poison(arguments[0])", ATTACK)
    site.active().call("farm.set", name="web", idle_timeout_s=3600)  # an event
    images = page.js("return document.images.length")
    for view in VIEWS:
        if view == "graphs":
            continue  # numbers only
        page.view("doctor" if view != "doctor" else "events")
        page.view(view)
        page.until("document.querySelector('main').innerText.includes('<img src=x')", what=f"the attack in {view}")
        assert page.js("return document.images.length") == images
        assert page.js("return document.querySelectorAll('main script, main iframe, main object').length") == 0
    picture(page, "attacked-farms-light")
    page.open("about:blank")
    page.open(f"{site.url}/#/overview")
    page.reads("lb1\\s+active", ".health")


@pytest.mark.parametrize(("theme", "size"), [("light", DESK), ("dark", DESK), ("phone", PHONE)])
def test_every_view_is_readable_by_everybody(page: Browser, site: WebSite, theme: str, size: tuple[int, int]) -> None:
    page.size(*size, dark="dark" in theme)
    problems: dict[str, list[str]] = {}
    try:
        for view in VIEWS:
            page.view(view)
            page.until("!/Loading …|Running the checks/.test(document.querySelector('main').innerText)")
            if view in ("graphs", "farms/web"):
                page.until("[...document.querySelectorAll('canvas')].every((each) => each.checkVisibility() && each.width > 0)")
            if wrong := looks.everything(page):
                problems[view] = wrong
            picture(page, f"{view.replace('/', '-')}-{theme}")
    finally:
        page.size(*DESK)
    assert problems == {}


def test_graphs_are_numbers_without_the_library(page: Browser, site: WebSite) -> None:
    page.cdp("Network.enable")
    page.cdp("Network.setBlockedURLs", urls=["*/lib/chart.js/*"])
    try:
        page.open("about:blank")
        page.open(f"{site.url}/#/graphs")
        page.reads(r"Packets\s+[\d.]+(?: k)?/s\s+lowest")
        assert page.js("return [...document.querySelectorAll('canvas')].filter((each) => each.checkVisibility()).length") == 0
    finally:
        page.cdp("Network.setBlockedURLs", urls=[])
        page.cdp("Network.disable")
    page.open("about:blank")
    page.open(f"{site.url}/#/graphs")
    page.until("[...document.querySelectorAll('canvas')].some((each) => each.checkVisibility() && each.width > 0)")


def test_the_menu_on_a_phone(page: Browser) -> None:
    page.size(*PHONE)
    try:
        assert not page.js("return document.getElementById('nav').checkVisibility()")
        page.press("Menu")
        picture(page, "menu-phone", PHONE[1])
        page.press("Farms")
        page.until("location.hash === '#/farms' && document.activeElement.tagName === 'H1'")
        assert not page.js("return document.getElementById('nav').checkVisibility()")
        page.press("Add a farm")
        assert looks.everything(page) == []
        picture(page, "farm-add-phone", PHONE[1])
        page.keys(Keys.ESCAPE)
    finally:
        page.size(*DESK)


def test_the_theme_is_remembered(page: Browser) -> None:
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    light = page.js(ground)
    theme = "const e = document.querySelector('.theme'); e.value = arguments[0]; e.dispatchEvent(new Event('change'))"
    page.js(theme, "dark")
    dark = page.js(ground)
    assert dark != light
    page.driver.refresh()
    page.reads("lb1\\s+active", ".health")
    assert page.js(ground) == dark
    page.js(theme, "")
    assert page.js(ground) == light


def test_many_farms_and_long_names(page: Browser, site: WebSite) -> None:
    name = "a-farm-with-a-name-of-sixty-three-characters-" + "x" * 18
    document = site.active().call("config.export")
    document["farm"] += [{"name": name, "vip": VIP4, "port": "8000-8010,9000,9443"}]
    document["farm"] += [{"name": f"farm-{number:04}", "vip": VIP4, "port": 10000 + number} for number in range(1000)]
    site.active().call("config.apply", document=document)
    page.view("overview")
    began = page.js("return performance.now()")
    page.view("farms")
    page.until("document.querySelectorAll('main tbody tr').length > 1000")
    shown_ms = page.js("return performance.now()") - began
    print(f"1,002 farms shown in {shown_ms:.0f} ms")
    page.field("Filter").send_keys("farm-0999")
    page.until("document.querySelectorAll('main .table-box')[0].querySelectorAll('tbody tr').length === 1")
    page.field("Filter").clear()
    page.field("Filter").send_keys("sixty-three")
    page.until("document.querySelectorAll('main .table-box')[0].querySelectorAll('tbody tr').length === 1")
    picture(page, "farms-long-name-light")
    page.size(*PHONE)
    try:
        page.view(f"farms/{name}")
        page.reads("empty")
        assert looks.too_wide(page) == []
        picture(page, "farm-long-name-phone")
    finally:
        page.size(*DESK)
    document["farm"] = [each for each in document["farm"] if each["name"] == "web"]
    site.active().call("config.apply", document=document)


def test_the_other_node_has_the_same_page(page: Browser, site: WebSite) -> None:
    """The account was made on lb1; what is changed on the backup, the active node commits, in the name of its user."""
    site.settle()
    site.other.start()
    page.open(f"{site.other_url}/#/cluster")
    page.reads("Log in to xlb")
    page.login("olga", PASSWORD)
    wait_for_roles(page, lb1="active", lb2="backup")
    page.reads(r"lb2\s+this node\s+lb1", ".compare thead")
    page.reads(r"Role\s+backup\s+active", ".compare")
    page.reads(r"Sees its peer as\s+active\s+alive\s+backup\s+alive", ".compare")
    assert looks.everything(page) == []
    picture(page, "cluster-of-the-backup-light")
    page.view("farms/web")
    page.press("Edit")
    page.press("More settings")
    page.fill(Idle_timeout="1200")
    page.press("Show the effect")
    page.press("Save")
    page.until("!document.querySelector('dialog')")
    page.reads("idle 1200 s")
    assert site.one.call("farm.show", name="web")["idle_timeout_s"] == 1200
    page.view("configuration")
    page.reads(r"olga \(web\).*farm\.set")
    page.view("events")
    page.reads("configuration .*olga")


def test_the_page_of_the_backup_sees_the_takeover(page: Browser, site: WebSite) -> None:
    site.settle()
    page.view("cluster")
    page.js("tools.watch('lb2')")
    site.rig.cut_off("lb1")
    try:
        page.until("tools.arrived.some((each) => each.event === 'takeover.done')")
        wait_for_roles(page, lb1="no answer", lb2="active")
        took = page.js("return tools.arrived.find((each) => each.event === 'takeover.done')")
        shown_ms = page.js("return tools.roleShown") - took["at_ms"]
        print(f"takeover in the list of events {took['late_ms']} ms after it, in the head {shown_ms} ms")
        assert took["late_ms"] <= EVENT_MS and shown_ms <= EVENT_MS
    finally:
        site.rig.mend_all("lb1")
    wait_for_roles(page, lb1="backup", lb2="active")
    site.settle()
    page.open("about:blank")
    site.other.stop()
    page.open(f"{site.url}/#/overview")
    wait_for_roles(page, lb1="backup", lb2="active")


def test_a_restart_of_xlbd_and_of_xlb_web_is_noticed_and_survived(page: Browser, site: WebSite) -> None:
    page.view("farms")
    site.settle()
    site.web.stop()
    page.reads("xlb-web does not answer", "#banners")
    picture(page, "no-connection-light")
    site.web.start()
    page.until("document.getElementById('banners').childElementCount === 0")
    page.reads("live", ".stream")
    assert page.text(".user") == "olga" and not page.text("dialog")
    site.one.stop()
    page.reads("xlbd is not running: .*systemctl start xlbd", "#banners")
    picture(page, "xlbd-not-running-light")
    site.one.start()
    page.until("document.getElementById('banners').childElementCount === 0")
    site.settle()


def test_an_expired_session_loses_nothing(page: Browser, site: WebSite) -> None:
    page.view("farms/web")
    page.press("Add a backend")
    page.fill(Address="10.77.0.99", Weight="3")
    site.active().call("user.set", name="olga", password_hash=hash_password(PASSWORD))  # which ends the sessions
    page.reads("The session has ended", "dialog:last-of-type")
    picture(page, "session-ended-light", DESK[1])
    page.field("Password").send_keys(PASSWORD, Keys.ENTER)
    page.until("document.querySelectorAll('dialog').length === 1")
    assert page.field("Address").get_attribute("value") == "10.77.0.99"
    page.press("Show the effect")
    page.reads("Effect on clients", "dialog")
    page.press("Back")
    page.press("Cancel")
    page.reads("live", ".stream")


def test_ones_own_password_is_changed(page: Browser, site: WebSite) -> None:
    elsewhere = site.client("olga")
    page.view("accounts")
    page.press("Account of olga (operator)")
    page.fill(Present_password=PASSWORD, New_password="short", Repeat_the_new_password="short")
    page.press("Change the password")
    page.reads("(?i)at least 10|characters", "dialog .field-error:not(:empty)")
    assert page.focused() == "New password" and looks.everything(page) == []
    picture(page, "password-refused-light", DESK[1])
    assert elsewhere.get("session").status == 200
    page.fill(Present_password=PASSWORD, New_password=NEW_PASSWORD, Repeat_the_new_password=NEW_PASSWORD)
    page.press("Change the password")
    page.reads("The password is changed", "#toasts")
    page.until("!document.querySelector('dialog')")
    assert elsewhere.get("session").status == 401, "the other session has ended"
    page.view("farms")
    page.view("accounts")
    page.reads("olga\\s+\\(you\\)")
    page.reads("live", ".stream")
    assert not page.js("return document.querySelector('dialog')"), "this session has not"
    assert site.client("olga", NEW_PASSWORD).get("users").status == 200


def test_a_user_is_added_changed_and_deleted(page: Browser, site: WebSite) -> None:
    page.view("accounts")
    page.press("Add a user")
    page.fill(Name=ATTACK, Role="viewer", Password=PASSWORD, Repeat_the_password=PASSWORD)
    page.press("Add")
    page.reads("(?i)expected|name", "dialog .field-error:not(:empty), dialog [role=alert]")
    page.type("Name", "carla")
    page.press("Add")
    wait_until(lambda: row(page, "carla").get("Role") == "viewer", "the user is listed", every_s=0.03)
    carla = site.client("carla")
    assert carla.get("farms").status == 200 and carla.post("farms/web/start", {}).status == 403
    page.press("Edit user carla")
    page.fill(Role="operator")
    picture(page, "user-edit-light", DESK[1])
    page.press("Save")
    wait_until(lambda: row(page, "carla").get("Role") == "operator", "the role is shown", every_s=0.03)
    assert carla.get("farms").status == 401, "the session of another role has ended"
    carla = site.client("carla")
    assert carla.post("farms/web/start", {}).status == 200
    page.press("Delete user carla")
    page.reads("Delete user carla\\?", "dialog h2")
    page.reads("sessions end at once", "dialog")
    picture(page, "user-delete-light", DESK[1])
    page.press("Delete")
    wait_until(lambda: not row(page, "carla"), "the user is gone", every_s=0.03)
    assert carla.get("farms").status == 401 and site.two.call("user.list")
    assert "carla" not in {each["name"] for each in site.two.call("user.list")}


def test_a_token_is_shown_once_and_used_by_a_program(page: Browser, site: WebSite) -> None:
    page.view("accounts")
    page.press("Add a token")
    page.fill(Name="prometheus", Role="viewer", Expires_after="30")
    page.press("Add")
    token = page.reads(r"xlb_[\w-]{43}", "dialog")[0]
    page.reads("shown once", "dialog")
    assert looks.everything(page) == []
    picture(page, "token-shown-once-light", DESK[1])

    def program(path: str, *more: str) -> tuple[str, str]:
        """Body and status, as a script has them."""
        command = ["curl", "--silent", "--insecure", "--write-out", "\n%{http_code}", *more, f"{site.url}{path}"]
        body, _, status = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.rpartition(
            "\n"
        )
        return status, body

    bearer = ("--header", f"Authorization: Bearer {token}")
    assert program("/metrics")[0] == "401"
    status, metrics = program("/metrics", *bearer)
    assert status == "200" and re.search(r'^xlb_\w+\{.*farm="web"', metrics, re.MULTILINE)
    status, farms = program("/api/v1/farms", *bearer)
    assert status == "200" and "web" in {each["name"] for each in json.loads(farms)["result"]}
    assert program("/api/v1/farms/web/stop", *bearer, "--json", "{}")[0] == "403", "a viewer's"
    page.press("Done")
    assert token not in page.js("return document.documentElement.outerHTML")
    shown = row(page, "prometheus")
    assert shown["Role"] == "viewer" and shown["Made by"] == "olga" and shown["Expires"] != "never"
    page.press("Delete token prometheus")
    page.reads("refused at once", "dialog")
    page.press("Delete")
    wait_until(lambda: not row(page, "prometheus"), "the token is gone", every_s=0.03)
    assert program("/metrics", *bearer)[0] == program("/api/v1/farms", *bearer)[0] == "401"


def test_failback_maintenance_and_the_end_of_the_pair(page: Browser, site: WebSite) -> None:
    page.view("cluster")
    wait_for_roles(page, lb1="backup", lb2="active")
    confirm(page, "Fail back", "node with the higher priority becomes active")
    wait_for_roles(page, lb1="active", lb2="backup")
    site.settle()
    confirm(page, "Maintenance of lb1", "lb1 hands over to lb2 first", "if lb2 fails, no node serves")
    wait_for_roles(page, lb1="maintenance", lb2="active")
    confirm(page, "End maintenance of lb1", "takes part again")
    wait_for_roles(page, lb1="backup", lb2="active")
    site.settle()
    confirm(page, "Fail back")
    wait_for_roles(page, lb1="active", lb2="backup")
    site.settle()
    confirm(page, "Destroy the pair", "lb1 continues as a single node", "lb2 becomes a single node without VIPs and farms")
    wait_for_roles(page, lb1="single")
    page.field("Remote root password")
    assert [each["name"] for each in site.one.call("farm.list")] == ["web"] and site.two.call("farm.list") == []


def test_a_pair_is_created_without_ssh(page: Browser, site: WebSite) -> None:
    """A token that is made on the page of one node is used on the page of the other."""
    site.two.call("vip.add", address="10.77.0.200/24", device="eth0")
    site.two.call("farm.add", name="old", vip="10.77.0.200", port=80)
    page.press("Make a token on this node")
    opened = "main details[open] [name={}]"
    page.driver.find_element("css selector", opened.format("local")).send_keys(LOCAL)
    page.driver.find_element("css selector", opened.format("peer")).send_keys(PEER)
    page.press("Make a token")
    token = page.reads(rf"xlbctl cluster join --local {re.escape(PEER)} (\S+)")[1]
    picture(page, "cluster-token-light")
    if not site.two.call("user.list"):
        site.two.call("user.add", name="olga", role="operator", password_hash=hash_password(NEW_PASSWORD))
    site.other.start()
    page.open(f"{site.other_url}/#/cluster")
    page.login("olga", NEW_PASSWORD)
    page.press("Join with a token (replaces this node's farms)")
    page.reads("Joining removes from this node.*\\s+Farm old")
    page.driver.find_element("css selector", opened.format("local")).send_keys(PEER)
    page.fill(Token_of_the_other_node="nonsense")
    page.press("Join")
    page.reads("(?i)token", "main [role=alert], main .field-error:not(:empty)")
    page.fill(Token_of_the_other_node=token)
    picture(page, "cluster-join-light")
    page.press("Join")
    wait_for_roles(page, lb1="active", lb2="backup")
    page.reads(r"lb2\s+this node\s+lb1", ".compare thead")
    site.settle()
    assert [each["name"] for each in site.two.call("farm.list")] == ["web"]
    page.open("about:blank")
    site.other.stop()
    page.open(f"{site.url}/#/cluster")
    wait_for_roles(page, lb1="active", lb2="backup")


CHANGING = (
    *("add", "edit", "delete", "remove", "drain", "undrain", "stop", "start", "save", "apply", "switch over", "fail back"),
    *("maintenance", "destroy", "create", "guard", "roll back", "dry run", "convert", "join", "make"),
)
"""What buttons of changes begin with."""


def test_a_viewer_sees_everything_and_changes_nothing(page: Browser, site: WebSite) -> None:
    page.press("Account of olga (operator)")
    page.press("Log out")
    page.reads("Log in to xlb")
    page.login("vera", PASSWORD)
    page.reads("lb1", ".health")
    for view in VIEWS:
        if view == "accounts":
            continue
        page.view(view)
        page.until("!/Loading …|Running the checks/.test(document.querySelector('main').innerText)")
        buttons = page.js("return [...document.querySelectorAll('main button, main summary')].map((each) => each.textContent)")
        assert [each for each in buttons if each.lower().startswith(CHANGING)] == []
    assert not page.has_button("Accounts")
    before = site.one.call("config.export")
    answers = page.js(
        "return tools.ask(arguments[0])",
        [
            ["POST", "/farms", {"name": "mine", "vip": VIP4, "port": 99}],
            ["DELETE", "/farms/web", None],
            ["POST", "/farms/web/stop", {}],
            ["POST", "/cluster/switchover", {}],
            ["DELETE", "/cluster", None],
            ["GET", "/users", None],
        ],
    )
    assert answers == [403] * 6 and site.one.call("config.export") == before
    picture(page, "farms-viewer-light")


def test_too_many_logins_are_slowed_down(page: Browser) -> None:
    page.press("Account of vera (viewer)")
    page.press("Log out")
    page.reads("Log in to xlb")

    def refused() -> bool:
        page.login("nobody", "not a password")
        page.until("!document.querySelector('form [aria-busy]')")
        return re.search("(?i)too many|try again in", page.text("[role=alert]")) is not None

    wait_until(refused, "a message that names the delay")
    picture(page, "login-too-many-light")


def test_the_pictures_can_be_opened(page: Browser) -> None:
    write_index()
    found = json.dumps(sorted(path.name for path in PICTURES.glob("*.png")))
    assert all(f"{view.replace('/', '-')}-{theme}.png" in found for view in VIEWS for theme in ("light", "dark", "phone"))

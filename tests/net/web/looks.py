"""What a page must have for everybody. Each function returns what is wrong, as messages; the measuring is in in_page.js."""

from __future__ import annotations

from tests.net.web.browser import Browser


def unnamed(browser: Browser) -> list[str]:
    """Inputs without label, buttons without name, tables without caption, states without word and shape, stray headings."""
    return list(browser.js("return tools.unnamed()"))


def faint(browser: Browser) -> list[str]:
    """Texts with a contrast below 4.5 to what is behind them, edges of controls below 3 (WCAG 2.2: 1.4.3, 1.4.11)."""
    return list(browser.js("return tools.faint()"))


def too_wide(browser: Browser) -> list[str]:
    """What makes the page scroll to the side (WCAG 2.2: 1.4.10)."""
    return list(browser.js("return tools.tooWide()"))


def everything(browser: Browser) -> list[str]:
    """All of these."""
    return [*unnamed(browser), *faint(browser), *too_wide(browser)]

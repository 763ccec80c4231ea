// What the browser tests ask the page; put into each document before its own scripts run.
"use strict";
{
  const shown = (each) => each.checkVisibility({ visibilityProperty: true });
  const scope = () => [...document.querySelectorAll("dialog[open]")].pop() ?? document;
  const labelOf = (label) => label.firstChild?.textContent.trim();
  const nameOf = (each) => (each.getAttribute("aria-label") ?? each.textContent).trim();
  const textOf = (ids) =>
    (ids ?? "")
      .split(" ")
      .map((id) => document.getElementById(id)?.textContent.trim() ?? "")
      .join("");

  const tools = { violations: [], arrived: [], roleShown: null };
  window.tools = tools;
  document.addEventListener("securitypolicyviolation", (event) => {
    tools.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
  });

  /** The input of a label, in the open dialog if there is one. */
  tools.field = (name) => {
    const label = [...scope().querySelectorAll("label")].find((each) => shown(each) && labelOf(each) === name);
    return label ? document.getElementById(label.htmlFor) : null;
  };

  /** The labels of the fields of a form, in order. */
  tools.labels = (form) => [...document.querySelector(form).querySelectorAll("label")].filter(shown).map(labelOf);

  /** Statuses of requests [method, path, body] with the session of the page. */
  tools.ask = async (requests) => {
    const { csrf } = (await (await fetch("/api/v1/session")).json()).result;
    const headers = { "X-CSRF-Token": csrf, "If-Match": "*", "Content-Type": "application/json" };
    const found = [];
    for (const [method, path, body] of requests) {
      const answer = await fetch(`/api/v1${path}`, { method, headers, body: body ? JSON.stringify(body) : undefined });
      found.push(answer.status);
    }
    return found;
  };

  /** A button or link by its name, there too. */
  tools.button = (name) =>
    [...scope().querySelectorAll("button, a[href], summary")].find(
      (each) => shown(each) && !each.disabled && nameOf(each) === name,
    ) ?? null;

  /** The name of what has the focus. */
  tools.focused = () => {
    const each = document.activeElement;
    return (each.labels?.[0] ? labelOf(each.labels[0]) : nameOf(each)).slice(0, 80);
  };

  /** Label of each column to the text of the row with this header. */
  tools.row = (name) => {
    const rows = [...document.querySelectorAll("tbody tr")];
    const found = rows.find((each) => each.querySelector("th")?.innerText.trim() === name);
    if (!found) return {};
    return Object.fromEntries([...found.children].map((each) => [each.dataset.label, each.innerText.trim()]));
  };

  /** Note when each event enters the list, and when the head of the page shows that a node is active. */
  tools.watch = (node) => {
    const list = document.querySelector("main .event-lines");
    const timeOf = (line) => line.querySelector("time")?.getAttribute("datetime");
    const keyOf = (line) => `${timeOf(line)} ${line.textContent}`;
    const known = new Set([...list.children].map(keyOf));
    new MutationObserver(() => {
      const now = Date.now();
      for (const line of list.children) {
        const [time, key] = [timeOf(line), keyOf(line)];
        if (!time || known.has(key)) continue;
        known.add(key);
        tools.arrived.push({ event: line.dataset.event, at_ms: Date.parse(time), late_ms: now - Date.parse(time) });
      }
    }).observe(list, { childList: true });
    const head = document.querySelector(".health");
    const active = new RegExp(`${node}\\s*active`);
    new MutationObserver(() => {
      if (active.test(head.innerText)) tools.roleShown ??= Date.now();
    }).observe(head, { childList: true, subtree: true });
  };

  /** Every string that the API answers, or that a stream brings, gets a text that would do harm if it were parsed. */
  tools.poison = (attack) => {
    const keep = /^(state|role|status|kind|severity|time|csrf)$/;
    const spoil = (value, key) => {
      if (typeof value === "string") return keep.test(key) ? value : value + attack;
      if (Array.isArray(value)) return value.map((each) => spoil(each, ""));
      if (!value || typeof value !== "object") return value;
      const entries = Object.entries(value);
      return Object.fromEntries(entries.map(([name, each]) => [/^[a-z_]+$/.test(name) ? name : name + attack, spoil(each, name)]));
    };
    const real = JSON.parse;
    JSON.parse = (...given) => spoil(real(...given), "");
  };

  /** Inputs without label, buttons without name, and so on: messages. */
  tools.unnamed = () => {
    const wrong = [];
    const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
    const say = (each, what) => wrong.push(`${each.tagName.toLowerCase()} ${each.name ?? ""} ${each.className} ${what}`);
    for (const each of all("input, select, textarea")) {
      const label = [...(each.labels ?? [])].map((one) => one.textContent.trim()).join("");
      if (!label && !each.getAttribute("aria-label")) say(each, "has no label");
      for (const id of (each.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) say(each, `is described by ${id}, which is not there`);
      if (each.getAttribute("aria-invalid") && !textOf(each.getAttribute("aria-describedby")))
        say(each, "is invalid and no message describes it");
    }
    for (const each of all("button, a[href], summary")) if (!nameOf(each)) say(each, "has no name");
    for (const each of all("table")) {
      if (!each.caption?.textContent.trim()) say(each, "has no caption");
      for (const head of each.querySelectorAll("th")) if (!head.getAttribute("scope")) say(head, "has no scope");
    }
    for (const each of all("img")) if (each.getAttribute("alt") === null) say(each, "has no alt");
    for (const each of all("canvas, svg"))
      if (!each.getAttribute("aria-label") && each.getAttribute("aria-hidden") !== "true") say(each, "has no name");
    for (const each of all(".state")) {
      if (!each.textContent.trim()) say(each, "is a state without a word");
      if (!/^"[^" ]/.test(getComputedStyle(each, "::before").content)) say(each, "is a state without a shape");
    }
    const levels = all("main h1, main h2, main h3").map((each) => Number(each.tagName[1]));
    const first = levels.filter((each) => each === 1).length;
    if (first !== 1) wrong.push(`${first} first headings`);
    levels.forEach((level, at) => {
      if (at && level > levels[at - 1] + 1) wrong.push(`a heading ${level} follows a heading ${levels[at - 1]}`);
    });
    for (const landmark of ["main", "header", "nav"])
      if (document.querySelectorAll(`body > ${landmark}, body > .page > ${landmark}`).length !== 1)
        wrong.push(`no landmark ${landmark}`);
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    for (const id of new Set(ids.filter((each, at) => ids.indexOf(each) !== at))) wrong.push(`two elements have the id ${id}`);
    if (!document.documentElement.lang || !document.title) wrong.push("no language or title");
    return [...new Set(wrong)];
  };

  const parse = (colour) => {
    const [r, g, b, a] = colour.match(/[\d.]+/g).map(Number);
    return [r, g, b, a ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3])).concat(1);
  const linear = (each) => (each / 255 <= 0.04045 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (a, b) => (Math.max(luminance(a), luminance(b)) + 0.05) / (Math.min(luminance(a), luminance(b)) + 0.05);
  const ground = (element) => {
    const above = [];
    for (let each = element; each; each = each.parentElement) {
      above.push(parse(getComputedStyle(each).backgroundColor));
      if (above.at(-1)[3] === 1) break;
    }
    return above.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };

  /** Texts with too little contrast, edges of controls with too little: messages. */
  tools.faint = () => {
    const wrong = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let seen = 0;
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const skipped = element.closest(".unseen, :disabled, noscript, option, .skip");
      if (!walker.currentNode.data.trim() || skipped || !shown(element)) continue;
      seen += 1;
      const behind = ground(element);
      const found = ratio(over(parse(getComputedStyle(element).color), behind), behind);
      if (found < 4.5) wrong.add(`${element.tagName}.${element.className} ${found.toFixed(2)} "${walker.currentNode.data.trim()}"`);
    }
    for (const each of document.querySelectorAll("input, select, textarea, button")) {
      if (!shown(each) || ["checkbox", "file"].includes(each.type) || each.matches(".quiet, .link, .sort")) continue;
      const found = ratio(parse(getComputedStyle(each).borderTopColor), ground(each.parentElement));
      if (found < 3) wrong.add(`edge of ${each.tagName}.${each.className} ${found.toFixed(2)}`);
    }
    if (seen < 10) wrong.add(`only ${seen} texts`);
    return [...wrong];
  };

  /** What makes the page scroll to the side: messages. */
  tools.tooWide = () => {
    const wide = document.documentElement.scrollWidth;
    if (wide <= innerWidth) return [];
    const beyond = [...document.querySelectorAll("body *")].filter((each) => each.getBoundingClientRect().right > innerWidth + 1);
    return [`${wide} px of ${innerWidth}`, ...beyond.slice(0, 5).map((each) => `${each.tagName}.${each.className}`)];
  };
}

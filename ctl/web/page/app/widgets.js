// Pieces of the page that every view uses: states, messages, dialogs.

import { h, put, setText, uid } from "./dom.js";

/** A state: a word and a shape, never a colour alone. kind: ok, info, warn, bad, off. */
export function badge(word, kind) {
  return h("span", { class: `state state-${kind}` }, word);
}

const ROLES = { active: "ok", backup: "info", single: "ok", maintenance: "warn", fault: "bad", silent: "bad", left: "off" };
export const roleKind = (role) => ROLES[role] ?? "off";
export const roleBadge = (role) => badge(role || "unknown", roleKind(role));

const RESULTS = { ok: "ok", info: "info", warn: "warn", fail: "bad" };
export const resultBadge = (status) => badge(status, RESULTS[status] ?? "off");

const SEVERITIES = { info: "info", warning: "warn", error: "bad" };
export const severityBadge = (severity) => badge(severity, SEVERITIES[severity] ?? "off");

const BACKENDS = { up: "ok", down: "bad", drain: "warn" };
export const backendBadge = (state) => badge(state, BACKENDS[state] ?? "off");

/** stopped, up, degraded or down, and how many backends are up. */
export function farmState(farm) {
  const up = farm.backends.filter((each) => each.state === "up").length;
  if (!farm.enabled) return { word: "stopped", kind: "off", up };
  if (farm.backends.length === 0) return { word: "empty", kind: "off", up };
  if (up === 0) return { word: "down", kind: "bad", up };
  const down = farm.backends.some((each) => each.state === "down");
  return down ? { word: "degraded", kind: "warn", up } : { word: "up", kind: "ok", up };
}

/** A button. props: on, kind (primary, danger, quiet), label for screen readers if the text is short. */
export function button(text, listener, { kind = "", label, ...more } = {}) {
  return h("button", { type: "button", class: kind, "aria-label": label, on: { click: listener }, ...more }, text);
}

/** Run `work` while the button cannot be pressed again. */
export async function busy(control, work) {
  control.disabled = true;
  control.setAttribute("aria-busy", "true");
  try {
    return await work();
  } finally {
    control.disabled = false;
    control.removeAttribute("aria-busy");
  }
}

/** A message in the flow of the page. kind: info, warn, bad. */
export function notice(kind, message, ...more) {
  return h("div", { class: `notice notice-${kind}`, role: kind === "bad" ? "alert" : "note" }, h("p", null, message), ...more);
}

/** The message of what failed, with the field or argument it names. */
export function errorNotice(error) {
  const where = error.key && !error.message.includes(error.key) ? h("p", { class: "quiet" }, `at ${error.key}`) : null;
  const when = error.retryAfter && !/\d s\b/.test(error.message) ? h("p", { class: "quiet" }, `try again in ${error.retryAfter} s`) : null;
  return notice("bad", error.message, where, when);
}

/** A short message at the edge of the page, which leaves by itself or when it is dismissed. */
export function toast(message, kind = "info") {
  const box = h("div", { class: `toast toast-${kind}` }, h("p", null, message), button("×", () => box.remove(), { kind: "quiet", label: "Dismiss" }));
  const host = document.getElementById("toasts");
  host.append(box);
  while (host.children.length > 2) host.firstChild.remove();
  setTimeout(() => box.remove(), kind === "info" ? 5000 : 15000);
}

/** Read to people who hear the page; at most the last few remain. */
export function announce(message) {
  const log = document.getElementById("announcer");
  log.append(h("p", null, message));
  while (log.children.length > 5) log.firstChild.remove();
}

/** One banner per name above the view; null removes it. */
export function banner(name, content) {
  const host = document.getElementById("banners");
  const old = host.querySelector(`[data-banner="${name}"]`);
  if (!content) old?.remove();
  else {
    const made = h("div", { class: "banner", role: "alert", "data-banner": name }, content);
    if (old?.textContent === made.textContent) return;
    if (old) old.replaceWith(made);
    else host.append(made);
  }
}

/**
 * A modal dialog. content: elements, or a function of the dialog {close, put}. Escape closes it unless `firm`; the focus returns to
 * where it was. Resolves to what close() was given.
 */
export function dialog({ title, content, wide = false, firm = false }) {
  const opener = document.activeElement;
  const heading = h("h2", { id: uid("dialog"), tabindex: "-1" }, title);
  const body = h("div", { class: "dialog-body" });
  const box = h("dialog", { "aria-labelledby": heading.id, class: wide ? "wide" : "" }, h("header", null, heading), body);
  let answer;
  const handle = {
    box,
    close(value) {
      answer = value;
      box.close();
    },
    put: (...parts) => put(body, ...parts),
    title: (text) => setText(heading, text),
  };
  if (!firm) heading.after(button("×", () => box.close(), { kind: "quiet close", label: "Close" }));
  put(body, typeof content === "function" ? content(handle) : content);
  document.body.append(box);
  box.addEventListener("cancel", (event) => {
    if (firm || box.querySelector("[aria-busy]")) event.preventDefault();
  });
  handle.closed = new Promise((resolve) => {
    box.addEventListener("close", () => {
      box.remove();
      const back = opener?.isConnected && opener !== document.body ? opener : document.querySelector("main h1, main");
      back?.focus();
      resolve(answer);
    });
  });
  box.showModal();
  const first = box.querySelector("[autofocus], form input:not([type=hidden]), form select, form textarea");
  (first ?? heading).focus();
  return handle;
}

/**
 * Ask before something happens. lines: what will happen. work: done when it is confirmed; what it throws is shown and the dialog
 * stays. Resolves to true once it is done.
 */
export function confirm({ title, lines, action, danger = false, work, content = null }) {
  const made = dialog({
    title,
    content: (handle) => {
      const problem = h("div");
      const yes = button(action, () =>
        busy(yes, async () => {
          put(problem);
          try {
            await work();
            handle.close(true);
          } catch (error) {
            put(problem, errorNotice(error));
          }
        }), { kind: danger ? "danger" : "primary" });
      return [
        h("ul", { class: "what" }, lines.map((line) => h("li", null, line))),
        content,
        problem,
        h("div", { class: "actions" }, yes, button("Cancel", () => handle.close(false))),
      ];
    },
  });
  return made.closed;
}

/** Names and values. rows: [name, value (text or elements)]. */
export function facts(rows) {
  return h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, ...value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

/** The heading of a view, and what can be done there. */
export function viewHead(title, ...actions) {
  return h("div", { class: "view-head" }, h("h1", { tabindex: "-1" }, title), h("div", { class: "actions" }, actions));
}

export function section(title, ...content) {
  const id = uid("section");
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...content);
}

/** What is not well, with its remedy. findings: name, status, message, remedy. */
export function findingList(findings, none) {
  if (findings.length === 0) return h("p", { class: "quiet" }, none);
  return h("ul", { class: "findings" }, findings.map((each) =>
    h("li", { class: `finding finding-${each.status}` },
      h("div", { class: "finding-head" }, resultBadge(each.status), h("strong", null, each.name)),
      h("p", null, each.message),
      each.remedy ? h("p", { class: "remedy" }, h("span", { class: "remedy-word" }, "Remedy"), each.remedy) : null)));
}

/** A number with its name; update it with set(). */
export function tile(name, unit = "") {
  const value = h("span", { class: "tile-value" }, "–");
  const more = h("span", { class: "tile-more" });
  const line = h("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, h("polyline", { points: "" }));
  const points = [];
  return {
    element: h("div", { class: "tile" }, h("span", { class: "tile-name" }, name), h("span", { class: "tile-line" }, value, unit ? h("span", { class: "tile-unit" }, unit) : null), more, line),
    set(text, note = "", sample = null) {
      setText(value, text);
      setText(more, note);
      if (typeof sample !== "number") return;
      points.push(sample);
      if (points.length > 60) points.shift();
      const top = Math.max(...points, 1e-9);
      line.firstChild.setAttribute("points", points.map((each, at) => `${(at * 100) / 59},${(22.5 - (each / top) * 21).toFixed(1)}`).join(" "));
    },
  };
}

// Forms: fields with labels, errors at the field that they name, and what to do when another change came first.

import { h, put, setText, uid } from "./dom.js";
import { busy, button, errorNotice, notice } from "./widgets.js";

/**
 * A field. spec: name, label, kind (text, password, integer, choice, check, area, lines), help, unit, value, required, choices
 * ([value, words]), suggestions, autocomplete, placeholder, default (what an empty field stands for), wide.
 */
export function field(spec) {
  const id = uid(spec.name.replace(/\W/g, "-"));
  const kind = spec.kind ?? "text";
  const shared = { id, name: spec.name, "aria-describedby": `${id}-help ${id}-error`, "aria-required": spec.required ? "true" : undefined, autocomplete: spec.autocomplete ?? "off", placeholder: spec.placeholder, spellcheck: "false", autocapitalize: "none" };
  let input;
  if (kind === "choice") input = h("select", shared, spec.choices.map(([value, words]) => h("option", { value }, words ?? value)));
  else if (kind === "area" || kind === "lines") input = h("textarea", { ...shared, rows: spec.rows ?? 4 });
  else {
    const type = kind === "password" ? "password" : kind === "check" ? "checkbox" : "text";
    input = h("input", { ...shared, type, inputmode: kind === "integer" ? "numeric" : undefined, list: spec.suggestions ? `${id}-list` : undefined });
  }
  const set = (value) => {
    if (kind === "check") input.checked = Boolean(value);
    else if (kind === "lines") input.value = (Array.isArray(value) ? value : []).join("\n");
    else if (kind === "integer" && value === 0 && spec.default === 0) input.value = "";
    else input.value = value ?? "";
  };
  set(spec.value ?? (kind === "choice" ? spec.choices[0][0] : ""));
  const error = h("p", { id: `${id}-error`, class: "field-error" });
  const help = h("p", { id: `${id}-help`, class: "help" }, spec.help ?? "");
  const label = h("label", { for: id }, spec.label, spec.required ? h("span", { class: "required" }, " (required)") : null);
  const list = spec.suggestions ? h("datalist", { id: `${id}-list` }, spec.suggestions.map((value) => h("option", { value }))) : null;
  const row = kind === "check" ? h("div", { class: "check" }, input, label) : [label, spec.unit ? h("div", { class: "with-unit" }, input, h("span", { class: "unit", "aria-hidden": "true" }, spec.unit)) : input];
  const element = h("div", { class: `field field-${kind}${spec.wide ? " wide" : ""}`, "data-field": spec.name }, row, list, error, help);
  return {
    spec, element, input, set,
    get() {
      if (kind === "check") return input.checked;
      if (kind === "lines") return input.value.split("\n").map((line) => line.trim()).filter(Boolean);
      const text = kind === "password" || kind === "area" ? input.value : input.value.trim();
      if (kind === "integer") return text === "" ? (spec.default ?? "") : /^\d{1,15}$/.test(text) ? Number(text) : text;
      return text;
    },
    error(message) {
      setText(error, message);
      if (message) {
        input.setAttribute("aria-invalid", "true");
        element.closest("details")?.setAttribute("open", "");
      } else input.removeAttribute("aria-invalid");
    },
  };
}

/** Fields that are folded away until somebody opens them, or an error names one. */
export function folded(title, members) {
  return { members, element: h("details", { class: "wide" }, h("summary", null, title), h("div", { class: "fields" }, members.map((each) => each.element))) };
}

/** The field that an error names: the last part of "farm.web.vip", "health.kind", "--peer", "prefixes[3]". */
function named(fields, key) {
  const plain = String(key).replace(/^-+/, "").replace(/\[\d+\]$/, "").replaceAll("-", "_");
  const byLength = [...fields].sort((a, b) => b.spec.name.length - a.spec.name.length);
  return byLength.find(({ spec }) => [spec.name, ...(spec.keys ?? [])].some((name) => plain === name || plain.endsWith(`.${name}`))) ?? null;
}

/**
 * A form. parts: fields or elements; submit(values, changed): done when it is sent, changed: only values that differ from the first
 * ones. reload(): fetches what the form changes again and returns its values; the person's input stays.
 */
export function form({ parts, submit, action, cancel, danger = false, reload = null, check = null, className = "" }) {
  const fields = parts.flat(3).flatMap((part) => part?.members ?? part).filter((part) => part?.input);
  let first = Object.fromEntries(fields.map((each) => [each.spec.name, each.get()]));
  const problem = h("div", { class: "form-problem" });
  const send = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
  const shown = (part) => (Array.isArray(part) ? part.map(shown) : part?.input || part?.members ? part.element : part);
  const element = h("form", { novalidate: true, class: `form ${className}`, on: { submit: onSubmit } },
    h("div", { class: "fields" }, parts.map(shown)), problem,
    h("div", { class: "actions" }, send, cancel ? button("Cancel", cancel) : null));

  const values = () => Object.fromEntries(fields.map((each) => [each.spec.name, each.get()]));
  const changed = () => Object.fromEntries(Object.entries(values()).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(first[name])));

  function clear() {
    put(problem);
    for (const each of fields) each.error("");
  }

  function focusFirstError() {
    (element.querySelector("[aria-invalid]") ?? problem.querySelector("[tabindex]"))?.focus();
  }

  async function onSubmit(event) {
    event.preventDefault();
    if (send.disabled) return;
    clear();
    for (const each of fields) {
      if (each.spec.required && !each.element.closest("[hidden]") && each.get() === "") each.error(`${each.spec.label} is missing`);
    }
    for (const [name, message] of Object.entries(check?.(values()) ?? {})) fields.find((each) => each.spec.name === name)?.error(message);
    if (element.querySelector("[aria-invalid]")) {
      focusFirstError();
      return;
    }
    await busy(send, async () => {
      try {
        await submit(values(), changed(), handle);
      } catch (error) {
        fail(error);
      }
    });
    if (element.querySelector("[aria-invalid]")) focusFirstError();
  }

  function fail(error) {
    const at = error.key ? named(fields.filter((each) => !each.element.closest("[hidden]")), error.key) : null;
    if (error.overtaken && reload) overtaken(error);
    else if (at) at.error(error.message.startsWith(`${error.key}: `) && !error.key.endsWith("]") ? error.message.slice(error.key.length + 2) : error.message);
    else put(problem, errorNotice(error));
  }

  function overtaken(error) {
    const again = button("Load the present state", () =>
      busy(again, async () => {
        try {
          const now = await reload();
          const differs = fields.filter(({ spec }) => spec.name in now && JSON.stringify(now[spec.name]) !== JSON.stringify(first[spec.name]));
          first = { ...first, ...now };
          put(problem, notice("info", "The present state is loaded. Your input is kept: check it, then save again."),
            differs.length ? h("ul", { class: "what" }, differs.map(({ spec }) => h("li", null, `${spec.label} is now ${String(now[spec.name]) || "empty"}`))) : null);
          send.focus();
        } catch (failed) {
          put(problem, errorNotice(failed));
        }
      }));
    put(problem, notice("warn", "Another change came first, so nothing was saved. Your input is kept."), h("p", { class: "quiet" }, error.message), h("div", { class: "actions" }, again));
    again.focus();
  }

  const handle = { element, fields, values, changed, fail, clear, send, problem, field: (name) => fields.find((each) => each.spec.name === name) };
  return handle;
}

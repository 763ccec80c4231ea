// Prefix lists: clients that farms allow or deny.

import { change, get, getVersioned, isOperator, part } from "../api.js";
import { h, put } from "../dom.js";
import { field, form } from "../forms.js";
import { count } from "../format.js";
import { table } from "../table.js";
import { button, confirm, dialog, errorNotice, section, toast } from "../widgets.js";

export function prefixesSection(ctx) {
  let version = "";
  const problem = h("div");
  const list = table({
    caption: "Prefix lists",
    key: (row) => row.name,
    empty: "No prefix lists. A farm can allow or deny the clients of one.",
    columns: [
      { title: "List", head: true, class: "name", text: (row) => row.name },
      { title: "IPv4", num: true, text: (row) => count(row.prefixes_v4) },
      { title: "IPv6", num: true, text: (row) => count(row.prefixes_v6) },
      { title: "Used by", text: (row) => (row.farms ?? []).join(", ") || "no farm" },
      { title: "", narrow: "", class: "buttons", sign: (row) => row.name, node: (row) => [
        button(isOperator() ? "Edit" : "Show", () => open(row.name), { kind: "small", label: `${isOperator() ? "Edit" : "Show"} prefix list ${row.name}` }),
        isOperator() ? button("Delete", () => remove(row), { kind: "small danger", label: `Delete prefix list ${row.name}` }) : null,
      ] },
    ],
  });

  async function load() {
    const answer = await getVersioned("/prefixes", { signal: ctx.signal });
    ({ version } = answer);
    list.update(answer.result);
    put(problem);
  }

  async function open(name) {
    let shown = { prefixes: [] };
    let seen = version;
    if (name) {
      try {
        const answer = await getVersioned(`/prefixes/${part(name)}`);
        shown = answer.result;
        seen = answer.version;
      } catch (error) {
        put(problem, errorNotice(error));
        return;
      }
    }
    if (!isOperator()) {
      dialog({ title: `Prefix list ${name}`, content: h("pre", { class: "code", tabindex: "0", "aria-label": "Prefixes" }, shown.prefixes.join("\n")) });
      return;
    }
    dialog({
      title: name ? `Edit prefix list ${name}` : "Add a prefix list",
      content: (handle) => form({
        action: "Save",
        cancel: () => handle.close(),
        parts: [
          name ? null : field({ name: "name", label: "Name", required: true, wide: true }),
          field({ name: "prefixes", label: "Prefixes", kind: "lines", rows: 12, wide: true, value: shown.prefixes, help: "One per line: 10.0.0.0/8, 2001:db8::/32, or an address. A farm that allows an empty list lets nobody in." }),
        ],
        async reload() {
          await load();
          seen = version;
          return name ? { prefixes: (await get(`/prefixes/${part(name)}`)).prefixes } : {};
        },
        async submit(values) {
          await change("PUT", `/prefixes/${part(name ?? values.name)}`, { prefixes: values.prefixes }, seen);
          handle.close();
          toast(`Prefix list ${name ?? values.name} is saved`);
          await load();
        },
      }).element,
    });
  }

  async function remove(row) {
    const seen = version;
    const done = await confirm({ title: `Delete prefix list ${row.name}?`, lines: [row.farms?.length ? `Refused while farms use it: ${row.farms.join(", ")}.` : "No farm uses it."], action: "Delete", danger: true, work: () => change("DELETE", `/prefixes/${part(row.name)}`, undefined, seen) });
    if (done) await load();
  }

  load().catch((error) => error.name !== "AbortError" && put(problem, errorNotice(error)));
  ctx.on("event", (event) => event.event.startsWith("config.") && load().catch(() => {}));
  return section("Prefix lists", problem, list.element, isOperator() ? h("div", { class: "actions" }, button("Add a prefix list", () => open(null))) : null);
}

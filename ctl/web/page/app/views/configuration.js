// The configuration: its history with differences and rollback, the farms file, import from other load balancers.

import { change, get, getVersioned, isOperator, part, post, request } from "../api.js";
import { h, put } from "../dom.js";
import { field, form } from "../forms.js";
import { bytes, moment } from "../format.js";
import { table } from "../table.js";
import { badge, busy, button, dialog, errorNotice, facts, notice, section, toast, viewHead } from "../widgets.js";

const KINDS = [["keepalived", "keepalived"], ["haproxy", "HAProxy"], ["ipvsadm", "ipvsadm"], ["nftlb", "nftlb"], ["zevenet", "Zevenet"]];

const changeList = (changes, none) => (changes.length ? h("ul", { class: "changes" }, changes.map((each) => h("li", null, typeof each === "string" ? each : each.message ?? JSON.stringify(each)))) : h("p", { class: "quiet" }, none));

export function configurationView(ctx) {
  let version = "";
  const problem = h("div");
  const history = table({
    caption: "History",
    key: (row) => row.name,
    empty: "No generation is recorded yet.",
    className: "event-cards",
    columns: [
      { title: "Generation", head: true, node: (row) => [button(row.name, () => show(row), { kind: "link", label: `Generation ${row.name}` }), row.in_force ? [" ", badge("in force", "ok")] : null, row.conflict ? [" ", badge("conflict", "warn")] : null, row.problem ? [" ", badge("damaged", "bad")] : null], sign: (row) => `${row.name} ${row.in_force} ${row.conflict} ${row.problem}` },
      { title: "Time", text: (row) => (row.time ? moment(row.time) : "–") },
      { title: "User", text: (row) => row.user || "–" },
      { title: "Node", class: "aside", text: (row) => row.node || "–" },
      { title: "Command", class: "type aside", text: (row) => row.command || "–" },
      { title: "Changes", class: "message", text: (row) => row.problem || row.summary || "–" },
    ],
  });

  async function load() {
    try {
      const answer = await getVersioned("/history", { signal: ctx.signal });
      history.update(answer.result);
      ({ version } = await getVersioned("/config", { signal: ctx.signal }));
      put(problem);
    } catch (error) {
      if (error.name !== "AbortError") put(problem, errorNotice(error));
    }
  }

  function show(row) {
    const made = dialog({ title: `Generation ${row.name}`, wide: true, content: h("p", { class: "quiet" }, "Loading …") });
    (async () => {
      try {
        const found = await get(`/history/${part(row.name)}`);
        const planned = h("div", { class: "answer" });
        const roll = button("Roll back to this generation …", () => busy(roll, () => rollback(row, made, planned)));
        made.put(
          facts([["Time", moment(found.time)], ["User", found.user || "–"], ["Entered on", found.node || "–"], ["Command", h("code", null, found.command || "–")], ["Size", bytes(found.bytes)]]),
          h("h3", null, found.before ? `Changes since generation ${found.before}` : "Changes"), changeList(found.changes ?? [], "None."),
          planned, isOperator() && !row.in_force && !found.problem ? h("div", { class: "actions" }, roll) : null);
      } catch (error) {
        made.put(errorNotice(error));
      }
    })();
  }

  /** First what it would do, then a second button does it. */
  async function rollback(row, made, planned) {
    const path = `/history/${part(row.name)}/rollback`;
    const before = version;
    try {
      const plan = await post(path, { dry_run: true }, before);
      const changes = plan.changes ?? [];
      const failed = h("div");
      const yes = button(`Roll back to ${row.name}`, () => busy(yes, async () => {
        try {
          await post(path, {}, before);
          made.close();
          toast(`Generation ${row.name} is in force again, as a new generation`);
          load();
        } catch (error) {
          put(failed, error.overtaken ? notice("warn", "Another change came first, so nothing was rolled back. Close this and look at the history.") : errorNotice(error));
        }
      }), { kind: "danger" });
      put(planned, h("h3", null, "The rollback would change"), changeList(changes, "Nothing: both are the same."), failed, changes.length ? h("div", { class: "actions" }, yes) : null);
      if (changes.length) yes.focus();
    } catch (error) {
      put(planned, errorNotice(error));
    }
  }

  const exported = button("Export the farms file", () => busy(exported, async () => {
    try {
      const text = await farmsFile();
      dialog({ title: "Farms file", wide: true, content: [h("p", null, h("a", { href: "/api/v1/config?format=toml", download: "farms.toml" }, "Download farms.toml")), h("pre", { class: "code", tabindex: "0", "aria-label": "Farms file" }, text)] });
    } catch (error) {
      put(problem, errorNotice(error));
    }
  }));

  load();
  ctx.on("event", (event) => event.event.startsWith("config.") && load());
  return {
    title: "Configuration",
    element: h("div", { class: "view" }, viewHead("Configuration", exported), problem,
      section("History", h("p", { class: "quiet" }, "The last generations, newest first. A rollback makes a new generation; accounts and tokens stay."), history.element),
      isOperator() ? applySection(ctx, () => version, load) : null),
  };
}

async function farmsFile() {
  const answer = await get("/config?format=toml", { accept: "text/toml" });
  return typeof answer === "string" ? answer : answer.toml ?? JSON.stringify(answer, null, 2);
}

function applySection(ctx, version, changed) {
  const plan = h("div", { class: "answer", "aria-live": "polite" });
  const text = field({ name: "toml", label: "Farms file (TOML)", kind: "area", rows: 12, required: true, wide: true, help: "What the file does not name is removed. The dry run shows every change first." });
  const apply = form({
    action: "Dry run",
    parts: [text],
    async submit(values) {
      put(plan);
      const before = version();
      const found = await change("PUT", "/config", { toml: values.toml, dry_run: true }, before);
      const changes = Array.isArray(found) ? found : found?.changes ?? [];
      const failed = h("div");
      const yes = button("Apply", () => busy(yes, async () => {
        try {
          await change("PUT", "/config", { toml: values.toml }, before);
          put(plan, notice("info", "The farms file is applied."));
          changed();
        } catch (error) {
          put(failed, error.overtaken ? notice("warn", "Another change came first, so nothing was applied. Your text is kept: run the dry run again.") : errorNotice(error));
          changed();
        }
      }), { kind: "danger" });
      put(plan, h("h3", null, "It would change"), changeList(changes, "Nothing: this is the present configuration."), failed, changes.length ? h("div", { class: "actions" }, yes) : null);
      if (changes.length) yes.focus();
    },
  });
  text.input.addEventListener("input", () => put(plan));
  const notes = h("div", { class: "answer", "aria-live": "polite" });
  const take = form({
    action: "Convert",
    parts: [
      field({ name: "kind", label: "Kind", kind: "choice", choices: KINDS }),
      field({ name: "text", label: "Configuration to import", kind: "area", rows: 8, required: true, wide: true }),
    ],
    async submit(values) {
      put(notes);
      const found = (await request("POST", `/import/${values.kind}`, { body: values.text, type: "text/plain; charset=utf-8" })).result;
      const lines = (found.notes ?? []).map((note) => (typeof note === "string" ? note : [note.place, note.line, note.statement, note.message].filter((each) => each !== undefined && each !== "").join(": ")));
      put(notes, h("h3", null, lines.length ? "Not carried over" : "Everything is carried over"), lines.length ? changeList(lines, "") : null, notice("info", "The farms file is in the field above: run the dry run."));
      text.set(found.farms_file ?? "");
      text.input.scrollIntoView({ block: "center" });
      text.input.focus();
    },
  });
  const file = h("input", { type: "file", id: "import-file", accept: ".cfg,.conf,.toml,.json,.txt", on: { change: async () => {
    if (file.files[0]) take.field("text").set(await file.files[0].text());
  } } });
  return [section("Apply a farms file", apply.element, plan), section("Import from another load balancer", h("p", { class: "quiet" }, "Converted to a farms file; nothing is applied before you do."), h("div", { class: "field" }, h("label", { for: "import-file" }, "File"), file), take.element, notes)];
}

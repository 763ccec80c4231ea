// What a change does to clients, computed by xlbd before anything is saved.

import { post } from "./api.js";
import { h } from "./dom.js";
import { count, percent, plural } from "./format.js";
import { table } from "./table.js";
import { badge, busy, button, dialog, errorNotice, notice } from "./widgets.js";

const FATES = { stay: ["continue", "ok"], move: ["move", "warn"], end: ["end", "bad"] };

/** Ask for the effect of a change: {change, arguments} or {document}. */
export const effectOf = (wanted) => post("/config/impact", wanted);

/** The effect in words and numbers. */
export function effectView(effect) {
  const { stay = 0, move = 0, end = 0 } = effect.connections ?? {};
  const total = stay + move + end;
  const parts = [h("h3", { class: "effect-title", tabindex: "-1" }, "Effect on clients")];
  parts.push(h("ul", { class: "effect" },
    h("li", null, badge(`${plural(stay, "connection")} ${stay === 1 ? "continues" : "continue"}`, "ok")),
    move ? h("li", null, badge(`${plural(move, "connection")} ${move === 1 ? "moves" : "move"} to another backend`, "warn")) : null,
    end ? h("li", null, badge(`${plural(end, "connection")} ${end === 1 ? "ends" : "end"}`, "bad")) : null));
  if (total === 0) parts.push(h("p", { class: "quiet" }, "No connection is open that this changes."));
  for (const farm of effect.farms ?? []) {
    if (typeof farm.clients_moved === "number" && farm.clients_moved > 0)
      parts.push(h("p", null, `Farm ${farm.farm}: ${percent(farm.clients_moved)} of the clients get another backend for new connections.`));
    if (!farm.backends?.length) continue;
    const made = table({
      caption: `Backends of farm ${farm.farm} before and after`,
      key: (row) => row.backend,
      empty: "",
      columns: [
        { title: "Backend", head: true, text: (row) => row.backend },
        { title: "Connections", num: true, text: (row) => count(row.connections) },
        { title: "They", node: (row) => (row.connections ? badge(...(FATES[row.fate] ?? [row.fate, "off"])) : "–"), sign: (row) => row.fate },
        { title: "Share now", num: true, text: (row) => percent(row.share_before) },
        { title: "Share after", num: true, text: (row) => percent(row.share_after) },
      ],
    });
    made.update(farm.backends);
    parts.push(made.element);
  }
  return h("div", { class: "effect-box" }, parts);
}

/**
 * A change without a form: a dialog shows its effect, and saves after a confirmation.
 * change, arguments_: as for xlbd; save(seen): sends it. lines: what happens besides. version(): of what is shown; what the person
 * saw is that of now, whatever the view loads meanwhile.
 */
export async function confirmEffect({ title, lines = [], change, arguments_, action, danger = false, version, save }) {
  const seen = version();
  const made = dialog({ title, wide: true, content: [h("p", { class: "quiet" }, "Computing the effect …")] });
  let effect;
  try {
    effect = effectView(await effectOf({ change, arguments: arguments_ }));
  } catch (error) {
    effect = errorNotice(error);
  }
  const problem = h("div");
  const yes = button(action, () =>
    busy(yes, async () => {
      try {
        await save(seen);
        made.close(true);
      } catch (error) {
        problem.replaceChildren(error.overtaken ? notice("warn", "Another change came first, so nothing was saved. Close this, look at the present state, and try again.") : errorNotice(error));
      }
    }), { kind: danger ? "danger" : "primary" });
  made.put(lines.length ? h("ul", { class: "what" }, lines.map((line) => h("li", null, line))) : null, effect, problem, h("div", { class: "actions" }, yes, button("Cancel", () => made.close(false))));
  yes.focus();
  return made.closed;
}

/**
 * A form in a dialog with two steps: input, then the effect with Save and Back. makeForm(how) returns a form with submit, cancel
 * and reload of `how`; request(values, changed): {change, arguments_}, null if nothing changes; save(values, changed, seen).
 * version(): of what is shown, taken when the dialog opens, and again after reload(), which returns the present values.
 */
export function formWithEffect({ title, makeForm, request, save, action, version, reload }) {
  let seen = version();
  const made = dialog({
    title,
    wide: true,
    content: (handle) => {
      const submit = async (values, changed, own) => {
        const wanted = request(values, changed);
        if (wanted === null) {
          handle.close(false);
          return;
        }
        const effect = await effectOf({ change: wanted.change, arguments: wanted.arguments_ });
        const yes = button(action, () =>
          busy(yes, async () => {
            try {
              await save(values, changed, seen);
              handle.close(true);
            } catch (error) {
              back();
              own.fail(error);
              (own.element.querySelector("[aria-invalid]") ?? own.problem.querySelector("button"))?.focus();
            }
          }), { kind: "primary" });
        const back = () => {
          second.remove();
          own.element.hidden = false;
          own.send.focus();
        };
        const second = h("div", null, effectView(effect), h("div", { class: "actions" }, yes, button("Back", back)));
        own.element.hidden = true;
        own.element.after(second);
        yes.focus();
      };
      const again = async () => {
        const values = await reload();
        seen = version();
        return values;
      };
      return makeForm({ submit, cancel: () => handle.close(false), reload: again }).element;
    },
  });
  return made.closed;
}

// Events, live: what happened on this node, newest first.

import { h, setText } from "../dom.js";
import { moment, plural } from "../format.js";
import { state } from "../live.js";
import { table } from "../table.js";
import { severityBadge, viewHead } from "../widgets.js";

export function eventsView(ctx) {
  const words = h("input", { type: "search", id: "event-words", placeholder: "message, type or farm", autocomplete: "off", on: { input: () => draw(state.events) } });
  const least = h("select", { id: "event-severity", on: { change: () => draw(state.events) } },
    [["info", "all"], ["warning", "warnings and errors"], ["error", "errors"]].map(([value, text]) => h("option", { value }, text)));
  const found = h("span", { class: "quiet" });
  const list = table({
    caption: "Events",
    key: (event) => `${event.node} ${event.number} ${event.time}`,
    empty: "No events.",
    className: "event-cards",
    rowClass: (event) => `event-${event.severity}`,
    columns: [
      { title: "Time", head: true, node: (event) => h("time", { datetime: event.time, title: event.time }, moment(event.time)), sign: (event) => moment(event.time) },
      { title: "Severity", node: (event) => severityBadge(event.severity), sign: (event) => event.severity },
      { title: "Node", text: (event) => event.node },
      { title: "Type", class: "type aside", text: (event) => event.event },
      { title: "Message", class: "message", node: (event) => [event.message, details(event)], sign: (event) => event.message },
    ],
  });

  function details(event) {
    const given = Object.entries(event.fields ?? {});
    if (given.length === 0) return null;
    return h("details", null, h("summary", null, h("span", { class: "unseen" }, "Fields of this event")), h("dl", { class: "facts" }, given.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, String(value))))));
  }

  function draw(all) {
    const parts = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rank = ["info", "warning", "error"];
    const shown = all.filter((event) => rank.indexOf(event.severity) >= rank.indexOf(least.value) && parts.every((each) => `${event.message} ${event.event} ${event.node} ${Object.values(event.fields ?? {}).join(" ")}`.toLowerCase().includes(each)));
    list.update(shown);
    setText(found, plural(shown.length, "event"));
  }

  ctx.on("events", draw);
  draw(state.events);
  return {
    title: "Events",
    element: h("div", { class: "view" }, viewHead("Events"),
      h("div", { class: "toolbar" }, h("label", { for: "event-words" }, "Filter"), words, h("label", { for: "event-severity" }, "Severity"), least, found),
      list.element),
  };
}


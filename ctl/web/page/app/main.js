// The frame: who is logged in, which view the address names, what is wrong with the way to the server.

import { bus, change, emit, get, isOperator, onExpired, reach, request, session, setSession } from "./api.js";
import { recolour } from "./charts.js";
import { h, put, setText } from "./dom.js";
import { field, form } from "./forms.js";
import * as live from "./live.js";
import { loginDialog, loginView } from "./login.js";
import { accountsView } from "./views/accounts.js";
import { clusterView } from "./views/cluster.js";
import { configurationView } from "./views/configuration.js";
import { connectionsView } from "./views/connections.js";
import { doctorView } from "./views/doctor.js";
import { dropsView } from "./views/drops.js";
import { eventsView } from "./views/events.js";
import { farmView } from "./views/farm.js";
import { farmsView } from "./views/farms.js";
import { graphsView } from "./views/graphs.js";
import { overviewView } from "./views/overview.js";
import { announce, badge, banner, button, dialog, errorNotice, roleBadge, toast } from "./widgets.js";

const VIEWS = {
  overview: { title: "Overview", view: overviewView },
  farms: { title: "Farms", view: farmsView, group: "Traffic" },
  connections: { title: "Connections", view: connectionsView, group: "Traffic" },
  drops: { title: "Drops", view: dropsView, group: "Traffic" },
  graphs: { title: "Graphs", view: graphsView, group: "Traffic" },
  cluster: { title: "Cluster", view: clusterView, group: "System" },
  events: { title: "Events", view: eventsView, group: "System" },
  configuration: { title: "Configuration", view: configurationView, group: "System" },
  accounts: { title: "Accounts", view: accountsView, group: "System", operator: true },
  doctor: { title: "Doctor", view: doctorView, group: "System" },
};

const main = document.getElementById("main");
const top = document.getElementById("top");
const nav = document.getElementById("nav");

/**
 * What a view has while it is shown: on(type, listener) of the bus, every(ms, work), signal of its requests, go(hash), leave(work).
 */
function context() {
  const ended = new AbortController();
  const leaving = [];
  return {
    signal: ended.signal,
    get ended() {
      return ended.signal.aborted;
    },
    on(type, listener) {
      bus.addEventListener(type, (event) => listener(event.detail), { signal: ended.signal });
    },
    /** `work` now, and then at most every `ms` after it has ended, while the page is visible and the server answers. */
    every(ms, work) {
      let timer = 0;
      let running = false;
      const run = async () => {
        clearTimeout(timer);
        if (running || ended.signal.aborted) return;
        running = true;
        const began = performance.now();
        try {
          if (!document.hidden) await work();
        } catch {
          // the banner names the reason, and the next turn tries again
        }
        running = false;
        if (!ended.signal.aborted) timer = setTimeout(run, Math.max(ms, 10 * (performance.now() - began)));
      };
      leaving.push(() => clearTimeout(timer));
      this.on("reach", (reached) => reached.restored && run());
      run();
      return run;
    },
    leave: (work) => leaving.push(work),
    end() {
      ended.abort();
      for (const work of leaving.splice(0)) work();
    },
  };
}

let current = null;

function show(made, ctx, focus) {
  current?.end();
  current = ctx;
  setTitle(made.title);
  put(main, made.element);
  scrollTo(0, 0);
  if (made.focus) made.focus();
  else if (focus) main.querySelector("h1")?.focus();
}

function setTitle(title) {
  const own = live.ownNode()?.name;
  document.title = own ? `${title} – ${own} – xlb` : `${title} – xlb`;
}

function route(event) {
  if (!session.name) return;
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const chosen = VIEWS[name] && (!VIEWS[name].operator || isOperator()) ? name : "overview";
  let argument = "";
  try {
    argument = rest.map(decodeURIComponent).join("/");
  } catch {
    argument = "";
  }
  const ctx = context();
  const view = chosen === "farms" && argument ? farmView : VIEWS[chosen].view;
  show(view(ctx, argument), ctx, Boolean(event));
  closeMenu();
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.view === chosen) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// The frame.

const menu = h("button", { type: "button", class: "menu quiet", "aria-expanded": "false", "aria-controls": "nav", on: { click: () => toggleMenu() } }, "Menu");
const health = h("p", { class: "health", "aria-label": "Nodes" });
const stream = h("span", { class: "stream" });

function toggleMenu() {
  const open = menu.getAttribute("aria-expanded") !== "true";
  menu.setAttribute("aria-expanded", String(open));
  if (open) scrollTo(0, 0);
  nav.classList.toggle("open", open);
  if (open) nav.querySelector("a")?.focus();
}

function closeMenu() {
  menu.setAttribute("aria-expanded", "false");
  nav.classList.remove("open");
}

nav.addEventListener("click", (event) => {
  if (event.target.closest("a")) closeMenu();
});
nav.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && nav.classList.contains("open")) {
    closeMenu();
    menu.focus();
  }
});

function frame() {
  const groups = Object.groupBy(Object.entries(VIEWS).filter(([, each]) => !each.operator || isOperator()), ([, each]) => each.group ?? "");
  put(nav, Object.entries(groups).map(([group, views]) => [
    group ? h("h2", null, group) : null,
    h("ul", null, views.map(([name, each]) => h("li", null, h("a", { href: `#/${name}`, "data-view": name }, each.title)))),
  ]));
  nav.hidden = false;
  const theme = h("select", { class: "theme", "aria-label": "Theme", on: { change: (event) => setTheme(event.target.value) } },
    [["", "System theme"], ["light", "Light"], ["dark", "Dark"]].map(([value, words]) => h("option", { value }, words)));
  theme.value = document.documentElement.dataset.theme ?? "";
  put(top, menu, h("p", { class: "brand" }, h("img", { src: "/icon.svg", alt: "", width: 24, height: 24 }), " xlb"), health, stream,
    h("div", { class: "who" }, theme, button(session.name, account, { kind: "quiet user", label: `Account of ${session.name} (${session.role})`, "aria-haspopup": "dialog" })));
}

function setTheme(value) {
  if (value) document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  try {
    if (value) localStorage.setItem("xlb-theme", value);
    else localStorage.removeItem("xlb-theme");
  } catch {
    // storage is switched off: the choice holds until the page is left
  }
  recolour();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

function showHealth(cluster) {
  const shown = (cluster?.nodes ?? []).map((node) => h("span", null, h("b", null, node.name || "peer"), " ", node.answered && node.status ? roleBadge(node.status.role) : badge("no answer", "bad")));
  const sign = (cluster?.nodes ?? []).map((node) => `${node.name} ${node.answered} ${node.status?.role}`).join();
  if (health.dataset.sign === sign) return;
  health.dataset.sign = sign;
  put(health, shown);
}

function account() {
  const made = dialog({
    title: `${session.name} (${session.role})`,
    content: (handle) => [
      h("div", { class: "actions" }, button("Log out", async () => {
        handle.close();
        await logout();
      }, { kind: "primary" })),
      h("h3", null, "Change your password"),
      form({
        action: "Change the password",
        parts: [
          h("input", { type: "text", autocomplete: "username", value: session.name, hidden: true }),
          field({ name: "old", label: "Present password", kind: "password", required: true, autocomplete: "current-password" }),
          field({ name: "new", label: "New password", kind: "password", required: true, autocomplete: "new-password", help: "At least 10 characters.", keys: ["password"] }),
          field({ name: "repeat", label: "Repeat the new password", kind: "password", required: true, autocomplete: "new-password" }),
        ],
        check: (values) => (values.new === values.repeat ? {} : { repeat: "The two passwords differ" }),
        async submit(values) {
          await change("PUT", "/session/password", { old: values.old, new: values.new });
          handle.close();
          toast("The password is changed. Other sessions of this account have ended.");
          await renew();
        },
      }).element,
    ],
  });
  return made;
}

/** After a change of the password: the session may be a new one, or need a login. */
async function renew() {
  try {
    setSession(await get("/session"));
  } catch (error) {
    if (error.status === 401) await loginDialog().catch(() => {});
  }
}

async function logout() {
  try {
    await request("DELETE", "/session");
  } catch (error) {
    if (error.status !== 401) {
      put(main, errorNotice(error));
      return;
    }
  }
  setSession(null);
}

// What happens.

bus.addEventListener("session", () => {
  if (session.name) {
    const begun = !nav.hidden && top.dataset.user === `${session.name} ${session.role}`;
    top.dataset.user = `${session.name} ${session.role}`;
    if (begun) return;
    frame();
    live.stop();
    live.start();
    route();
  } else {
    delete top.dataset.user;
    live.stop();
    nav.hidden = true;
    banner("reach", null);
    put(top, h("p", { class: "brand" }, h("img", { src: "/icon.svg", alt: "", width: 24, height: 24 }), " xlb"));
    show(loginView(() => {}), context(), false);
  }
});

function showReach() {
  if (!reach.server) banner("reach", [badge("no connection", "bad"), h("p", null, "xlb-web does not answer. What you see is old; this page tries again by itself. On the node: ", h("code", null, "systemctl status xlb-web"))]);
  else if (!reach.daemon) banner("reach", [badge("no answer of xlbd", "bad"), h("p", null, reach.why), h("p", null, "This page recovers by itself.")]);
  else banner("reach", null);
}

bus.addEventListener("reach", (event) => {
  showReach();
  if (event.detail.restored && reach.server && reach.daemon) {
    announce("Connected again");
    live.poll();
  }
});
bus.addEventListener("cluster", (event) => {
  showHealth(event.detail);
});
bus.addEventListener("stream", (event) => {
  setText(stream, event.detail ? "live" : "not live");
  stream.className = `stream ${event.detail ? "on" : "off"}`;
});
bus.addEventListener("event", (event) => {
  const { severity, message } = event.detail;
  if (severity !== "info") toast(message, severity === "error" ? "bad" : "warn");
  announce(message);
});
bus.addEventListener("note", (event) => toast(event.detail, "warn"));
addEventListener("hashchange", route);
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

onExpired(loginDialog);

async function begin(wait_ms = 500) {
  try {
    const { result } = await request("GET", "/session");
    setSession(result);
  } catch (error) {
    setSession(null);
    if (error.status !== 401) setTimeout(() => (session.name ? null : begin(Math.min(wait_ms * 2, 8000))), wait_ms);
  }
}

emit("stream", false);
begin();

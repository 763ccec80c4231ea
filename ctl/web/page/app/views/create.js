// The form that creates a pair, and its progress: SSH, host key, what is replaced, keys, joining, checks.

import { change, get, isOperator, post } from "../api.js";
import { h, put, setText } from "../dom.js";
import { field, folded, form } from "../forms.js";
import { poll, setJob, state } from "../live.js";
import { announce, badge, busy, button, errorNotice, facts, notice, section } from "../widgets.js";
import { showChecks } from "./cluster.js";

const STEP = { waiting: ["waiting", "off"], running: ["running", "info"], asking: ["asks", "warn"], done: ["done", "ok"], failed: ["failed", "bad"] };

/** changed(): called once a pair exists. */
export function createPanel(ctx, changed) {
  const progress = h("div");
  const made = isOperator() ? createForm() : null;
  const intro = h("p", null, "This node is single: it serves alone, and no node takes over if it fails. With a second node it forms a pair.");
  const tokens = made ? byToken(changed) : null;
  const element = h("div", { class: "view" },
    section("Create a cluster", intro, made ? made.element : h("p", { class: "quiet" }, "An account with the role operator can create a pair here."), progress),
    tokens);
  let announced = "";

  function createForm() {
    return form({
      className: "narrow",
      action: "Create",
      parts: [
        field({ name: "local", label: "Local IP", required: true, help: "Address of this node on the cluster link.", placeholder: "10.99.0.1", inputmode: "text" }),
        field({ name: "peer", label: "Remote IP", required: true, help: "Address of the other node on the same link.", placeholder: "10.99.0.2", keys: ["remote"] }),
        field({ name: "password", label: "Remote root password", kind: "password", required: true, help: "Used once for SSH, not stored." }),
        field({ name: "password_repeat", label: "Repeat password", kind: "password", required: true }),
        folded("More", [field({ name: "ssh_port", label: "SSH port", kind: "integer", placeholder: "22", default: "" })]),
      ],
      check: (values) => (values.password === values.password_repeat ? {} : { password_repeat: "The two passwords differ" }),
      async submit(values, _, own) {
        const body = { local: values.local, peer: values.peer, password: values.password, password_repeat: values.password_repeat };
        if (values.ssh_port !== "") body.ssh_port = values.ssh_port;
        const job = await post("/cluster/create", body);
        own.field("password").set("");
        own.field("password_repeat").set("");
        setJob(job);
      },
    });
  }

  function show(job) {
    if (made) {
      const going = job && (job.state === "running" || job.state === "asking");
      made.element.hidden = Boolean(going);
      tokens.hidden = Boolean(going);
    }
    if (!job) {
      put(progress);
      return;
    }
    const now = job.steps.map((step) => `${step.name} ${step.state} ${step.text}`).join() + job.state + (job.question?.id ?? "");
    if (now === announced) return;
    announced = now;
    const running = job.steps.find((step) => step.state === "running" || step.state === "asking");
    if (running) announce(`${running.title}${running.text ? `: ${running.text}` : ""}`);
    put(progress,
      h("h3", { class: "unseen" }, "Progress"),
      h("ol", { class: "steps" }, job.steps.map((step) => {
        const asks = job.state === "asking" && step === running;
        return h("li", { class: `step step-${step.state}`, "data-step": step.name, "aria-current": step === running ? "step" : undefined },
          badge(...(STEP[asks ? "asking" : step.state] ?? [step.state, "off"])), h("div", null, h("strong", null, step.title), step.text ? h("p", { class: "quiet" }, step.text) : null));
      })),
      job.question ? question(job.question) : null,
      job.state === "failed" && job.error ? errorNotice(job.error) : null,
      job.state === "cancelled" ? notice("info", "Cancelled. Nothing was changed on either node.") : null,
      job.state === "running" ? h("div", { class: "actions" }, cancelButton()) : null,
      job.state === "done" && job.checks?.length ? checks(job.checks) : null);
    const first = progress.querySelector(".question h3, .notice");
    if (first) {
      first.setAttribute("tabindex", "-1");
      first.focus();
    }
    if (job.state === "done") {
      announce(`${job.node} and ${job.peer} are a pair`);
      poll();
      changed();
    }
  }

  function cancelButton() {
    const stop = button("Cancel", () => busy(stop, () => change("DELETE", "/cluster/create").then(refresh, () => refresh())));
    return stop;
  }

  function checks(found) {
    const place = h("div");
    showChecks(place, found);
    return place;
  }

  function question(asked) {
    const problem = h("div");
    const answer = (accept) => async (event) => {
      await busy(event.currentTarget, async () => {
        try {
          await post("/cluster/create/answer", { question: asked.id, accept });
          await refresh();
        } catch (error) {
          put(problem, errorNotice(error));
        }
      });
    };
    const isKey = asked.kind === "host_key";
    const lost = [...(asked.farms ?? []).map((name) => ["Farm", name]), ...(asked.vips ?? []).map((name) => ["VIP", name]), ...(asked.accounts ?? []).map((name) => ["Account", name])];
    return h("div", { class: "question", role: "group", "aria-label": isKey ? "Host key" : "Replaced configuration", "data-question": asked.kind },
      h("h3", null, isKey ? "Is this the host key of the other node?" : "Replace the other node's configuration?"),
      h("p", null, asked.text),
      isKey && asked.fingerprint ? facts([["Fingerprint", h("code", { class: "fingerprint" }, asked.fingerprint)], ["Compare with", h("code", null, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"), " on the other node"]]) : null,
      !isKey && lost.length ? h("ul", { class: "what" }, lost.map(([kind, name]) => h("li", null, `${kind} ${name}`))) : null,
      problem,
      h("div", { class: "actions" },
        button(isKey ? "It is its key: continue" : "Replace it: continue", answer(true), { kind: isKey ? "primary" : "danger" }),
        button("Cancel", answer(false))));
  }

  async function refresh() {
    try {
      setJob(await get("/cluster/create", { signal: ctx.signal }));
    } catch {
      // the next turn asks again
    }
  }

  ctx.on("job", show);
  show(state.job);
  if (isOperator()) ctx.every(3000, () => (!state.job || ["running", "asking"].includes(state.job.state) ? refresh() : null));
  return element;
}

/** Where SSH is not possible: a token made on one node is given to the other. */
function byToken(changed) {
  const shown = h("code", { class: "token" });
  const result = h("div", { hidden: true }, h("p", null, "On the other node, System > Cluster > Join with a token, or:"), shown);
  const make = form({
    className: "narrow",
    action: "Make a token",
    parts: [field({ name: "local", label: "Local IP", required: true }), field({ name: "peer", label: "Remote IP", required: true })],
    async submit(values) {
      const answer = await post("/cluster/token", values);
      setText(shown, `xlbctl cluster join --local ${values.peer} ${answer.token}`);
      result.hidden = false;
    },
  });
  const lost = h("div");
  const join = form({
    className: "narrow",
    action: "Join",
    danger: true,
    parts: [
      field({ name: "local", label: "Local IP", required: true, help: "Address of this node on the cluster link." }),
      field({ name: "token", label: "Token of the other node", required: true }),
      lost,
    ],
    async submit(values) {
      await post("/cluster/join", values);
      poll();
      changed();
    },
  });
  const details = h("details", { on: { toggle: preview } }, h("summary", null, "Join with a token (replaces this node's farms)"), join.element);

  async function preview() {
    if (!details.open) return;
    try {
      const answer = await get("/cluster/preview");
      const all = [...(answer.farms ?? []).map((name) => `Farm ${name}`), ...(answer.vips ?? []).map((name) => `VIP ${name}`), ...(answer.accounts ?? []).map((name) => `Account ${name}`)];
      put(lost, all.length ? [h("p", null, "Joining removes from this node (a backup copy of farms and VIPs is saved):"), h("ul", { class: "what" }, all.map((each) => h("li", null, each)))] : h("p", { class: "quiet" }, "This node has nothing that joining would remove."));
    } catch (error) {
      put(lost, errorNotice(error));
    }
  }

  return section("Without SSH", h("p", { class: "quiet" }, "A token made on one node lets the other join."), h("details", null, h("summary", null, "Make a token on this node"), make.element, result), details);
}

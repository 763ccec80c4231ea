// Accounts and API tokens, of the pair.

import { change, get, part, post, session } from "../api.js";
import { h, put } from "../dom.js";
import { field, form } from "../forms.js";
import { moment } from "../format.js";
import { table } from "../table.js";
import { badge, button, confirm, dialog, errorNotice, notice, section, toast, viewHead } from "../widgets.js";

const ROLES = [["viewer", "viewer: sees everything but accounts"], ["operator", "operator: may change everything"]];
const roleBadge = (role) => badge(role, role === "operator" ? "info" : "off");
const SAME = (values) => (values.password === values.repeat ? {} : { repeat: "The two passwords differ" });

export function accountsView(ctx) {
  const problem = h("div");
  const users = table({
    caption: "Users",
    key: (user) => user.name,
    empty: "No users.",
    columns: [
      { title: "Name", head: true, class: "name", node: (user) => [user.name, user.name === session.name ? h("span", { class: "quiet" }, " (you)") : null], sign: (user) => user.name, sort: (user) => user.name },
      { title: "Role", node: (user) => roleBadge(user.role), sign: (user) => user.role },
      { title: "Created", text: (user) => (user.created_s ? moment(user.created_s) : "–") },
      { title: "", narrow: "", class: "buttons", sign: (user) => user.role, node: (user) => [
        button("Edit", () => editUser(user), { kind: "small", label: `Edit user ${user.name}` }),
        button("Delete", () => deleteUser(user), { kind: "small danger", label: `Delete user ${user.name}` }),
      ] },
    ],
  });
  const tokens = table({
    caption: "Tokens",
    key: (token) => token.name,
    empty: "No tokens. Programs use the API with one, in the header Authorization: Bearer.",
    columns: [
      { title: "Name", head: true, class: "name", text: (token) => token.name },
      { title: "Role", node: (token) => roleBadge(token.role), sign: (token) => token.role },
      { title: "Made by", text: (token) => token.user || "–" },
      { title: "Created", text: (token) => (token.created_s ? moment(token.created_s) : "–") },
      { title: "Expires", text: (token) => (token.expires_s ? moment(token.expires_s) : "never") },
      { title: "", narrow: "", class: "buttons", sign: () => "", node: (token) => button("Delete", () => deleteToken(token), { kind: "small danger", label: `Delete token ${token.name}` }) },
    ],
  });

  async function load() {
    try {
      users.update(await get("/users", { signal: ctx.signal }));
      tokens.update(await get("/tokens", { signal: ctx.signal }));
      put(problem);
    } catch (error) {
      if (error.name !== "AbortError") put(problem, errorNotice(error));
    }
  }

  const passwords = (required) => [
    field({ name: "password", label: required ? "Password" : "New password", kind: "password", required, autocomplete: "new-password", help: required ? "At least 10 characters." : "Empty: the password stays." }),
    field({ name: "repeat", label: "Repeat the password", kind: "password", required, autocomplete: "new-password" }),
  ];

  function addUser() {
    dialog({
      title: "Add a user",
      content: (handle) => form({
        action: "Add",
        cancel: () => handle.close(),
        check: SAME,
        parts: [field({ name: "name", label: "Name", required: true }), field({ name: "role", label: "Role", kind: "choice", choices: ROLES }), passwords(true)],
        async submit(values) {
          await post("/users", { name: values.name, role: values.role, password: values.password });
          handle.close();
          toast(`User ${values.name} is added`);
          load();
        },
      }).element,
    });
  }

  function editUser(user) {
    dialog({
      title: `Edit user ${user.name}`,
      content: (handle) => form({
        action: "Save",
        cancel: () => handle.close(),
        check: SAME,
        parts: [h("input", { type: "text", autocomplete: "username", value: user.name, hidden: true }), field({ name: "role", label: "Role", kind: "choice", choices: ROLES, value: user.role }), passwords(false)],
        async submit(values, changed) {
          const wanted = {};
          if ("role" in changed) wanted.role = values.role;
          if (values.password) wanted.password = values.password;
          if (Object.keys(wanted).length) await change("PATCH", `/users/${part(user.name)}`, wanted);
          handle.close();
          load();
        },
      }).element,
    });
  }

  async function deleteUser(user) {
    const done = await confirm({ title: `Delete user ${user.name}?`, lines: [`${user.name}'s sessions end at once, on both nodes.`], action: "Delete", danger: true, work: () => change("DELETE", `/users/${part(user.name)}`) });
    if (done) load();
  }

  function addToken() {
    dialog({
      title: "Add a token",
      content: (handle) => form({
        action: "Add",
        cancel: () => handle.close(),
        parts: [
          field({ name: "name", label: "Name", required: true, help: "Of the program that uses it." }),
          field({ name: "role", label: "Role", kind: "choice", choices: ROLES }),
          field({ name: "expires_days", label: "Expires after", kind: "integer", unit: "days", placeholder: "never", default: "" }),
        ],
        async submit(values) {
          const wanted = { name: values.name, role: values.role };
          if (values.expires_days !== "") wanted.expires_days = values.expires_days;
          const made = await post("/tokens", wanted);
          handle.title(`Token ${made.name}`);
          handle.put(notice("warn", "This is shown once. Copy it now; only its hash is kept."), h("p", null, h("code", { class: "token", tabindex: "0" }, made.token)), h("div", { class: "actions" }, button("Done", () => handle.close(), { kind: "primary" })));
          load();
        },
      }).element,
    });
  }

  async function deleteToken(token) {
    const done = await confirm({ title: `Delete token ${token.name}?`, lines: ["Programs that use it are refused at once."], action: "Delete", danger: true, work: () => change("DELETE", `/tokens/${part(token.name)}`) });
    if (done) load();
  }

  load();
  ctx.on("event", (event) => event.event.startsWith("config.") && load());
  return {
    title: "Accounts",
    element: h("div", { class: "view" }, viewHead("Accounts"), problem,
      section("Users", users.element, h("div", { class: "actions" }, button("Add a user", addUser, { kind: "primary" }))),
      section("API tokens", tokens.element, h("div", { class: "actions" }, button("Add a token", addToken)))),
  };
}

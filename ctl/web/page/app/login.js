// Logging in: as the whole page, or as a dialog over a view whose session has ended.

import { request, session, setSession } from "./api.js";
import { h } from "./dom.js";
import { field, form } from "./forms.js";
import { dialog, notice } from "./widgets.js";

function loginForm(done, name = "") {
  return form({
    className: "narrow",
    action: "Log in",
    parts: [
      field({ name: "name", label: "Name", required: true, autocomplete: "username", value: name }),
      field({ name: "password", label: "Password", kind: "password", required: true, autocomplete: "current-password" }),
    ],
    async submit(values, _, own) {
      try {
        const { result } = await request("POST", "/session", { body: values });
        setSession(result);
        done();
      } catch (error) {
        own.field("password").set("");
        error.key = "";
        own.fail(error);
        own.field("password").input.focus();
      }
    },
  });
}

/** The page before anybody has logged in. */
export function loginView(done) {
  const made = loginForm(done);
  return {
    title: "Log in",
    element: h("div", { class: "login card" }, h("h1", { tabindex: "-1" }, "Log in to xlb"),
      h("p", { class: "quiet" }, "With an account of this node or pair. ", h("code", null, "xlbctl user add NAME --role operator"), " makes the first one."), made.element),
    focus: () => made.field("name").input.focus(),
  };
}

/** Over the view: it and its input stay. Rejects if the dialog is left without logging in. */
export async function loginDialog() {
  const made = dialog({
    title: "Log in again",
    firm: true,
    content: (handle) => [
      notice("info", "The session has ended. What you see and have typed stays."),
      loginForm(() => handle.close(true), session.name).element,
    ],
  });
  made.box.querySelector(session.name ? "input[type=password]" : "input")?.focus();
  if (!(await made.closed)) throw new Error("not logged in");
}

// The dialog in which the user types keys and adds servers.
import { button, h } from "./dom.js";

/** Fills a dialog. `onChange` hears of a new server or key. */
export function fillServersDialog(dialog, app, onChange) {
  const { servers } = app;
  const key = h("input", { type: "password", autocomplete: "off", id: "own-key" });
  key.value = servers.keyOf("");
  const setKey = (event) => {
    event.preventDefault();
    servers.setOwnKey(key.value.trim());
    onChange();
    app.say("The key is kept in this tab.");
    dialog.close();
  };
  const fields = {
    name: h("input", { type: "text", autocomplete: "off", placeholder: "as the page shows it" }),
    address: h("input", { type: "url", required: true, autocomplete: "off", placeholder: "http://127.0.0.1:8000/v1" }),
    key: h("input", { type: "password", autocomplete: "off" }),
  };
  const problem = h("p", { class: "error", role: "alert" });
  const add = (event) => {
    event.preventDefault();
    try {
      const id = servers.add({ name: fields.name.value, address: fields.address.value, key: fields.key.value });
      app.say(`The server ${id} is kept in this browser.`);
      onChange();
      fillServersDialog(dialog, app, onChange);
    } catch (error) {
      problem.textContent = error.message;
    }
  };
  const remove = (id) => {
    servers.remove(id);
    for (const column of app.state.columns) if (column.server === id) Object.assign(column, { server: "", model: "" });
    onChange();
    fillServersDialog(dialog, app, onChange);
  };
  const added = servers.list().slice(1);
  dialog.replaceChildren(
    h("h2", {}, "Key and servers"),
    h("form", { on: { submit: setKey } }, h("label", {}, "API key of this server, kept in this tab ", key), h("button", { type: "submit" }, "Keep the key")),
    h("h3", {}, "Further servers"),
    h("p", {}, "Any server with OpenAI's API. The browser keeps address and key."),
    h("ul", {}, added.map(({ id, name, root }) => h("li", {}, `${name} (${root}) `, button("Remove", () => remove(id), { "aria-label": `Remove ${name}` })))),
    h(
      "form",
      { on: { submit: add } },
      h("label", {}, "Base URL ", fields.address),
      h("label", {}, "Name ", fields.name),
      h("label", {}, "Key ", fields.key),
      problem,
      h("button", { type: "submit" }, "Add the server"),
    ),
    button("Close", () => dialog.close()),
  );
}

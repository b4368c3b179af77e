// The dialog of presets, of export and import, and of the link that restores the state.
import { copyText } from "./clipboard.js";
import { button, h, note } from "./dom.js";
import { encodeFragment } from "./fragment.js";
import { readState } from "./state.js";

/** Fills a dialog. `column` is the column whose parameters a preset takes and gives. */
export async function fillKeepDialog(dialog, app, column) {
  const { presets, servers, store } = app;
  const names = presets.list().map((preset) => preset.name);
  const choice = h("select", { id: "preset-choice" }, names.map((name) => new Option(name, name)));
  const name = h("input", { type: "text", required: true, autocomplete: "off", id: "preset-name" });
  const again = () => fillKeepDialog(dialog, app, column);
  const save = (event) => {
    event.preventDefault();
    const isKept = presets.save(name.value.trim(), app.state, column);
    app.say(isKept ? `The preset ${name.value.trim()} is kept in this browser.` : "This browser keeps no data for the page.");
    again();
  };
  const apply = () => {
    store.update((state) => presets.apply(choice.value, state, column), { canUndo: true });
    app.say(`The preset ${choice.value} is set.`);
    dialog.close();
  };
  const remove = () => {
    presets.remove(choice.value);
    again();
  };
  const problem = h("p", { class: "error", role: "alert" });
  const take = async (event) => {
    try {
      const file = JSON.parse(await event.target.files[0].text());
      const state = readState(file);
      presets.take(file.presets ?? []);
      servers.take(file.servers ?? []);
      store.replace(state);
      app.say("The state of the file is set.");
      dialog.close();
    } catch (error) {
      problem.textContent = `The file is no state of this page: ${error.message}`;
    }
  };
  const link = h("input", { type: "text", readonly: true, id: "share-link" });
  link.value = location.origin + location.pathname + (await encodeFragment(app.state));
  dialog.replaceChildren(
    h("h2", {}, "Keep and share"),
    h("form", { on: { submit: save } }, h("label", {}, "Name of a new preset ", name), h("button", { type: "submit" }, "Save the parameters")),
    names.length > 0 && h("div", { class: "actions" }, h("label", {}, "Preset ", choice), button("Set", apply), button("Delete", remove)),
    h("h3", {}, "Link"),
    note("The link holds conversation and parameters, and no key. Browsers send what stands behind # to no server."),
    h("label", {}, "Link to this state ", link),
    button("Copy the link", () => copyText(link.value, "The link", app.say, () => link.select())),
    h("h3", {}, "File"),
    note("The file has presets and servers too, and no key."),
    h("div", { class: "actions" }, button("Export as JSON", () => download({ ...app.state, presets: presets.list(), servers: servers.toFile() }))),
    h("label", {}, "Import a file ", h("input", { type: "file", accept: ".json,application/json", id: "import-file", on: { change: take } })),
    problem,
    button("Close", () => dialog.close()),
  );
}

function download(state) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(state, null, 2)], { type: "application/json" }));
  const link = h("a", { href: url, download: "playground.json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// The request as code, with one click to copy it.
import { copyText } from "./clipboard.js";
import { button, h } from "./dom.js";
import { whyNotReady } from "./requests.js";
import { KINDS, snippet } from "./snippets.js";

export class CodeView {
  #app;
  #kind = KINDS[0].id;
  #column = 0;

  constructor(app, element) {
    this.#app = app;
    this.element = element;
  }

  draw() {
    const { servers, state } = this.#app;
    const column = state.compare ? this.#column : 0;
    const { server } = state.columns[column];
    const reason = whyNotReady(state);
    const made = reason === null
      ? snippet(this.#kind, { request: this.#app.request(column), root: servers.find(server)?.root ?? "", hasKey: servers.keyOf(server) !== "" })
      : { reason };
    const active = document.activeElement?.id;
    this.element.replaceChildren(
      h("h2", {}, "Code of this request"),
      h("div", { class: "actions" }, this.#choice("Client", "code-kind", KINDS, this.#kind, (id) => (this.#kind = id)), state.compare && this.#columnChoice(), this.#streams()),
      made.code === undefined ? h("p", { class: "note" }, made.reason) : this.#code(made.code),
    );
    if (active) document.getElementById(active)?.focus();
  }

  #code(code) {
    const text = h("pre", { id: "code-text", tabIndex: 0, "aria-label": "Code" }, code);
    return h("div", { class: "code" }, button("Copy", () => copyText(code, "The code", this.#app.say, () => getSelection().selectAllChildren(text)), { id: "code-copy" }), text);
  }

  #choice(name, id, entries, chosen, set) {
    const change = (event) => {
      set(event.target.value);
      this.draw();
    };
    return h("label", {}, `${name} `, h("select", { id, on: { change } }, entries.map((one) => new Option(one.label, one.id, false, one.id === chosen))));
  }

  #columnChoice() {
    const entries = [{ id: "0", label: "A" }, { id: "1", label: "B" }];
    return this.#choice("Column", "code-column", entries, String(this.#column), (id) => (this.#column = Number(id)));
  }

  #streams() {
    const input = h("input", { type: "checkbox", id: "code-stream", on: { change: (event) => this.#app.store.update((state) => (state.stream = event.target.checked)) } });
    input.checked = this.#app.state.stream;
    return h("label", {}, input, " streamed");
  }
}

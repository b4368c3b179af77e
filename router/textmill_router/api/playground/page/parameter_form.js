// The controls of the parameters of one column. An empty control is a parameter that is not sent.
import { button, h, note } from "./dom.js";
import { formatParameter, parseParameter, rangeText } from "./parameters.js";

const OFTEN_USED = [
  "max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "do_sample", "tools", "tool_choice",
  "response_format", "grammar",
];

/** The form of one column. `draw` shows the parameters of the mode, from the values in the state. */
export class ParameterForm {
  #app;
  #column;
  #filter = "";
  #isOpen = false;

  constructor(app, column) {
    this.#app = app;
    this.#column = column;
    this.element = h("form", { class: "parameters", autocomplete: "off", on: { submit: (event) => event.preventDefault() } });
  }

  get #values() {
    const { state } = this.#app;
    return state.columns[this.#column].parameters[state.mode];
  }

  draw() {
    const { parameters, state } = this.#app;
    this.#dropMistakes();
    if (parameters === null) {
      this.element.replaceChildren(note("openapi.json is not here yet."));
      return;
    }
    const all = parameters[state.mode];
    const often = OFTEN_USED.map((name) => all.find((one) => one.name === name)).filter((one) => one !== undefined);
    const others = all.filter((one) => !often.includes(one) && !one.isRefused);
    const refused = all.filter((one) => one.isRefused);
    const filter = h("input", { type: "search", on: { input: (event) => this.#show(event.target.value) } });
    filter.value = this.#filter;
    const unknown = Object.keys(this.#values).filter((name) => !all.some((one) => one.name === name));
    this.element.replaceChildren(
      h("label", { class: "filter" }, "Find a parameter ", filter),
      h("div", {}, often.map((one) => this.#field(one))),
      this.#group("All others", others),
      this.#group("Refused by this server", refused),
      ...unknown.map((name) => this.#unknown(name)),
      button("Reset all", () => this.#reset(), { class: "reset-all" }),
    );
    this.#show(this.#filter);
  }

  #group(name, parameters) {
    const isChanged = parameters.some((one) => this.#values[one.name] !== undefined);
    const on = { toggle: (event) => (this.#isOpen = name === "All others" ? event.target.open : this.#isOpen) };
    const open = isChanged || (name === "All others" && this.#isOpen);
    return parameters.length > 0 && h("details", { open, on }, h("summary", {}, `${name} (${parameters.length})`), parameters.map((one) => this.#field(one)));
  }

  #field(parameter) {
    const id = `parameter-${this.#column}-${parameter.name}`;
    const control = this.#control(parameter, id);
    const range = rangeText(parameter);
    const unset = parameter.default === null ? "" : `; default ${JSON.stringify(parameter.default)}`;
    const type = parameter.kind === "texts" ? "text, or JSON list of texts" : parameter.kind;
    const tip = h("p", { class: "tip", id: `${id}-tip` }, `${parameter.description} (${type}${range ? `, ${range}` : ""}${unset})`);
    const error = h("p", { class: "error", id: `${id}-error` });
    const reset = button("Reset", () => this.#resetOne(parameter, control, row), { class: "reset", "aria-label": `Reset ${parameter.name}` });
    const row = h("div", { class: "field", data: { name: parameter.name } }, h("label", { for: id }, parameter.name), reset, control, tip, error);
    control.setAttribute("aria-describedby", `${tip.id} ${error.id}`);
    control.addEventListener("input", () => this.#take(parameter, control, row));
    this.#mark(parameter, row);
    return row;
  }

  #control(parameter, id) {
    const text = formatParameter(parameter, this.#values[parameter.name]);
    const placeholder = parameter.default === null ? "not sent" : String(parameter.default);
    if (parameter.kind === "boolean" || parameter.kind === "choice") {
      const values = parameter.kind === "boolean" ? ["true", "false"] : parameter.values;
      const select = h("select", { id }, new Option("not sent", ""), values.map((value) => new Option(value, value)));
      select.value = text;
      return select;
    }
    const control = parameter.kind === "json" ? h("textarea", { id, rows: 2, spellcheck: "false", placeholder: "JSON" }) : h("input", { id, type: "text", placeholder });
    if (parameter.kind === "integer") control.inputMode = "numeric";
    if (parameter.kind === "number") control.inputMode = "decimal";
    control.value = text;
    return control;
  }

  #take(parameter, control, row) {
    const { value, error } = parseParameter(parameter, control.value);
    const line = row.querySelector(".error");
    line.textContent = error ?? "";
    control.setAttribute("aria-invalid", String(error !== undefined));
    const where = `${this.#column} ${this.#app.state.mode} ${parameter.name}`;
    if (error === undefined) {
      this.#app.invalid.delete(where);
      if (value === undefined) delete this.#values[parameter.name];
      else this.#values[parameter.name] = value;
    } else {
      this.#app.invalid.set(where, `${parameter.name}: ${error}`);
    }
    this.#mark(parameter, row);
    this.#app.store.touch();
  }

  #mark(parameter, row) {
    const isChanged = this.#values[parameter.name] !== undefined || row.querySelector(".error").textContent !== "";
    row.classList.toggle("changed", isChanged);
    row.querySelector(".reset").hidden = !isChanged;
  }

  #resetOne(parameter, control, row) {
    control.value = "";
    this.#take(parameter, control, row);
    control.focus();
  }

  #reset() {
    this.#app.store.update((state) => (state.columns[this.#column].parameters[state.mode] = {}), { canUndo: true });
  }

  #dropMistakes() {
    for (const where of [...this.#app.invalid.keys()]) if (where.startsWith(`${this.#column} `)) this.#app.invalid.delete(where);
  }

  /** Returns a row for a parameter that the document does not have. */
  #unknown(name) {
    const drop = () => this.#app.store.update(() => delete this.#values[name], { canUndo: true });
    const text = `${name}: ${JSON.stringify(this.#values[name])} (not in openapi.json; sent as it is)`;
    return note(text, button("Drop", drop, { "aria-label": `Drop ${name}` }));
  }

  #show(filter) {
    this.#filter = filter;
    for (const row of this.element.querySelectorAll(".field")) row.hidden = !row.dataset.name.includes(filter.trim().toLowerCase());
    if (filter.trim() !== "") for (const group of this.element.querySelectorAll("details")) group.open = true;
  }
}

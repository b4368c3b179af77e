// Which server and which model each column asks.
import { h } from "./dom.js";
import { OWN_SERVER } from "./state.js";

/** The bar with a server and a model for each column. `onModels` is called with the models of column A. */
export class ColumnsView {
  #app;
  #onModels;
  #drawn = "";

  constructor(app, element, onModels) {
    this.#app = app;
    this.element = element;
    this.#onModels = onModels;
  }

  /** Draws the bar only after a change, because a new bar closes a list that is open. */
  draw() {
    const { columns, servers, state } = this.#app;
    const wanted = JSON.stringify([columns, servers.list(), servers.keyOf(""), state.columns.map(({ server, model }) => [server, model])]);
    if (wanted === this.#drawn) return;
    this.#drawn = wanted;
    const active = document.activeElement?.id;
    this.element.replaceChildren(...columns.map((column) => this.#column(column)));
    if (active) document.getElementById(active)?.focus();
  }

  #column(column) {
    const { servers, state, store } = this.#app;
    const chosen = state.columns[column];
    const name = state.compare ? ` ${"AB"[column]}` : "";
    const list = servers.list();
    if (!list.some((server) => server.id === chosen.server)) list.push({ id: chosen.server, name: `${chosen.server} (unknown)` });
    const setServer = (event) => store.update((now) => Object.assign(now.columns[column], { server: event.target.value, model: "" }));
    const server = h("select", { id: `server-${column}`, on: { change: setServer } }, list.map(({ id, name: label }) => new Option(label, id, false, id === chosen.server)));
    const setModel = (event) => {
      chosen.model = event.target.value;
      store.update(() => {});
    };
    const model = h("select", { id: `model-${column}`, on: { change: setModel } }, new Option(chosen.model || "asking for the models", chosen.model));
    const error = h("p", { class: "error" });
    this.#fill(column, model, error);
    return h(
      "div",
      { class: "column-choice" },
      h("label", {}, `Server${name} `, server),
      h("label", {}, `Model${name} `, model),
      error,
    );
  }

  async #fill(column, select, error) {
    const chosen = this.#app.state.columns[column];
    const { server } = chosen;
    try {
      const models = await this.#app.servers.models(server);
      const ids = models.map((model) => model.id);
      if (chosen.model === "" && ids.length > 0) chosen.model = ids[0];
      if (chosen.model !== "" && !ids.includes(chosen.model)) ids.push(chosen.model);
      select.replaceChildren(...ids.map((id) => new Option(id, id, false, id === chosen.model)));
      if (column === 0) this.#onModels(models.find((model) => model.id === chosen.model));
    } catch (problem) {
      if (select.options[0].value === "") select.options[0].text = "the first";
      error.textContent = `${server === OWN_SERVER ? "This server" : server}: ${problem.message}`;
    }
  }
}

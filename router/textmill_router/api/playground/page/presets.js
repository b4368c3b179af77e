// Named sets of parameters, kept in the browser.
import { MODES, isObject } from "./state.js";

/** The presets of the user, `{name, mode, parameters, system}`; `system` may be null. */
export class Presets {
  #store;

  constructor(store) {
    this.#store = store;
  }

  list() {
    return this.#store.read("presets", []);
  }

  /** Keeps parameters and system message under a name. Returns false where the browser keeps nothing. */
  save(name, state, column) {
    const first = state.messages[0];
    const preset = {
      name,
      mode: state.mode,
      parameters: structuredClone(state.columns[column].parameters[state.mode]),
      system: state.mode === "chat" && first?.role === "system" ? first.content : null,
    };
    return this.#store.write("presets", [...this.list().filter((one) => one.name !== name), preset]);
  }

  /** Keeps the presets of a file. Throws an Error for what is no preset. */
  take(presets) {
    for (const preset of presets) {
      const { name, mode, parameters } = preset;
      if (typeof name !== "string" || !MODES.includes(mode) || !isObject(parameters)) throw new Error("a preset lacks name, mode or parameters");
      this.#store.write("presets", [...this.list().filter((one) => one.name !== name), { system: null, ...preset }]);
    }
  }

  remove(name) {
    this.#store.write("presets", this.list().filter((one) => one.name !== name));
  }

  apply(name, state, column) {
    const preset = this.list().find((one) => one.name === name);
    if (preset === undefined) return;
    state.mode = preset.mode;
    state.columns[column].parameters[preset.mode] = structuredClone(preset.parameters);
    if (preset.system === null) return;
    if (state.messages[0]?.role === "system") state.messages[0].content = preset.system;
    else state.messages.unshift({ role: "system", content: preset.system });
  }
}

// Owns the state. Views hear of changes, and the tab keeps the state over a reload.
import { newState, readState } from "./state.js";

const MAX_UNDO = 30;
const SAVE_DELAY_MS = 300;

/** The state and its listeners. `keep` has `read` and `write`. */
export class Store {
  #listeners = [];
  #undo = [];
  #keep;
  #timer = null;

  constructor(keep) {
    this.#keep = keep;
    this.state = newState();
    try {
      const kept = keep.read("state", null);
      if (kept !== null) this.state = readState(kept);
    } catch {
      // The state of an older page: the page begins anew.
    }
  }

  subscribe(listener) {
    this.#listeners.push(listener);
  }

  /** Changes the state and draws the page. With `canUndo` the state before the change can come back. */
  update(change, { canUndo = false } = {}) {
    if (canUndo) this.#undo = [...this.#undo.slice(1 - MAX_UNDO), structuredClone(this.state)];
    change(this.state);
    this.touch();
    this.#notify();
  }

  /** Notes that the state has changed by the user's typing, which the page shows already. */
  touch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.save(), SAVE_DELAY_MS);
  }

  save() {
    this.#keep.write("state", this.state);
  }

  replace(state) {
    this.#undo.push(structuredClone(this.state));
    this.state = state;
    this.touch();
    this.#notify();
  }

  get canUndo() {
    return this.#undo.length > 0;
  }

  undo() {
    if (!this.canUndo) return;
    this.state = this.#undo.pop();
    this.touch();
    this.#notify();
  }

  #notify() {
    for (const listener of this.#listeners) listener(this.state);
  }
}

// The turns of the conversation: each can be edited, moved, deleted and answered anew.
import { AnswerView } from "./answer_view.js";
import { button, grow, h, note, redraw } from "./dom.js";
import { diffTexts } from "./diff.js";
import { answerOf, assistantMessage, contentOf, imagesOf, ROLES, textOf } from "./state.js";

/** The list of turns in chat mode, and the answer to the prompt in the other modes. */
export class ConversationView {
  #app;
  #views = new Map(); // by answer
  #differences = new WeakSet(); // messages whose answers are shown as a difference

  constructor(app, element) {
    this.#app = app;
    this.element = element;
  }

  draw() {
    const { state, output } = this.#app;
    this.#views.clear();
    if (state.mode === "chat") redraw(this.element, state.messages.map((message, index) => this.#turn(message, index)));
    else redraw(this.element, output === null ? [] : h("li", { class: "turn assistant" }, this.#answers(output)));
    for (const area of this.element.querySelectorAll("textarea")) grow(area);
  }

  update(answer) {
    this.#views.get(answer)?.update();
  }

  /** Draws the answers that still run, so that a silent stream shows its silence. */
  tick() {
    for (const [answer, view] of this.#views) if (this.#app.runs.get(answer)?.state === "running") view.update();
  }

  #turn(message, index) {
    const body = message.role === "assistant" ? this.#answers(message) : this.#editor(message, index);
    return h("li", { class: `turn ${message.role}` }, this.#head(message, index), body);
  }

  #head(message, index) {
    const { store, state } = this.#app;
    const number = index + 1;
    const named = (words) => ({ key: `${words} ${index}`, "aria-label": `${words} message ${number}`, title: `${words} message ${number}` });
    const again = message.role === "assistant" ? "Regenerate" : "Answer from here";
    const change = (edit) => store.update(edit, { canUndo: true });
    const role = h(
      "select",
      { "aria-label": `Role of message ${number}`, data: { key: `role ${index}` }, on: { change: (event) => this.#setRole(index, event.target.value) } },
      [...new Set([...ROLES, message.role])].map((name) => new Option(name, name, name === message.role, name === message.role)),
    );
    const swap = (from, to) => change(({ messages }) => ([messages[from], messages[to]] = [messages[to], messages[from]]));
    return h(
      "div",
      { class: "turn-head" },
      role,
      button("↑", () => swap(index, index - 1), { ...named("Move up"), disabled: index === 0 }),
      button("↓", () => swap(index, index + 1), { ...named("Move down"), disabled: number === state.messages.length }),
      button("Delete", () => change(({ messages }) => messages.splice(index, 1)), named("Delete")),
      button(again, () => this.#app.regenerate(index), named(`${again},`)),
    );
  }

  #setRole(index, role) {
    this.#app.store.update(
      ({ messages }) => {
        const old = messages[index];
        const content = old.role === "assistant" ? answerOf(old, 0).content : textOf(old.content);
        messages[index] = role === "assistant" ? assistantMessage({ content }) : { role, content };
      },
      { canUndo: true },
    );
  }

  #editor(message, index) {
    const edit = (event) => {
      message.content = contentOf(event.target.value, imagesOf(message.content));
      grow(event.target);
      this.#app.store.touch();
    };
    const attributes = { rows: 1, "aria-label": `Text of message ${index + 1}, ${message.role}`, data: { key: `text ${index}` }, on: { input: edit } };
    const area = h("textarea", attributes);
    area.value = textOf(message.content);
    const images = imagesOf(message.content).map((url) => imageView(url));
    return [area, message.role === "tool" && this.#callId(message, index), ...images];
  }

  #callId(message, index) {
    const edit = (event) => {
      message.tool_call_id = event.target.value || undefined;
      this.#app.store.touch();
    };
    const input = h("input", { type: "text", data: { key: `call ${index}` }, on: { input: edit } });
    input.value = message.tool_call_id ?? "";
    return h("label", { class: "call-id" }, "Id of the call that this message answers ", input);
  }

  #answers(message) {
    const columns = this.#app.columns.filter((column) => column === 0 || message.answers[1]);
    if (columns.length === 2 && this.#differences.has(message)) return [this.#difference(message), this.#switch(message)];
    const views = columns.map((column) => {
      const view = new AnswerView(this.#app, message, column);
      this.#views.set(message.answers[column] ?? message.answers[0], view);
      return view.element;
    });
    return [h("div", { class: `answers columns-${views.length}` }, views), columns.length === 2 && this.#switch(message)];
  }

  #switch(message) {
    const isShown = this.#differences.has(message);
    const toggle = () => {
      if (isShown) this.#differences.delete(message);
      else this.#differences.add(message);
      this.draw();
    };
    return button(isShown ? "Side by side" : "Show difference", toggle, { key: "difference", "aria-pressed": String(isShown), disabled: this.#app.isRunning });
  }

  #difference(message) {
    const tags = { same: "span", left: "del", right: "ins" };
    const runs = diffTexts(answerOf(message, 0).content, answerOf(message, 1).content);
    const legend = note(h("del", {}, "only in A"), " ", h("ins", {}, "only in B"));
    return h("div", { class: "difference" }, legend, h("div", { class: "plain" }, runs.map(({ kind, text }) => h(tags[kind], {}, text))));
  }
}

/** Returns an image of a message. The page asks no other host, so an image of another host is only named. */
export function imageView(url) {
  return url.startsWith("data:") ? h("img", { src: url, alt: "attached image", class: "attached" }) : note(`Image: ${url}`);
}

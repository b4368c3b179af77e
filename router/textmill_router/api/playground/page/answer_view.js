// One answer: reasoning, tool calls, text or tokens, numbers, and what can be done with it.
import { answerOf } from "./state.js";
import { copyText } from "./clipboard.js";
import { button, grow, h, note } from "./dom.js";
import { MAX_MARKDOWN_CHARACTERS, renderMarkdown } from "./markdown.js";
import { metricsOf, timingsOf } from "./metrics.js";
import { canContinue } from "./runs.js";
import { tokenView } from "./token_view.js";

const SLOWEST_MARKDOWN_SHARE = 5; // Markdown of a growing text is drawn at most a fifth of the time
const SILENCE_MS = 5000; // after which the page says that the answer is late

/** An answer on the page. `update` draws the answer anew, at most once a frame. */
export class AnswerView {
  #app;
  #message;
  #column;
  #isEditing = false;
  #frame = null;
  #drawnMs = 0;
  #costMs = 0;
  #parts = { head: h("div"), body: h("div", { class: "answer-body" }), foot: h("div") };

  constructor(app, message, column) {
    this.#app = app;
    this.#message = message;
    this.#column = column;
    const label = `Answer${app.state.compare ? ` ${"AB"[column]}` : ""}`;
    this.element = h("section", { class: "answer", "aria-label": label }, Object.values(this.#parts));
    this.#draw();
  }

  get #answer() {
    return answerOf(this.#message, this.#column);
  }

  get #run() {
    return this.#app.runs.get(this.#answer) ?? null;
  }

  update() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      const isRunning = this.#run?.state === "running";
      if (isRunning && performance.now() - this.#drawnMs < this.#costMs * SLOWEST_MARKDOWN_SHARE) this.update();
      else this.#draw();
    });
  }

  #draw() {
    const began = performance.now();
    const run = this.#run;
    this.element.setAttribute("aria-busy", String(run?.state === "running"));
    const { state } = this.#app;
    const { model, server } = state.columns[this.#column];
    const name = `${"AB"[this.#column]} · ${model || this.#app.servers.find(server)?.name || server}`;
    this.#parts.head.replaceChildren(...(state.compare ? [h("p", { class: "column-name" }, name)] : []));
    this.#parts.body.replaceChildren(...this.#body(run));
    this.#parts.foot.replaceChildren(...this.#foot(run));
    this.#drawnMs = performance.now();
    this.#costMs = this.#drawnMs - began;
  }

  #body(run) {
    const answer = this.#answer;
    if (this.#isEditing) return [this.#editor(answer)];
    const choices = run?.answer.choices ?? [];
    if (choices.length > 1) {
      return choices.map((choice, index) => h("div", { class: "choice" }, h("p", { class: "column-name" }, `Choice ${index + 1}`), this.#choice(choice)));
    }
    const kept = { text: answer.content, reasoning: answer.reasoning ?? "", toolCalls: answer.tool_calls ?? [], tokens: choices[0]?.tokens ?? [] };
    return this.#choice(kept);
  }

  #choice({ text, reasoning, toolCalls, tokens }) {
    const parts = [];
    if (reasoning) {
      parts.push(h("details", { class: "reasoning", open: true }, h("summary", {}, "Reasoning"), h("div", { class: "plain" }, reasoning)));
    }
    for (const call of toolCalls) parts.push(toolCallView(call));
    if (this.#app.state.tokens && tokens.length > 0) parts.push(tokenView(tokens, "Tokens of the answer"));
    else if (text && this.#app.state.mode === "chat") parts.push(h("div", { class: "markdown" }, renderMarkdown(text)));
    else if (text) parts.push(h("div", { class: "plain" }, text));
    if (text.length > MAX_MARKDOWN_CHARACTERS) parts.push(note("The answer is long, so its Markdown is not drawn."));
    return parts;
  }

  #editor(answer) {
    const onInput = (event) => {
      answer.content = event.target.value;
      grow(event.target);
      this.#app.store.touch();
    };
    const area = h("textarea", { "aria-label": "Text of the answer", rows: 3, on: { input: onInput } });
    area.value = answer.content;
    requestAnimationFrame(() => grow(area));
    return area;
  }

  #foot(run) {
    const parts = [];
    if (run !== null) parts.push(...runLines(run));
    const actions = h("div", { class: "actions" });
    if (!this.#app.isRunning) {
      if (this.#app.state.mode === "chat") actions.append(button(this.#isEditing ? "Done" : "Edit", () => this.#toggleEditor()));
      actions.append(button("Copy", () => copyText(this.#answer.content, "The answer", this.#app.say)));
      if (run !== null && canContinue(run)) {
        actions.append(button("Continue", () => this.#app.continueAnswer(this.#message, this.#column)));
      }
    }
    return [...parts, actions];
  }

  #toggleEditor() {
    this.#isEditing = !this.#isEditing;
    if (!this.#isEditing) this.#app.runs.delete(this.#answer); // its tokens and numbers are those of another text
    this.#draw();
    (this.element.querySelector("textarea") ?? this.element.querySelector(".actions button"))?.focus();
  }
}

function toolCallView(call) {
  let text = call.function?.arguments ?? "";
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // Arguments that still grow, or are no JSON, are shown as they came.
  }
  const name = h("code", {}, call.function?.name ?? "");
  return h("section", { class: "tool-call", "aria-label": "Tool call" }, h("p", {}, "Calls ", name, " with"), h("pre", { tabIndex: 0 }, text));
}

function runLines(run) {
  const lines = [];
  if (run.state === "running") lines.push(note(progressText(run)));
  if (run.error !== null) {
    const words = run.state === "broken" ? "The answer broke off. The text so far is kept. " : "There is no answer. ";
    lines.push(h("p", { class: "error", role: "alert" }, words + run.error));
  }
  if (run.state === "stopped") lines.push(note("You stopped the answer."));
  const metrics = metricsOf(run);
  if (metrics.length > 0) lines.push(pairsView(metrics));
  const timings = timingsOf(run);
  if (timings.length > 0) lines.push(h("details", {}, h("summary", {}, "Timings of the server"), pairsView(timings)));
  return lines;
}

function progressText(run) {
  const silent = performance.now() - run.heardMs;
  if (silent > SILENCE_MS) return `No sign of the server for ${Math.round(silent / 1000)} s. The connection is still open.`;
  return run.firstMs === null ? "Waiting for the first token." : "Answering.";
}

function pairsView(pairs) {
  return h("dl", { class: "metrics" }, pairs.map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))));
}

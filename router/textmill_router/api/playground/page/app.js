// Sends requests and keeps their runs: what the buttons of the page do.
import { buildRequest, draftMessage, hasDraft, whyNotReady } from "./requests.js";
import { newRun, perform } from "./runs.js";
import { assistantMessage } from "./state.js";

/** The actions of the page. `onRun` is called for each part of an answer, and `say` shows a sentence to the user. */
export class App {
  #aborts = new Set();

  constructor({ store, servers, presets, say }) {
    Object.assign(this, { store, servers, presets, say });
    this.parameters = null; // of /openapi.json, by mode; null until the document is there
    this.takesTimings = false;
    this.info = null; // of /info
    this.runs = new WeakMap(); // by answer
    this.invalid = new Map(); // sentences about texts of controls that are no values, by column and name
    this.output = null; // the message that answers the raw prompt
    this.onRun = () => {};
  }

  get state() {
    return this.store.state;
  }

  get isRunning() {
    return this.#aborts.size > 0;
  }

  /** Returns the columns that are asked: one, or both where answers are compared. */
  get columns() {
    return this.state.compare ? [0, 1] : [0];
  }

  async send() {
    if (!this.#isReady(this.#mistake() ?? whyNotReady(this.state))) return;
    if (this.state.mode !== "chat") {
      this.output = this.#newAnswer(); // to the raw prompt
      await this.#ask(this.output);
      return;
    }
    this.store.update(
      (state) => {
        if (hasDraft(state)) {
          state.messages.push(draftMessage(state));
          Object.assign(state, { draft: "", images: [] });
        } else {
          state.messages.length = state.messages.findLastIndex((message) => message.role !== "assistant") + 1;
        }
      },
      { canUndo: true },
    );
    await this.#answerConversation();
  }

  /** Drops what follows a turn, and lets the model answer from there. The turn of an assistant is dropped too. */
  async regenerate(index) {
    if (!this.#isReady(this.#mistake())) return;
    const end = this.state.messages[index].role === "assistant" ? index : index + 1;
    this.store.update((state) => (state.messages.length = end), { canUndo: true });
    await this.#answerConversation();
  }

  async continueAnswer(message, column) {
    const answer = message.answers[column];
    const isChat = this.state.mode === "chat";
    const index = this.state.messages.indexOf(message);
    const messages = isChat ? this.state.messages.slice(0, index) : null;
    const request = buildRequest(this.state, column, { continues: answer.content, messages, takesTimings: this.#times(column) });
    await this.#run([[column, answer, request, answer.content]]);
  }

  stop() {
    for (const abort of this.#aborts) abort.abort();
  }

  /** Returns what Send would send, without the wish for timings, on which no answer depends. */
  request(column) {
    return buildRequest(this.state, column);
  }

  /** The page's own server alone has said whether it takes the field. */
  #times(column) {
    return this.takesTimings && this.state.columns[column].server === "";
  }

  #mistake() {
    for (const [where, sentence] of this.invalid) {
      const [column, mode] = where.split(" ");
      if (mode === this.state.mode && this.columns.includes(Number(column))) return `Correct the parameter ${sentence}`;
    }
    return null;
  }

  /** Says why nothing can be sent now. `reason` may be null. */
  #isReady(reason) {
    const why = this.isRunning ? "Stop the answer first." : reason;
    if (why !== null) this.say(why);
    return why === null;
  }

  #newAnswer() {
    return assistantMessage(...this.columns.map(() => ({ content: "" })));
  }

  async #answerConversation() {
    const message = this.#newAnswer();
    const done = this.#ask(message, [...this.state.messages]);
    this.store.update((state) => state.messages.push(message));
    await done;
  }

  #ask(message, messages) {
    const request = (column) => buildRequest(this.state, column, { messages, takesTimings: this.#times(column) });
    return this.#run(this.columns.map((column) => [column, message.answers[column], request(column), ""]));
  }

  /** Performs requests side by side. Each entry is column, answer, request, and the text before the new text. */
  async #run(starts) {
    const runs = starts.map(async ([column, answer, request, before]) => {
      const { server } = this.state.columns[column];
      const root = this.servers.find(server)?.root;
      const abort = new AbortController();
      const run = newRun(this.state.mode);
      this.#aborts.add(abort);
      this.runs.set(answer, run);
      const call = {
        url: root + request.path,
        key: this.servers.keyOf(server),
        body: request.body,
        streams: request.body.stream === true || request.path === "/generate_stream",
        signal: abort.signal,
      };
      const onChange = () => {
        keep(answer, run, before);
        this.onRun(answer);
      };
      if (root === undefined) Object.assign(run, { state: "failed", error: `this browser does not know the server ${server}` });
      else await perform(run, call, onChange);
      this.#aborts.delete(abort);
      onChange();
    });
    this.say("Waiting for the answer.");
    this.store.update(() => {});
    await Promise.all(runs);
    this.store.update(() => {});
    this.say(starts.map(([, answer]) => ending(this.runs.get(answer))).join(" "));
  }
}

/** Puts the first choice of a run into the answer that the conversation keeps. */
function keep(answer, run, before) {
  const [choice] = run.answer.choices;
  if (!choice) return;
  answer.content = before + choice.text;
  if (choice.reasoning) answer.reasoning = choice.reasoning;
  if (choice.toolCalls.length > 0) answer.tool_calls = choice.toolCalls;
}

function ending(run) {
  if (run.state === "done") return "The answer is complete.";
  return run.state === "stopped" ? "Stopped." : `The answer ${run.state === "broken" ? "broke" : "failed"}: ${run.error}`;
}

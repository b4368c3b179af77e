// The prompt as the model reads it, with its tokens and, on demand, their log-probabilities.
import { legacyTokens } from "./answers.js";
import { button, h } from "./dom.js";
import { sendForJson } from "./network.js";
import { buildRequest, NUM_ALTERNATIVES } from "./requests.js";
import { tokenView } from "./token_view.js";

export class PromptView {
  #app;
  #tokens = []; // of /chat_tokenize or /tokenize: {id, text}
  #result = h("div");
  #probabilities = null;

  constructor(app, element) {
    this.#app = app;
    this.#probabilities = button("Show log-probabilities", () => this.#showProbabilities(), { disabled: true });
    const show = button("Show prompt and tokens", () => this.#showPrompt());
    element.append(h("summary", {}, "The prompt that the model reads"), h("div", { class: "actions" }, show, this.#probabilities), this.#result);
  }

  async #showPrompt() {
    this.#probabilities.disabled = true;
    await this.#guarded(async () => {
      const { text, tokens } = this.#app.state.mode === "chat" ? await this.#chatPrompt() : await this.#rawPrompt();
      this.#tokens = tokens;
      const shown = tokens.map(({ id, text: word }) => ({ id, text: word, logprob: null, alternatives: [] }));
      this.#result.replaceChildren(
        h("p", {}, `${tokens.length} tokens`),
        h("pre", { class: "prompt-text", tabIndex: 0, "aria-label": "Text of the prompt" }, text),
        tokenView(shown, "Tokens of the prompt"),
      );
      this.#probabilities.disabled = tokens.length === 0;
    });
  }

  async #chatPrompt() {
    const { state } = this.#app;
    const answer = await this.#ask("/chat_tokenize", buildRequest({ ...state, stream: false, tokens: false }, 0).body);
    return { text: answer.templated_text, tokens: answer.tokenize_response };
  }

  async #rawPrompt() {
    const { prompt } = this.#app.state;
    return { text: prompt, tokens: await this.#ask("/tokenize", { inputs: prompt }) };
  }

  /** The ids of the prompt go to /v1/completions, which shows a prompt's log-probabilities with `echo`. */
  async #showProbabilities() {
    await this.#guarded(async () => {
      const body = { prompt: this.#tokens.map((token) => token.id), echo: true, logprobs: NUM_ALTERNATIVES, max_tokens: 0 };
      const answer = await this.#ask("/v1/completions", { model: this.#app.state.columns[0].model || "tgi", ...body });
      const tokens = legacyTokens(answer.choices[0].logprobs).map((token, place) => ({ ...token, id: this.#tokens[place]?.id }));
      const sum = tokens.reduce((total, token) => total + (token.logprob ?? 0), 0);
      const counted = tokens.filter((token) => token.logprob !== null).length;
      const perplexity = counted > 0 ? `; perplexity ${Math.exp(-sum / counted).toPrecision(4)}` : "";
      this.#result.replaceChildren(
        h("p", {}, `${tokens.length} tokens; log-probability ${sum.toFixed(3)}${perplexity}`),
        tokenView(tokens, "Tokens of the prompt with probabilities"),
      );
    });
  }

  #ask(path, body) {
    const { server } = this.#app.state.columns[0];
    return sendForJson(this.#app.servers.find(server)?.root + path, { key: this.#app.servers.keyOf(server), body });
  }

  async #guarded(work) {
    this.#result.setAttribute("aria-busy", "true");
    try {
      await work();
    } catch (error) {
      const hint = error.status === 404 ? " This server cannot show prompts." : "";
      this.#result.replaceChildren(h("p", { class: "error", role: "alert" }, error.message + hint));
    }
    this.#result.removeAttribute("aria-busy");
  }
}

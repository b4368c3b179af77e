// The state becomes the request that is sent, and that the code view shows.
import { answerOf, contentOf } from "./state.js";

export const MODE_OF_PATH = {
  "/v1/chat/completions": "chat",
  "/chat_tokenize": "chat",
  "/v1/completions": "completions",
  "/generate": "generate",
  "/generate_stream": "generate",
};
export const NUM_ALTERNATIVES = 5; // of each token in the token view; the most that a server allows unless told otherwise

export function hasDraft(state) {
  return state.draft.trim() !== "" || state.images.length > 0;
}

export function draftMessage(state) {
  return { role: "user", content: contentOf(state.draft, state.images) };
}

/** Returns the messages that Send sends: with the draft, or else up to the last that is no answer. */
export function pendingMessages(state) {
  if (hasDraft(state)) return [...state.messages, draftMessage(state)];
  const end = state.messages.findLastIndex((message) => message.role !== "assistant");
  return state.messages.slice(0, end + 1);
}

/** Returns messages in the form of the chat route, with the answers that one column has given. */
export function apiMessages(messages, column) {
  return messages.map((message) => {
    if (message.role !== "assistant") return { ...message };
    const { content, tool_calls } = answerOf(message, column);
    return tool_calls ? { role: "assistant", content: content || null, tool_calls } : { role: "assistant", content };
  });
}

/**
 * Returns `{path, body}` of the request of one column: the changed parameters, and what the page needs to show counts,
 * timings and tokens. `continues` is the text of a cut answer. `messages` may stand for the pending messages.
 */
export function buildRequest(state, column, { continues = null, takesTimings = false, messages = null } = {}) {
  const { model, parameters } = state.columns[column];
  const given = structuredClone(parameters[state.mode]);
  const timings = takesTimings ? { textmill: { timings: true } } : {};
  if (state.mode === "generate") return generateRequest(state, given, continues, timings);
  const body = { model: model || "tgi" };
  if (state.mode === "chat") {
    body.messages = apiMessages(messages ?? pendingMessages(state), column);
    if (continues !== null) {
      body.messages.push({ role: "assistant", content: continues });
      Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    }
  } else {
    body.prompt = state.prompt + (continues ?? "");
  }
  Object.assign(body, given);
  if (state.tokens && state.mode === "chat") {
    body.logprobs = true;
    body.top_logprobs ??= NUM_ALTERNATIVES;
  } else if (state.tokens) {
    body.logprobs ??= NUM_ALTERNATIVES;
  }
  if (state.stream) {
    body.stream = true;
    body.stream_options = { include_usage: true, ...given.stream_options };
  } else {
    delete body.stream_options; // which the server takes for streams alone
  }
  return { path: state.mode === "chat" ? "/v1/chat/completions" : "/v1/completions", body: { ...body, ...timings } };
}

function generateRequest(state, given, continues, timings) {
  const parameters = { ...given, details: true };
  if (state.tokens) parameters.top_n_tokens ??= NUM_ALTERNATIVES;
  const path = state.stream ? "/generate_stream" : "/generate";
  return { path, body: { inputs: state.prompt + (continues ?? ""), parameters, ...timings } };
}

/** Returns why nothing can be sent now, or null. */
export function whyNotReady(state) {
  if (state.mode !== "chat") return state.prompt === "" ? "Write a prompt first." : null;
  return pendingMessages(state).length === 0 ? "Write a message first." : null;
}

// The state that the page keeps, exports and puts into links.

export const MODES = ["chat", "completions", "generate"];
export const ROLES = ["system", "user", "assistant", "tool"];
export const OWN_SERVER = ""; // the id of the server that serves this page

/** Returns a new state: an empty conversation for the page's own server. */
export function newState() {
  return {
    version: 1,
    mode: "chat",
    messages: [],
    draft: "",
    images: [], // addresses of the images of the draft
    prompt: "",
    stream: true,
    compare: false,
    tokens: false,
    columns: [newColumn(), newColumn()],
  };
}

function newColumn() {
  return { server: OWN_SERVER, model: "", parameters: { chat: {}, completions: {}, generate: {} } };
}

/** Returns the text of a message's content, which is a text or a list of parts. */
export function textOf(content) {
  if (typeof content === "string") return content;
  return content.filter((part) => part.type === "text").map((part) => part.text).join("");
}

export function imagesOf(content) {
  return typeof content === "string" ? [] : content.filter((part) => part.type === "image_url").map((part) => part.image_url.url);
}

/** Returns a content with a text and images: a text alone where there are no images. */
export function contentOf(text, images) {
  if (images.length === 0) return text;
  return [{ type: "text", text }, ...images.map((url) => ({ type: "image_url", image_url: { url } }))];
}

/** Returns the answer of a message to one column. A message that the user wrote has one answer for all columns. */
export function answerOf(message, column) {
  return message.answers[column] ?? message.answers.find((answer) => answer !== null) ?? { content: "" };
}

/** Returns a message of the assistant. `answers` has one entry for each column; null is no answer yet. */
export function assistantMessage(...answers) {
  return { role: "assistant", answers };
}

/**
 * Returns a state from JSON that a user or a link brings. Throws an Error that names the first part of another form.
 * Parts that are absent get their values from a new state, and unknown parts are dropped.
 */
export function readState(value) {
  if (!isObject(value)) throw new Error("the state must be a JSON object");
  if (value.version !== undefined && value.version !== 1) {
    throw new Error(`the state has version ${JSON.stringify(value.version)}, this page reads version 1`);
  }
  const state = newState();
  for (const name of ["draft", "prompt"]) take(state, value, name, "string");
  for (const name of ["stream", "compare", "tokens"]) take(state, value, name, "boolean");
  if (value.images !== undefined) {
    if (!Array.isArray(value.images) || !value.images.every((image) => typeof image === "string")) {
      throw new Error("images must be a list of addresses");
    }
    state.images = [...value.images];
  }
  if (value.mode !== undefined) {
    if (!MODES.includes(value.mode)) throw new Error(`mode must be one of ${MODES.join(", ")}`);
    state.mode = value.mode;
  }
  if (value.messages !== undefined) {
    if (!Array.isArray(value.messages)) throw new Error("messages must be a list");
    state.messages = value.messages.map(readMessage);
  }
  if (value.columns !== undefined) {
    if (!Array.isArray(value.columns) || value.columns.length > 2) throw new Error("columns must be a list of one or two");
    value.columns.forEach((column, index) => readColumn(state.columns[index], column, index));
  }
  return state;
}

function readColumn(column, value, index) {
  if (!isObject(value)) throw new Error(`columns[${index}] must be an object`);
  for (const name of ["server", "model"]) take(column, value, name, "string");
  for (const mode of MODES) {
    const given = value.parameters?.[mode];
    if (given === undefined) continue;
    if (!isObject(given)) throw new Error(`columns[${index}].parameters.${mode} must be an object`);
    column.parameters[mode] = { ...given };
  }
}

function readMessage(value, index) {
  if (!isObject(value) || typeof value.role !== "string") throw new Error(`messages[${index}] must have a role`);
  if (value.role === "assistant" && Array.isArray(value.answers)) {
    return assistantMessage(...value.answers.map((answer) => (answer === null ? null : readAnswer(answer))));
  }
  return readApiMessage(value);
}

/** Returns a message of the page from a message as the chat route takes it. */
export function readApiMessage(value) {
  if (value.role === "assistant") return assistantMessage(readAnswer(value));
  const message = { role: value.role, content: value.content ?? "" };
  if (typeof message.content !== "string" && !Array.isArray(message.content)) {
    throw new Error("the content of a message must be a text or a list of parts");
  }
  if (typeof value.tool_call_id === "string") message.tool_call_id = value.tool_call_id;
  if (typeof value.name === "string") message.name = value.name;
  return message;
}

function readAnswer(value) {
  if (!isObject(value)) throw new Error("an answer must be an object");
  const answer = { content: typeof value.content === "string" ? value.content : "" };
  const reasoning = value.reasoning ?? value.reasoning_content;
  if (typeof reasoning === "string" && reasoning !== "") answer.reasoning = reasoning;
  if (Array.isArray(value.tool_calls) && value.tool_calls.length > 0) answer.tool_calls = value.tool_calls;
  return answer;
}

function take(target, value, name, type) {
  if (value[name] === undefined) return;
  if (typeof value[name] !== type) throw new Error(`${name} must be a ${type}`);
  target[name] = value[name];
}

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// A request of /docs becomes a state of the page.
import { MODE_OF_PATH } from "./requests.js";
import { newState, readApiMessage } from "./state.js";

/** Returns the state that sends a request with JSON text as its body. Throws an Error with a reason. */
export function stateOfRequest({ path, body }) {
  const mode = MODE_OF_PATH[path];
  if (mode === undefined) throw new Error(`the playground does not send requests to ${path}`);
  let given;
  try {
    given = JSON.parse(body);
  } catch (error) {
    throw new Error(`the body of the request is not JSON: ${error.message}`);
  }
  const state = newState();
  state.mode = mode;
  state.stream = mode === "generate" ? path === "/generate_stream" : given.stream === true;
  const column = state.columns[0];
  if (mode === "generate") {
    state.prompt = textOf(given.inputs, "inputs");
    column.parameters.generate = present(given.parameters ?? {});
    return state;
  }
  const { model, messages, prompt, stream: _stream, ...parameters } = given;
  if (typeof model === "string") column.model = model;
  column.parameters[mode] = present(parameters);
  if (mode === "chat") state.messages = (messages ?? []).map(readApiMessage);
  else state.prompt = textOf(prompt, "prompt");
  return state;
}

function textOf(value, name) {
  if (typeof value === "string") return value;
  throw new Error(`the playground sends one text as ${name}`);
}

function present(parameters) {
  return Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== null));
}

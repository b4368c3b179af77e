// One request from its start to its end, with its times.
import { addEvent, addWhole, newAnswer, ServerError } from "./answers.js";
import { CallError, eventsOf, send } from "./network.js";

/** Returns a run that has not begun. The run ends as done, stopped (by the user), broken (in the middle) or failed. */
export function newRun(mode) {
  return {
    mode,
    state: "waiting",
    answer: newAnswer(),
    error: null,
    startMs: null,
    firstMs: null,
    endMs: null,
    heardMs: null, // when the last bytes came, a comment that keeps the stream alive counts too
  };
}

/** Sends the request and fills the run. `onChange` is called after each part of the answer. Never throws. */
export async function perform(run, { url, key, body, streams, signal }, onChange, clock = () => performance.now()) {
  run.state = "running";
  run.startMs = run.heardMs = clock();
  onChange();
  try {
    const response = await send(url, { key, body, signal });
    if (streams) await readStream(run, response, onChange, clock);
    else addWhole(run.answer, run.mode, await response.json());
    if (!isWhole(run.answer)) throw new CallError("broken", "the server ended the stream before the end of the answer");
    run.state = "done";
  } catch (error) {
    settle(run, error);
  }
  run.endMs = clock();
  onChange();
}

async function readStream(run, response, onChange, clock) {
  for await (const event of eventsOf(response)) {
    run.heardMs = clock();
    if (event.data !== undefined) {
      addEvent(run.answer, run.mode, event.data);
      if (run.firstMs === null && hasText(run.answer)) run.firstMs = run.heardMs;
    }
    onChange();
  }
}

/** Some servers leave out the last word of a stream, [DONE]. */
function isWhole({ isComplete, choices }) {
  return isComplete || (choices.length > 0 && choices.every(({ finish }) => finish !== null));
}

function settle(run, error) {
  if (error.name === "AbortError") {
    run.state = "stopped";
    return;
  }
  const hasBegun = hasText(run.answer);
  run.state = hasBegun ? "broken" : "failed";
  const isKnown = error instanceof CallError || error instanceof ServerError;
  run.error = isKnown ? error.message : `the answer cannot be read: ${error.message}`;
}

function hasText({ choices }) {
  return choices.some(({ text, reasoning, toolCalls, tokens }) => text || reasoning || toolCalls.length || tokens.length);
}

/** Whether the model can go on with the text of this run: the answer was cut by a limit, the user or the network. */
export function canContinue(run) {
  const [choice] = run.answer.choices;
  if (!choice || choice.text === "" || choice.toolCalls.length > 0 || run.answer.choices.length > 1) return false;
  return run.state === "stopped" || run.state === "broken" || (run.state === "done" && choice.finish === "length");
}

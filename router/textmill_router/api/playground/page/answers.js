// An answer grows from the events of a stream, or is read from a whole answer, in each of the three dialects.

/** Returns an answer without text. `isComplete` says that the server has said the last word. */
export function newAnswer() {
  return { choices: [], usage: null, timings: null, isComplete: false };
}

function choiceAt(answer, index) {
  while (answer.choices.length <= index) {
    answer.choices.push({ text: "", reasoning: "", toolCalls: [], tokens: [], finish: null });
  }
  return answer.choices[index];
}

/** Adds an event of a stream, from its text. Throws ServerError for an event that tells an error. */
export function addEvent(answer, mode, data) {
  if (data === "[DONE]") {
    answer.isComplete = true;
    return;
  }
  const event = JSON.parse(data);
  throwIfError(event);
  if (mode === "generate") addGenerateEvent(answer, event);
  else addChunk(answer, mode, event);
}

export function addWhole(answer, mode, body) {
  throwIfError(body);
  if (mode === "generate") {
    for (const [index, one] of (Array.isArray(body) ? body : [body]).entries()) addGenerated(answer, index, one);
  } else {
    for (const choice of body.choices ?? []) addWholeChoice(answer, mode, choice);
    takeCounts(answer, body);
  }
  answer.isComplete = true;
}

/** An error that the server tells in its answer. */
export class ServerError extends Error {}

function throwIfError(body) {
  const error = body?.error;
  if (!error) return;
  throw new ServerError(typeof error === "string" ? error : (error.message ?? JSON.stringify(error)));
}

function takeCounts(answer, body) {
  if (body.usage) answer.usage = readUsage(body.usage);
  const timings = body.timings ?? body.textmill?.timings;
  if (timings) answer.timings = timings;
}

function readUsage(usage) {
  return {
    input: usage.prompt_tokens ?? null,
    output: usage.completion_tokens ?? null,
    cached: usage.prompt_tokens_details?.cached_tokens ?? null,
  };
}

function addChunk(answer, mode, chunk) {
  for (const part of chunk.choices ?? []) {
    const choice = choiceAt(answer, part.index ?? 0);
    if (mode === "chat") {
      const delta = part.delta ?? {};
      choice.text += delta.content ?? "";
      choice.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
      for (const call of delta.tool_calls ?? []) addToolCall(choice.toolCalls, call);
      choice.tokens.push(...chatTokens(part.logprobs));
    } else {
      choice.text += part.text ?? "";
      choice.tokens.push(...legacyTokens(part.logprobs));
    }
    choice.finish = part.finish_reason ?? choice.finish;
  }
  takeCounts(answer, chunk);
}

function addToolCall(calls, part) {
  const index = part.index ?? calls.length;
  calls[index] ??= { id: part.id ?? `call_${index}`, type: "function", function: { name: "", arguments: "" } };
  const call = calls[index];
  if (part.id) call.id = part.id;
  call.function.name += part.function?.name ?? "";
  call.function.arguments += part.function?.arguments ?? "";
}

function addWholeChoice(answer, mode, part) {
  const choice = choiceAt(answer, part.index ?? 0);
  if (mode === "chat") {
    choice.text = part.message?.content ?? "";
    choice.reasoning = part.message?.reasoning_content ?? part.message?.reasoning ?? "";
    choice.toolCalls = part.message?.tool_calls ?? [];
    choice.tokens = chatTokens(part.logprobs);
  } else {
    choice.text = part.text ?? "";
    choice.tokens = legacyTokens(part.logprobs);
  }
  choice.finish = part.finish_reason ?? null;
}

function addGenerateEvent(answer, event) {
  const choice = choiceAt(answer, 0);
  if (event.token) {
    choice.tokens.push(nativeToken(event.token, event.top_tokens));
    if (!event.token.special) choice.text += event.token.text;
  }
  if (typeof event.generated_text === "string") {
    choice.text = event.generated_text;
    answer.isComplete = true;
  }
  if (event.details) {
    choice.finish = event.details.finish_reason;
    answer.usage = { input: event.details.input_length ?? null, output: event.details.generated_tokens, cached: null };
  }
  const timings = event.timings ?? event.details?.timings;
  if (timings) answer.timings = timings;
}

function addGenerated(answer, index, one) {
  const choice = choiceAt(answer, index);
  choice.text = one.generated_text;
  answer.timings = one.timings ?? one.details?.timings ?? null;
  if (!one.details) return;
  const { details } = one;
  choice.finish = details.finish_reason;
  choice.tokens = (details.tokens ?? []).map((token, place) => nativeToken(token, details.top_tokens?.[place]));
  const output = (answer.usage?.output ?? 0) + details.generated_tokens;
  answer.usage = { input: details.input_length ?? null, output, cached: null };
  for (const other of details.best_of_sequences ?? []) {
    const further = choiceAt(answer, answer.choices.length);
    further.text = other.generated_text;
    further.finish = other.finish_reason;
    further.tokens = other.tokens.map((token, place) => nativeToken(token, other.top_tokens?.[place]));
  }
}

// A token of the page is {text, logprob, alternatives: [{text, logprob}]}, where a logprob may be null.

function chatTokens(logprobs) {
  return (logprobs?.content ?? []).map((entry) => ({
    text: entry.token,
    logprob: entry.logprob,
    alternatives: (entry.top_logprobs ?? []).map(({ token, logprob }) => ({ text: token, logprob })),
  }));
}

/** Returns the tokens of the parallel lists of a completion's `logprobs`. */
export function legacyTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((text, place) => ({
    text,
    logprob: logprobs.token_logprobs?.[place] ?? null,
    alternatives: Object.entries(logprobs.top_logprobs?.[place] ?? {}).map(([other, logprob]) => ({ text: other, logprob })),
  }));
}

function nativeToken(token, top) {
  return {
    text: token.text,
    logprob: token.logprob,
    alternatives: (top ?? []).map(({ text, logprob }) => ({ text, logprob })),
  };
}

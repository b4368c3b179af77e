// The numbers of a run, as the page shows them.

/** Returns pairs of a name and a text: what the page measured and what the server counted. */
export function metricsOf(run) {
  const { usage } = run.answer;
  const pairs = [];
  const end = run.endMs ?? run.heardMs;
  if (run.firstMs !== null) pairs.push(["time to first token", seconds(run.firstMs - run.startMs)]);
  if (run.endMs !== null) pairs.push(["total time", seconds(run.endMs - run.startMs)]);
  const speed = tokensPerSecond(run, end);
  if (speed !== null) pairs.push(["tokens/s", speed.toFixed(speed < 10 ? 1 : 0)]);
  if (usage && usage.input !== null) pairs.push(["tokens in", String(usage.input)]);
  if (usage && usage.output !== null) pairs.push(["tokens out", String(usage.output)]);
  const cached = usage?.cached ?? run.answer.timings?.cached_tokens ?? null;
  if (cached !== null) pairs.push(["cached tokens", String(cached)]);
  const finishes = run.answer.choices.map((choice) => choice.finish).filter((finish) => finish !== null);
  if (finishes.length > 0) pairs.push(["finish reason", finishes.join(", ")]);
  return pairs;
}

const LEAST_STREAM_MS = 50; // a shorter answer came in one piece, so its speed counts from the start

/** Returns the output tokens per second, or null. */
export function tokensPerSecond(run, endMs) {
  const output = run.answer.usage?.output ?? null;
  if (output === null || run.startMs === null || endMs === null) return null;
  const isStream = run.firstMs !== null && endMs - run.firstMs >= LEAST_STREAM_MS;
  const [tokens, ms] = isStream ? [output - 1, endMs - run.firstMs] : [output, endMs - run.startMs];
  return tokens > 0 && ms > 0 ? (1000 * tokens) / ms : null;
}

/** Returns pairs of a name and a text of the server's own timings. */
export function timingsOf(run) {
  return Object.entries(run.answer.timings ?? {}).map(([name, value]) => [words(name), numberText(name, value)]);
}

function words(name) {
  return name.replace(/_(s|ms)$/, "").replaceAll("_", " ");
}

function numberText(name, value) {
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_ms")) return seconds(value);
  return name.endsWith("_s") ? seconds(1000 * value) : String(value);
}

function seconds(ms) {
  if (ms > 0 && ms < 10) return `${Number(ms.toPrecision(2))} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

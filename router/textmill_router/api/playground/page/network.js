// Calls to a server, with errors in words that say what to do.
import { EventParser } from "./sse.js";

/** A call failed. `kind` is unreachable, refused (with `status`) or broken (the answer has ended before its end). */
export class CallError extends Error {
  constructor(kind, message, status = 0) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

export function headersOf(key) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  return headers;
}

/** Sends a call and returns the response with a good status. Throws CallError; an abort throws as `fetch` does. */
export async function send(url, { key = "", body, signal } = {}) {
  const method = body === undefined ? "GET" : "POST";
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(url, { method, headers: headersOf(key), body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("unreachable", whyUnreachable(url, location));
  }
  if (response.ok) return response;
  throw new CallError("refused", await refusalText(response), response.status);
}

export async function sendForJson(url, options) {
  const response = await send(url, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("broken", `${url} did not answer with JSON`);
  }
}

/** Yields the events of a stream, `{data}` or `{comment}`. Throws CallError when the connection breaks. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      yield* parser.push(value);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("broken", "the connection broke in the middle of the answer");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (parser.isCut) throw new CallError("broken", "the connection ended in the middle of an event");
}

async function refusalText(response) {
  const text = await response.text().catch(() => "");
  let reason = text.slice(0, 500);
  try {
    const { error, message, detail } = JSON.parse(text);
    reason = (typeof error === "string" ? error : error?.message) ?? message ?? JSON.stringify(detail ?? text);
  } catch {
    // The answer is no JSON, so its text is the reason.
  }
  const wait = response.headers.get("retry-after");
  const later = wait === null ? "" : ` Try again after ${wait} s.`;
  const keyHint = response.status === 401 ? " Type the API key of this server in above." : "";
  return `${response.status}: ${reason || response.statusText}${later}${keyHint}`;
}

/** Returns why a browser shows a page no answer at all. */
export function whyUnreachable(url, place) {
  const target = new URL(url, place.href);
  if (target.origin === place.origin) return `${target.origin} does not answer: the server is down or the network is gone.`;
  if (place.protocol === "https:" && target.protocol === "http:") {
    return `This page came over https, so the browser does not let it ask ${target.origin} over http. Use an https address.`;
  }
  return (
    `${target.origin} did not answer, or it does not allow this page to read its answers (CORS). If it runs, let it allow ` +
    `the origin ${place.origin}: Textmill and TGI with --cors-allow-origin ${place.origin}, ` +
    `vLLM with --allowed-origins '["${place.origin}"]'.`
  );
}

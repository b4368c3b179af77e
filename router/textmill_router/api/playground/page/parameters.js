// The text of a control becomes the value that is sent, or a sentence about the mistake.
import { checkTools, checkResponseFormat } from "./json_checks.js";

/** Returns `{value}` or `{error}` for the text of a control. A blank text is `{value: undefined}`: not sent. */
export function parseParameter(parameter, text) {
  if (text.trim() === "") return { value: undefined };
  switch (parameter.kind) {
    case "integer":
    case "number":
      return parseNumber(parameter, text.trim());
    case "boolean":
      return { value: text === "true" };
    case "texts":
      return parseTexts(text);
    case "json":
      return parseJson(parameter, text);
    default:
      return { value: text };
  }
}

/** Returns the text from which `parseParameter` makes the value again. */
export function formatParameter(parameter, value) {
  if (value === undefined || value === null) return "";
  if (parameter.kind === "texts") return typeof value === "string" && !isJsonText(value) ? value : JSON.stringify(value);
  if (parameter.kind === "json") return JSON.stringify(value, null, 2);
  return String(value);
}

/** Returns the range in words, such as "0 to 1" or "more than 0", or "" where the document has none. */
export function rangeText({ minimum, maximum, excludesMinimum, excludesMaximum }) {
  const low = minimum === undefined || minimum <= -(2 ** 31) ? null : `${excludesMinimum ? "more than" : "at least"} ${minimum}`;
  const high = maximum === undefined || maximum >= 2 ** 31 - 1 ? null : `${excludesMaximum ? "less than" : "at most"} ${maximum}`;
  if (low !== null && high !== null && !excludesMinimum && !excludesMaximum) return `${minimum} to ${maximum}`;
  return [low, high].filter((part) => part !== null).join(" and ");
}

function parseNumber(parameter, text) {
  const value = Number(text);
  if (!Number.isFinite(value)) return { error: `wanted a number, found ${JSON.stringify(text)}` };
  if (parameter.kind === "integer" && !Number.isInteger(value)) return { error: `wanted a whole number, found ${text}` };
  const { minimum, maximum, excludesMinimum, excludesMaximum } = parameter;
  const isLow = minimum !== undefined && (excludesMinimum ? value <= minimum : value < minimum);
  const isHigh = maximum !== undefined && (excludesMaximum ? value >= maximum : value > maximum);
  if (isLow || isHigh) return { error: `wanted ${rangeText(parameter) || `${minimum} to ${maximum}`}, found ${text}` };
  return { value };
}

function parseTexts(text) {
  if (!isJsonText(text)) return { value: text };
  const value = JSON.parse(text);
  const isList = Array.isArray(value) && value.every((entry) => typeof entry === "string");
  return typeof value === "string" || isList ? { value } : { error: "wanted a text, or a JSON list of texts" };
}

function isJsonText(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "string" || Array.isArray(value);
  } catch {
    return false;
  }
}

const CHECKS = { tools: checkTools, response_format: checkResponseFormat };

function parseJson(parameter, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    // A word such as `auto` of tool_choice is meant as a text.
    if (/^[\w-]+$/.test(text.trim())) return { value: text.trim() };
    return { error: `not JSON: ${error.message}` };
  }
  const problem = CHECKS[parameter.name]?.(value);
  return problem ? { error: problem } : { value };
}

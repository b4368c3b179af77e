// What /openapi.json says about the parameters of the three routes that the page sends.

const SCHEMAS = { chat: "ChatRequest", completions: "CompletionRequest", generate: "GenerateParameters" };
// The page writes these fields itself.
const OWN_FIELDS = new Set(["messages", "prompt", "inputs", "model", "stream", "textmill"]);
const REFUSED = /^Not supported/;

/**
 * Returns the parameters of each mode, in the order of the document. The `kind` of a parameter is integer, number,
 * boolean, string, choice, texts (a text or a list of texts) or json.
 */
export function readParameters(document) {
  const schemas = document.components.schemas;
  const read = (name) =>
    Object.entries(schemas[name]?.properties ?? {})
      .filter(([field]) => !OWN_FIELDS.has(field))
      .map(([field, schema]) => parameterOf(field, schema));
  return Object.fromEntries(Object.entries(SCHEMAS).map(([mode, name]) => [mode, read(name)]));
}

/** Whether the server's chat and completion routes take `textmill: {timings: true}`. */
export function takesTimings(document) {
  return document.components.schemas.ChatRequest?.properties?.textmill !== undefined;
}

function parameterOf(name, schema) {
  const parts = (schema.anyOf ?? [schema]).filter((part) => part.type !== "null");
  const types = parts.map((part) => part.type);
  const number = parts.find((part) => part.type === "integer" || part.type === "number") ?? {};
  return {
    name,
    kind: kindOf(parts, types),
    values: parts[0]?.enum ?? [],
    minimum: number.minimum ?? number.exclusiveMinimum,
    maximum: number.maximum ?? number.exclusiveMaximum,
    excludesMinimum: number.exclusiveMinimum !== undefined,
    excludesMaximum: number.exclusiveMaximum !== undefined,
    default: schema.default ?? null,
    description: schema.description ?? "",
    isRefused: REFUSED.test(schema.description ?? ""),
  };
}

function kindOf(parts, types) {
  if (types.length === 1 && parts[0].enum) return "choice";
  if (types.length === 1 && ["integer", "number", "boolean", "string"].includes(types[0])) return types[0];
  if (types.length === 2 && types[0] === "string" && types[1] === "array") return "texts";
  return "json";
}

// Sentences about mistakes in `tools` and `response_format`.
import { isObject } from "./state.js";

/** Returns what is wrong with a list of tools, or null. */
export function checkTools(tools) {
  if (!Array.isArray(tools)) return "wanted a list of tools: [{\"type\": \"function\", \"function\": {\"name\": ...}}]";
  for (const [index, tool] of tools.entries()) {
    const where = `tools[${index}]`;
    if (!isObject(tool)) return `${where} must be an object`;
    if (tool.type !== undefined && tool.type !== "function") return `${where}.type must be "function"`;
    if (!isObject(tool.function)) return `${where}.function must be an object with a name`;
    const { name, parameters } = tool.function;
    if (typeof name !== "string" || name === "") return `${where}.function.name must be a text`;
    if (parameters !== undefined && parameters !== null && !isObject(parameters)) {
      return `${where}.function.parameters must be a JSON schema, which is an object`;
    }
  }
  return null;
}

export function checkResponseFormat(format) {
  if (!isObject(format)) return 'wanted an object such as {"type": "json_object"}';
  if (typeof format.type !== "string") return 'type is missing: "json_object", "json_schema", "json" or "regex"';
  if (format.type === "json_schema" && !isObject(format.json_schema?.schema ?? format.value)) {
    return 'json_schema.schema must be a JSON schema, which is an object';
  }
  if (format.type === "json" && !isObject(format.value) && typeof format.value !== "string") {
    return "value must be a JSON schema";
  }
  if (format.type === "regex" && typeof format.value !== "string") return "value must be a regular expression, as a text";
  return null;
}

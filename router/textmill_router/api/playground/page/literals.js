// Values as text of a shell, of Python and of JavaScript.

/** Returns a text as one word of a POSIX shell. */
export function shellText(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Returns a JSON value as a Python expression, with the lines after the first indented by `indent` blanks. */
export function python(value, indent = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "string") return pythonText(value);
  if (typeof value === "number") return String(value);
  const items = Array.isArray(value)
    ? value.map((one) => python(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${pythonText(name)}: ${python(one, indent + 4)}`);
  return laidOut(items, Array.isArray(value) ? "[]" : "{}", indent, 4);
}

/** Returns a JSON value as a JavaScript expression. */
export function javascript(value, indent = 0) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const items = Array.isArray(value)
    ? value.map((one) => javascript(one, indent + 2))
    : Object.entries(value).map(([name, one]) => `${javascriptName(name)}: ${javascript(one, indent + 2)}`);
  return laidOut(items, Array.isArray(value) ? "[]" : "{}", indent, 2);
}

export function javascriptName(name) {
  return /^[A-Za-z_$][\w$]*$/.test(name) ? name : JSON.stringify(name);
}

// JSON's escapes are Python's, but JSON writes a character beyond 16 bits as it is, as Python does.
function pythonText(text) {
  return JSON.stringify(text).replaceAll("\u007f", "\\x7f");
}

function laidOut(items, [open, close], indent, step) {
  const line = `${open}${items.join(", ")}${close}`;
  if (items.length === 0 || (line.length <= 80 - indent && !line.includes("\n"))) {
    return step === 2 && open === "{" && items.length > 0 ? `{ ${items.join(", ")} }` : line;
  }
  const inner = " ".repeat(indent + step);
  return `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

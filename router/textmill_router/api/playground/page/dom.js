// Builds elements. Text always becomes a text node, so no text is ever read as HTML.

/**
 * Returns an element. `properties` sets attributes, or properties where the value is no text; `on` holds listeners,
 * `data` holds data attributes. A child is a node or a text; null and false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "class") element.className = value;
    else if (typeof value === "string" || typeof value === "number") element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else element[name] = value;
  }
  element.append(...shown(children));
  return element;
}

const shown = (children) => children.flat().filter((child) => child !== null && child !== undefined && child !== false);

/** Returns a button that calls `onClick`. `key` lets the page find the button again after it is drawn anew. */
export function button(label, onClick, { key, title, ...more } = {}) {
  return h("button", { type: "button", title, data: key ? { key } : {}, on: { click: onClick }, ...more }, label);
}

/** Replaces the children of an element, and puts the focus back on the child with the key that had the focus. */
export function redraw(element, ...children) {
  const active = document.activeElement;
  const key = element.contains(active) ? active.dataset.key : undefined;
  const range = key !== undefined && "selectionStart" in active ? [active.selectionStart, active.selectionEnd] : null;
  element.replaceChildren(...shown(children));
  if (key === undefined) return;
  const again = [...element.querySelectorAll("[data-key]")].find((child) => child.dataset.key === key);
  again?.focus();
  if (again && range && typeof range[0] === "number") again.setSelectionRange(...range);
}

/** Makes a text area as high as its text. */
export function grow(area) {
  area.style.height = "auto";
  if (area.scrollHeight > 0) area.style.height = `${area.scrollHeight + 2}px`;
}

export const note = (...children) => h("p", { class: "note" }, ...children);

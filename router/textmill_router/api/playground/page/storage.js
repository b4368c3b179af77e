// What the browser keeps: servers and presets in the browser, the state and the page's own key in the tab alone.

const PREFIX = "textmill.";

/** Returns the JSON value under a name of one of the browser's stores, or `fallback`. Stores may be switched off. */
function read(store, name, fallback) {
  try {
    const text = globalThis[store].getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

function write(store, name, value) {
  try {
    globalThis[store].setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or switched off
  }
}

export const browserStore = {
  read: (name, fallback) => read("localStorage", name, fallback),
  write: (name, value) => write("localStorage", name, value),
};

/** A store that ends with the tab. */
export const tabStore = {
  read: (name, fallback) => read("sessionStorage", name, fallback),
  write: (name, value) => write("sessionStorage", name, value),
};

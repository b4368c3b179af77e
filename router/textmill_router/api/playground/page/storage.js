// Servers and presets are kept in the browser, the state and the page's own key in the tab alone.

/** Returns a store of JSON values. Where the browser has none, nothing is read and `write` returns false. */
function storeIn(area) {
  return {
    read(name, fallback) {
      try {
        return JSON.parse(globalThis[area].getItem(`textmill.${name}`)) ?? fallback;
      } catch {
        return fallback;
      }
    },
    write(name, value) {
      try {
        globalThis[area].setItem(`textmill.${name}`, JSON.stringify(value));
        return true;
      } catch {
        return false;
      }
    },
  };
}

export const browserStore = storeIn("localStorage");
export const tabStore = storeIn("sessionStorage");

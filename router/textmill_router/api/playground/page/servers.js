// The server of this page, and the servers that the user has added.
import { CallError, sendForJson } from "./network.js";
import { OWN_SERVER } from "./state.js";

/** Returns the root of a server, without `/v1`, from the base URL that a user types. */
export function rootOf(text) {
  let url;
  try {
    url = new URL(text.trim());
  } catch {
    throw new Error("wanted an address such as http://127.0.0.1:8000/v1");
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") throw new Error("the address must begin with http:// or https://");
  if (url.username || url.password) throw new Error("put the key into its own field, not into the address");
  return (url.origin + url.pathname).replace(/\/+$/, "").replace(/\/v1$/, "");
}

/** The list of servers. `own` is the root of the page's own server; stores have `read` and `write`. */
export class Servers {
  #own;
  #browser;
  #tab;
  #models = new Map(); // promises of the models, by server id

  constructor(own, browserStore, tabStore) {
    this.#own = own;
    this.#browser = browserStore;
    this.#tab = tabStore;
  }

  /** Returns the servers as `{id, name, root}`, first the page's own. */
  list() {
    return [{ id: OWN_SERVER, name: "this server", root: this.#own }, ...this.#added()];
  }

  /** Returns the server with the id, or undefined for a server of another browser. */
  find(id) {
    return this.list().find((server) => server.id === id);
  }

  keyOf(id) {
    return id === OWN_SERVER ? this.#tab.read("key", "") : (this.#added().find((server) => server.id === id)?.key ?? "");
  }

  /** Keeps the key of the page's own server, in the tab alone. */
  setOwnKey(key) {
    this.#tab.write("key", key);
    this.#models.delete(OWN_SERVER);
  }

  /** Adds a server, or replaces the server of that address. Returns its id. */
  add({ name, address, key }) {
    const root = rootOf(address);
    const others = this.#added().filter((server) => server.root !== root);
    const entry = { id: root, name: name.trim() || root.replace(/^https?:\/\//, ""), root, key: key.trim() };
    if (!this.#browser.write("servers", [...others, entry])) throw new Error("this browser keeps no data for the page");
    this.#models.delete(root);
    return root;
  }

  /** Returns the added servers without their keys. */
  toFile() {
    return this.#added().map(({ name, root }) => ({ name, address: root }));
  }

  /** Adds the servers of a file. A known server keeps its key. Throws an Error for what is no server. */
  take(servers) {
    for (const { name, address } of servers) this.add({ name: `${name}`, address, key: this.keyOf(rootOf(address)) });
  }

  remove(id) {
    this.#browser.write("servers", this.#added().filter((server) => server.id !== id));
    this.#models.delete(id);
  }

  /** Returns the entries of /v1/models of a server, asked once. Throws CallError. */
  models(id) {
    if (!this.#models.has(id)) {
      const asked = this.#askModels(id);
      this.#models.set(id, asked);
      asked.catch(() => this.#models.delete(id));
    }
    return this.#models.get(id);
  }

  async #askModels(id) {
    const server = this.find(id);
    if (server === undefined) throw new CallError("unreachable", `this browser does not know the server ${id}: add the server`);
    const { data } = await sendForJson(`${server.root}/v1/models`, { key: this.keyOf(id) });
    if (!Array.isArray(data)) throw new CallError("broken", `${server.root}/v1/models has no list of models`);
    return data;
  }

  #added() {
    return this.#browser.read("servers", []);
  }
}

/** Whether an entry of /v1/models, or the answer of /info, says that the model reads images. */
export function takesImages(model, info) {
  const modalities = model?.input_modalities ?? model?.architecture?.input_modalities ?? [];
  return modalities.includes("image") || info?.model_pipeline_tag === "image-text-to-text";
}

// Attaches images to the draft by file, drop, paste or address, where the model reads images.
import { button, h } from "./dom.js";
import { imageView } from "./conversation_view.js";

export class ImageControl {
  #app;
  #isShown = false;

  constructor(app, element, area) {
    this.#app = app;
    this.element = element;
    for (const type of ["drop", "paste"]) area.addEventListener(type, (event) => this.#takeFrom(event, event.dataTransfer ?? event.clipboardData));
  }

  show(isShown) {
    this.#isShown = isShown;
    this.draw();
  }

  draw() {
    this.element.hidden = !this.#isShown;
    if (!this.#isShown) return;
    const { state, store } = this.#app;
    const address = h("input", { type: "url", placeholder: "https://", "aria-label": "Address of an image" });
    const file = h("input", { type: "file", accept: "image/*", multiple: true, on: { change: () => this.#add([...file.files]) } });
    const drop = (place) => store.update((now) => now.images.splice(place, 1));
    const addAddress = () => address.value && store.update((now) => now.images.push(address.value));
    this.element.replaceChildren(
      h("label", {}, "Attach images ", file),
      address,
      button("Add the address", addAddress),
      ...state.images.map((url, place) => h("div", {}, imageView(url), button("Remove", () => drop(place), { "aria-label": `Remove image ${place + 1}` }))),
    );
  }

  #takeFrom(event, transfer) {
    const files = [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!this.#isShown || files.length === 0) return;
    event.preventDefault();
    this.#add(files);
  }

  async #add(files) {
    const urls = await Promise.all(files.map(dataUrl));
    this.#app.store.update((state) => state.images.push(...urls));
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

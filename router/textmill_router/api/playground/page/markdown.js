// Text of a model as Markdown. The text is hostile: whatever it holds, it may only look like text.
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const TAGS = [
  "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
  "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
// A longer text is shown as it is, because a table of a million cells would stop the page.
export const MAX_MARKDOWN_CHARACTERS = 100_000;
export const MAX_ELEMENTS = 20_000;

const marked = new Marked({
  gfm: true,
  async: false,
  renderer: {
    // HTML of the model is shown as text. An image becomes a link, because its address would tell another host of the page.
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
});
const purifier = globalThis.DOMPurify;

/** Returns a fragment with the Markdown of a text, in which no script, no style, no image and no form is left. */
export function renderMarkdown(text) {
  if (text.length > MAX_MARKDOWN_CHARACTERS) return plain(text);
  const fragment = purifier.sanitize(marked.parse(text), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "start", "align"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  if (fragment.querySelectorAll("*").length > MAX_ELEMENTS) return plain(text);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of fragment.querySelectorAll("pre, table")) frame(block);
  return fragment;
}

/** Puts a wide block into a box that scrolls by itself, also by keys. */
function frame(block) {
  const box = document.createElement("div");
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", block.localName === "table" ? "table" : "code");
  block.replaceWith(box);
  box.append(block);
}

function plain(text) {
  const block = document.createElement("pre");
  block.className = "plain";
  block.textContent = text;
  return block;
}

function escape(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;").replaceAll("'", "&#39;");
}

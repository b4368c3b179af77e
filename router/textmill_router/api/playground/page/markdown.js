// Text of a model as Markdown. The text is hostile: whatever it holds, it may only look like text.
import { Lexer, Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const TAGS = [
  "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
  "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
// Bounds beyond which text is shown as it is, because hostile text could stop the page: the time of marked grows with the
// square of the markers of a paragraph, and a table may have a million cells.
export const MAX_MARKDOWN_CHARACTERS = 50_000;
const MAX_MARKERS = 300; // of a paragraph
const MAX_TAGS = 10_000;
const MAX_PARSE_MS = 200;

const marked = new Marked({
  gfm: true,
  async: false,
  renderer: {
    // HTML is shown as text. An image becomes a link, because its address would tell another host of the page.
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
});
const purifier = globalThis.DOMPurify;

/** Returns a fragment with the Markdown of a text, in which no script, no style, no image and no form is left. */
export function renderMarkdown(text) {
  const html = htmlOf(text);
  if (html === null) return plain(text);
  const fragment = purifier.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "start", "align"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of fragment.querySelectorAll("pre, table")) frame(block);
  return fragment;
}

function htmlOf(text) {
  if (text.length > MAX_MARKDOWN_CHARACTERS) return null;
  try {
    const html = marked.parser(tokensOf(text));
    return html.split("<").length > MAX_TAGS ? null : html;
  } catch {
    return null; // nested too deep
  }
}

/** Returns the tokens of a text. A paragraph with too many markers, or behind the limit of time, is plain text. */
function tokensOf(text) {
  const deadline = performance.now() + MAX_PARSE_MS;
  const lexer = new Lexer(marked.defaults);
  lexer.blockTokens(text.replaceAll(/\r\n?/g, "\n"), lexer.tokens);
  for (const { src, tokens } of lexer.inlineQueue) {
    const isCostly = (src.match(/[*_~`[]/g) ?? []).length > MAX_MARKERS || performance.now() > deadline;
    if (isCostly) tokens.push({ type: "text", raw: src, text: src });
    else lexer.inlineTokens(src, tokens);
  }
  return lexer.tokens;
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

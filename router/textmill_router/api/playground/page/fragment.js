// The state in the fragment of a link. A fragment is never sent, so no log of a server or a proxy has its text.

/** Returns the fragment `#state=...` of a JSON value. */
export async function encodeFragment(value) {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  return `#state=${toBase64Url(await pipe(bytes, new CompressionStream("deflate-raw")))}`;
}

/** Returns `{state}` or `{request}` of a fragment, or null for any other. Throws an Error for a link that was cut. */
export async function decodeFragment(fragment) {
  const found = /^#(state|request)=([\w-]+)$/.exec(fragment);
  if (found === null) return null;
  try {
    const bytes = fromBase64Url(found[2]);
    const text = found[1] === "state" ? await pipe(bytes, new DecompressionStream("deflate-raw")) : bytes;
    return { [found[1]]: JSON.parse(new TextDecoder().decode(text)) };
  } catch {
    throw new Error("the link is not whole: copy the link again");
  }
}

async function pipe(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

function toBase64Url(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function fromBase64Url(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
}

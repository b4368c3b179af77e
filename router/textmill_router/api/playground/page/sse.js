// Server-sent events, cut from a body that arrives in pieces of any size.

/** Collects pieces of text and returns the events that are complete. A comment is an event with `comment` alone. */
export class EventParser {
  #rest = "";

  /** Takes a piece of the body and returns the events that the piece completes: `{data}` or `{comment}`. */
  push(text) {
    this.#rest += text;
    const events = [];
    for (;;) {
      const end = /\r\n\r\n|\n\n|\r\r/.exec(this.#rest);
      if (end === null) return events;
      const block = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      const event = readBlock(block);
      if (event !== null) events.push(event);
    }
  }

  /** Whether the body has ended in the middle of an event. */
  get isCut() {
    return this.#rest.trim() !== "";
  }
}

function readBlock(block) {
  const data = [];
  const comments = [];
  for (const line of block.split(/\r\n|\n|\r/)) {
    if (line.startsWith(":")) comments.push(line.slice(1).trim());
    else if (line.startsWith("data:")) data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
  }
  if (data.length > 0) return { data: data.join("\n") };
  return comments.length > 0 ? { comment: comments.join("\n") } : null;
}

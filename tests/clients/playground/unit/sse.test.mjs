import assert from "node:assert/strict";
import test from "node:test";
import { EventParser } from "../../../../router/textmill_router/api/playground/page/sse.js";

function parse(pieces) {
  const parser = new EventParser();
  return { events: pieces.flatMap((piece) => parser.push(piece)), isCut: parser.isCut };
}

const BODY = 'data: {"a": 1}\n\n: keep-alive\n\ndata: two\r\ndata: lines\r\n\r\ndata:no blank\n\n';
const EVENTS = [{ data: '{"a": 1}' }, { comment: "keep-alive" }, { data: "two\nlines" }, { data: "no blank" }];

test("events are the same wherever the body is cut", () => {
  for (let cut = 0; cut <= BODY.length; cut += 1) {
    assert.deepEqual(parse([BODY.slice(0, cut), BODY.slice(cut)]), { events: EVENTS, isCut: false });
  }
  assert.deepEqual(parse([...BODY]).events, EVENTS);
});

test("a body that ends inside an event is cut", () => {
  assert.equal(parse(["data: whole\n\ndata: ha"]).isCut, true);
});

test("fields that are no data are dropped", () => {
  assert.deepEqual(parse(["event: x\nid: 3\n\ndata: y\nretry: 5\n\n"]).events, [{ data: "y" }]);
});

"""Images in the dialects: forms of a part, markdown on TGI's routes, tokens, usage, refusals with field and code."""

import asyncio
import base64
import io
import json
import os
import signal
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fakes.byte_tokenizer import BEGIN_ID
from tests.fakes.chat_calls import answer_of, ask, chunks_of, error_of
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.image_families import own_processor, row_id_of, write_image_family
from tests.fakes.image_hosts import Hosts, answer
from tests.fakes.pictures import picture, png_of_zeros, png_that_lies
from tests.fakes.running_router import RunningRouter

OPTIONS = FakeShardOptions(num_slots=8, num_blocks=512, vocab_size=300, media_kinds=("llava",))
PICTURES = tuple(picture(*size, seed=seed) for seed, size in enumerate(((70, 45), (31, 90), (20, 20))))
ROWS = 16  # of an image of the tiny Llava: 4 x 4 patches


def url_of(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


URLS = tuple(url_of(data) for data in PICTURES)


def image_part(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_family(tmp_path_factory.mktemp("images") / "model", "llava")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        body = b"<html>" if b"/page" in request else PICTURES[0]
        writer.write(answer(body, content_type="text/html" if b"/page" in request else "image/png"))

    found = Hosts(script, {"inside.com": [["10.0.0.1"]]})
    with found.listening_in_thread():
        yield found


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory, folder: Path, hosts: Hosts) -> Iterator[RunningRouter]:
    limits = {"max_images": 4, "max_image_bytes": 300_000, "max_total_tokens": 2048}
    made = RunningRouter(
        tmp_path_factory.mktemp("router"),
        OPTIONS,
        model=folder,
        fetcher=hosts.fetcher("a.com", "*.b.org", "inside.com"),
        **limits,
    )
    with made as running:
        yield running


@pytest.fixture(scope="module")
def client(router: RunningRouter) -> Iterator[httpx.Client]:
    with router.client() as opened:
        yield opened


def prompt_ids(router: RunningRouter) -> list[int]:
    """Return the prompt that the shard was given last."""
    assert router.shard.last_admit is not None
    return array("I", router.shard.last_admit.prompt_ids).tolist()


def own_ids(folder: Path, messages: list[dict[str, Any]]) -> list[int]:
    """Return the prompt that transformers' own processor makes of messages with pictures."""
    found = own_processor(folder, "llava").apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    ids: list[int] = np.asarray(found["input_ids"][0]).tolist()
    return ids


def own_image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "image": Image.open(io.BytesIO(data))}


def test_images_of_several_turns_make_the_prompt_of_transformers(
    router: RunningRouter, client: httpx.Client, folder: Path
) -> None:
    first, second, third = URLS
    found = answer_of(
        client,
        messages=[
            user(image_part(first), text_part("What is this?")),
            {"role": "assistant", "content": "A cat."},
            user(image_part(second), text_part("And these?"), image_part(third)),
        ],
    )
    expected = own_ids(
        folder,
        [
            user(own_image(PICTURES[0]), text_part("What is this?")),
            {"role": "assistant", "content": [text_part("A cat.")]},
            user(own_image(PICTURES[1]), text_part("And these?"), own_image(PICTURES[2])),
        ],
    )
    assert prompt_ids(router) == expected
    assert router.shard.last_admit is not None
    spans = router.shard.last_admit.media
    places = [place for span in spans for place in range(span.start, span.start + span.num_tokens)]
    assert places == [place for place, one in enumerate(expected) if one == row_id_of(folder)]
    assert [span.first_row for span in spans] == [0, 0, 0]
    assert len({span.digest for span in spans}) == 3
    usage = found["usage"]
    assert usage["prompt_tokens"] == len(expected)
    assert usage["prompt_tokens_details"]["image_tokens"] == 3 * ROWS


@pytest.mark.parametrize(
    "part",
    [
        image_part(URLS[0]),
        image_part(URLS[0], detail="auto"),
        image_part(URLS[0], detail="high"),
        image_part(URLS[0], detail=None),
        image_part(URLS[0], unknown=1),
        {"type": "image_url", "image_url": URLS[0]},
        {"type": "image_url", "image_url": URLS[0], "detail": "auto"},
        {"type": "input_image", "image_url": URLS[0], "detail": "high"},
        {**image_part(URLS[0]), "uuid": "x", "cache_control": {"type": "ephemeral"}},
        image_part("http://a.com/cat.png"),
        image_part("http://x.b.org/cat.png"),
        image_part(url_of(PICTURES[0], "jpeg")),  # the content tells
        image_part(URLS[0].replace("data:image/png", "DATA:image/PNG")),
    ],
)
def test_the_forms_of_a_part_are_one_image(router: RunningRouter, client: httpx.Client, part: dict[str, Any]) -> None:
    answer_of(client, messages=[user(image_part(URLS[0]), text_part("x"))])
    assert router.shard.last_admit is not None
    expected = router.shard.last_admit.media
    found = answer_of(client, messages=[user(part, text_part("x"))])
    assert router.shard.last_admit.media == expected
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == ROWS


def test_low_detail_is_another_image(router: RunningRouter, client: httpx.Client) -> None:
    digests = set()
    for detail in ("low", "high"):
        answer_of(client, messages=[user(image_part(URLS[0], detail=detail), text_part("x"))])
        assert router.shard.last_admit is not None
        digests.add(router.shard.last_admit.media[0].digest)
    assert len(digests) == 2


def test_a_stream_counts_images(client: httpx.Client) -> None:
    messages = [user(image_part(URLS[0]), text_part("x"))]
    chunks = chunks_of(ask(client, messages=messages, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["usage"]["prompt_tokens_details"]["image_tokens"] == ROWS


def test_a_chat_without_images_counts_none(client: httpx.Client) -> None:
    assert "image_tokens" not in answer_of(client)["usage"]["prompt_tokens_details"]


def test_choices_share_the_images_of_their_prompt(router: RunningRouter, client: httpx.Client) -> None:
    found = answer_of(client, messages=[user(image_part(URLS[0]))], n=2)
    assert len(found["choices"]) == 2
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == ROWS


def test_text_that_looks_like_an_image_stays_text_in_chats(
    router: RunningRouter, client: httpx.Client, folder: Path
) -> None:
    text = "![](data:image/png;base64,AAAA) and <image>"
    answer_of(client, messages=[user(image_part(URLS[1]), text_part(text))])
    assert router.shard.last_admit is not None
    assert len(router.shard.last_admit.media) == 1
    ids = prompt_ids(router)
    assert ids.count(row_id_of(folder)) == ROWS
    assert b"![](data:image/png;base64," in bytes(one for one in ids if one < 256)
    assert bytes(one for one in ids if one < 256).count(b"<image>") == 1


def test_markdown_on_the_native_routes_is_an_image(router: RunningRouter, client: httpx.Client, folder: Path) -> None:
    text = f"USER: ![]({URLS[0]})Now ![]({URLS[1]})both ![alt](http://a.com/x.png)"
    body = {"inputs": text, "parameters": {"max_new_tokens": 3, "details": True}}
    found = client.post("/generate", json=body)
    assert found.status_code == 200, found.text
    # The template writes `<image>` and a line break for an image.
    own = own_processor(folder, "llava")(
        text=["USER: <image>\nNow <image>\nboth ![alt](http://a.com/x.png)"],
        images=[Image.open(io.BytesIO(data)) for data in PICTURES[:2]],
    )
    expected = np.asarray(own["input_ids"][0]).tolist()
    assert prompt_ids(router) == expected
    assert int(found.headers["x-prompt-tokens"]) == len(expected)
    for route, further in (("/generate_stream", {}), ("/", {"stream": True})):
        events = client.post(route, json={**body, **further}).text.split("\n\n")
        assert f'"input_length":{len(expected)}' in events[-2]
        assert prompt_ids(router) == expected
    [whole] = client.post("/", json={"inputs": text, "parameters": {"max_new_tokens": 3}}).json()
    assert whole["generated_text"].startswith(text)


def test_tokenize_gives_the_expanded_prompt(router: RunningRouter, client: httpx.Client) -> None:
    text = f"Größe ![]({URLS[0]})x"
    client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1}})
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    assert [one["id"] for one in tokens] == prompt_ids(router)
    data, image = text.encode(), f"![]({URLS[0]})".encode()
    place = data.index(image)
    of_image = [one for one in tokens if one["text"] in ("<image>", "\n")]
    assert len(of_image) == ROWS + 1
    assert {(one["start"], one["stop"]) for one in of_image} == {(place, place + len(image))}
    # Both bytes of a letter have the place of the letter.
    others = dict.fromkeys((one["start"], one["stop"]) for one in tokens if one not in of_image and one["text"])
    assert b"".join(data[start:stop] for start, stop in others) == data.replace(image, b"")
    # vLLM's form counts the text that it gets.
    counted = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert counted["count"] == len(data)


def test_chat_tokenize_gives_the_expanded_prompt(router: RunningRouter, client: httpx.Client) -> None:
    body = {"messages": [user(image_part(URLS[0]), text_part("x"))], "max_tokens": 1}
    answer_of(client, **body)
    expected = prompt_ids(router)
    found = client.post("/chat_tokenize", json=body).json()
    assert [one["id"] for one in found["tokenize_response"]] == expected
    assert found["templated_text"].count("<image>") == ROWS
    data = found["templated_text"].encode()
    for one in found["tokenize_response"]:
        assert data[one["start"] : one["stop"]].decode(errors="replace") == one["text"]
    vllm = client.post("/tokenize", json=body).json()
    assert (vllm["tokens"], vllm["count"]) == (expected, len(expected))
    rendered = client.post("/v1/chat/completions/render", json=body).json()
    assert rendered["token_ids"] == expected


REFUSED: list[tuple[Any, str | None, str]] = [
    (image_part("data:image/png;base64,AA"), "invalid_image", "base64"),
    (image_part("data:image/png;base64,AAAA"), "invalid_image", "no PNG, JPEG, WEBP or GIF"),
    (image_part("data:text/plain;base64,AAAA"), "invalid_image", "data:image/<type>;base64,"),
    (image_part(url_of(picture(9, 9, kind="BMP"))), "invalid_image", "no PNG, JPEG, WEBP or GIF"),
    (image_part(url_of(PICTURES[0][:-2000])), "invalid_image", "cannot be decoded"),
    (image_part(url_of(picture(1, 300))), "invalid_image", "200 times the other"),
    (image_part(url_of(png_that_lies(4000, 4000))), "invalid_image", "cannot be decoded"),
    (image_part(url_of(png_of_zeros(6000, 6000))), "image_too_large", "6000 x 6000 pixels"),
    (image_part(url_of(bytes(400_000))), "image_too_large", "at most 300000 bytes"),
    (image_part("http://c.com/x.png"), "image_url_not_allowed", "--image-domains"),
    (image_part("http://inside.com/x.png"), "image_url_not_allowed", "--image-domains"),
    (image_part("file:///etc/passwd"), "image_url_not_allowed", "--image-domains"),
    (image_part("/etc/passwd"), "image_url_not_allowed", "--image-domains"),
    (image_part(""), "image_url_not_allowed", "--image-domains"),
    (image_part("http://a.com/page"), "image_fetch_failed", "another type"),
]


@pytest.mark.parametrize(("part", "code", "words"), REFUSED, ids=[f"{code}-{words}" for _, code, words in REFUSED])
def test_a_bad_image_is_422_with_field_and_code(
    router: RunningRouter, client: httpx.Client, part: Any, code: str, words: str
) -> None:
    messages = [user(text_part("a")), {"role": "assistant", "content": "b"}, user(image_part(URLS[0]), part)]
    error = error_of(ask(client, messages=messages), 422)
    assert (error["param"], error["code"]) == ("messages[2].content[1].image_url", code)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    streamed = error_of(ask(client, messages=messages, stream=True), 422)
    assert streamed == error
    native = client.post("/generate", json={"inputs": f"x ![]({part['image_url']['url']})"})
    assert native.status_code == 422
    assert native.json()["error_type"] == "validation"
    assert words in native.json()["error"]
    router.wait_until_free()


def test_a_bad_image_of_several_texts_is_told_by_its_text_and_number(client: httpx.Client) -> None:
    good, bad = f"a ![]({URLS[0]})", f"b ![]({URLS[0]}) ![](data:image/png;base64,AAAA)"
    native = client.post("/generate", json={"inputs": [good, bad]})
    assert native.status_code == 422
    assert "image 2 in `inputs[1]`: the image cannot be used" in native.json()["error"]
    error = error_of(client.post("/v1/completions", json={"prompt": [good, bad]}), 422)
    assert error["message"].startswith("image 2 in `prompt[1]`: the image cannot be used")
    assert (error["param"], error["code"]) == ("prompt[1]", "invalid_image")
    tokens = client.post("/tokenize", json={"inputs": bad})
    assert "image 2 in `inputs`: the image cannot be used" in tokens.json()["error"]


def test_under_openai_errors_a_bad_image_is_400_and_templates_never_see_the_data(tmp_path: Path, folder: Path) -> None:
    shown = "{% if p.type == 'image' %}<image>{{ p | tojson }}{% else %}{{ p.text }}{% endif %}"
    template = "{% for m in messages %}{% for p in m.content %}" + shown + "{% endfor %}{% endfor %}"
    (tmp_path / "config.json").write_text(json.dumps({"chat_template": template}))
    settings = {"v1_errors": "openai", "tokenizer_config_path": str(tmp_path / "config.json")}
    with RunningRouter(tmp_path, OPTIONS, model=folder, **settings) as router, router.client() as client:
        for part, code, _ in (REFUSED[0], REFUSED[7], REFUSED[9]):
            error = error_of(ask(client, messages=[user(part)]), 400)
            assert (error["param"], error["code"]) == ("messages[0].content[0].image_url", code)
        native = client.post("/generate", json={"inputs": "![](data:image/png;base64,AAAA)"})
        assert (native.status_code, native.json()["error_type"]) == (422, "validation")
        body = {"messages": [user(image_part(URLS[0], detail="low"), text_part("x"))]}
        found = client.post("/chat_tokenize", json=body).json()["templated_text"]
        assert found == "<image>" * ROWS + '{"type": "image", "image": true}x'


def test_markdown_of_images_is_text_for_a_model_of_text(tmp_path: Path) -> None:
    text = f"Look: ![]({URLS[0][:200]}) and ![](http://a.com/x.png)"
    with RunningRouter(tmp_path) as router, router.client() as client:
        found = client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 2}})
        assert found.status_code == 200, found.text
        assert prompt_ids(router) == [BEGIN_ID, *text.encode()]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url"}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": None}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": {}}, "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": 5}, "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": {"url": 5}}, "messages[0].content[0].image_url.url"),
        (image_part(URLS[0], detail="ultra"), "messages[0].content[0].image_url.detail"),
        ({"type": "input_image", "image_url": URLS[0], "detail": "ultra"}, "messages[0].content[0].detail"),
    ],
)
def test_a_part_of_another_shape_is_422_with_its_path(client: httpx.Client, part: Any, param: str) -> None:
    error = error_of(ask(client, messages=[user(part)]), 422)
    assert error["param"] == param


def test_more_images_than_allowed_are_422(client: httpx.Client) -> None:
    error = error_of(ask(client, messages=[user(*[image_part(URLS[0])] * 3), user(*[image_part(URLS[0])] * 2)]), 422)
    assert error["param"] == "messages[1].content[1].image_url"
    assert "at most 4 images (--max-images), found 5" in error["message"]


def test_parameters_come_before_images_and_images_before_the_budget(client: httpx.Client) -> None:
    bad = user(image_part("data:image/png;base64,AAAA"), text_part("x" * 3000))
    assert error_of(ask(client, messages=[bad], temperature=-1), 422)["param"] == "temperature"
    assert error_of(ask(client, messages=[bad]), 422)["code"] == "invalid_image"
    good = user(image_part(URLS[0]), text_part("x" * 3000))
    assert error_of(ask(client, messages=[good]), 422)["code"] == "context_length_exceeded"


def test_markdown_in_a_completion_is_an_image(router: RunningRouter, client: httpx.Client) -> None:
    text = f"USER: ![]({URLS[0]})What?"
    client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1}})
    expected = prompt_ids(router)
    body = {"prompt": text, "max_tokens": 3}
    found = client.post("/v1/completions", json={**body, "echo": True}).json()
    assert prompt_ids(router) == expected
    assert found["choices"][0]["text"] == f"{text}abc"
    assert found["usage"]["prompt_tokens_details"]["image_tokens"] == ROWS
    assert client.post("/v1/completions/render", json=body).json()[0]["token_ids"] == expected
    error = error_of(client.post("/v1/completions", json={**body, "prompt": "![](file:///x)"}), 422)
    assert (error["param"], error["code"]) == ("prompt", "image_url_not_allowed")
    error = error_of(client.post("/v1/completions", json={**body, "echo": True, "logprobs": 1}), 422)
    assert error["param"] == "echo"


@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/tokenize"])
def test_the_token_of_images_cannot_be_written(client: httpx.Client, route: str) -> None:
    body = {"prompt": "see <image>", "max_tokens": 1} if route.startswith("/v1") else {"inputs": "see <image>"}
    found = client.post(route, json=body)
    assert found.status_code == 422
    assert "<image>" in found.text


def test_token_ids_of_images_cannot_be_sent(client: httpx.Client, folder: Path) -> None:
    body = {"prompt": [65, row_id_of(folder)], "max_tokens": 1}
    assert "stands for an image" in error_of(client.post("/v1/completions", json=body), 422)["message"]


def test_a_cut_prompt_keeps_whole_images(router: RunningRouter, client: httpx.Client) -> None:
    text = f"some words before ![]({URLS[0]})after"
    whole = client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1}})
    assert whole.status_code == 200
    ids = prompt_ids(router)
    num_behind = ROWS + len("\nafter")
    cut = client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1, "truncate": num_behind}})
    assert cut.status_code == 200
    assert prompt_ids(router) == ids[-num_behind:]
    assert router.shard.last_admit is not None
    [span] = router.shard.last_admit.media
    assert (span.start, span.num_tokens) == (0, ROWS)
    parameters = {"max_new_tokens": 1, "truncate": num_behind - 1}
    refused = client.post("/generate", json={"inputs": text, "parameters": parameters})
    assert refused.status_code == 422
    assert "would cut an image" in refused.json()["error"]


def test_a_worker_killed_in_decode_harms_its_call_alone(router: RunningRouter, client: httpx.Client) -> None:
    images = router.service.open_backend().images
    assert images is not None
    pool = images._images._pool
    fresh = [user(image_part(url_of(picture(50, 40, seed=seed)))) for seed in (7, 8)]
    answer_of(client, messages=[fresh[0]])  # so that a worker is there
    pids = router.in_loop(lambda: list(pool.idle_pids))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # each stays in the middle of its image
    with ThreadPoolExecutor(4) as threads:
        lost = threads.submit(ask, client, messages=[fresh[1]])
        router.wait_until(lambda: len(pool.idle_pids) < len(pids), "a worker is at work")
        [busy] = set(pids) - set(router.in_loop(lambda: list(pool.idle_pids)))
        assert answer_of(client)["choices"]  # text goes on beside it
        assert answer_of(client, messages=[fresh[0]])["choices"]  # and so do images that are known
        for pid in pids:
            os.kill(pid, signal.SIGCONT if pid != busy else signal.SIGKILL)
        assert error_of(lost.result(), 422)["code"] == "invalid_image"
    assert answer_of(client, messages=[fresh[1]])["choices"]  # another try finds another worker
    router.wait_until_free()


def test_lists_of_models_tell_that_the_model_takes_images(client: httpx.Client) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert model["input_modalities"] == ["text", "image"]
    assert client.get("/info").json()["model_pipeline_tag"] == "image-text-to-text"


def test_bodies_with_images_may_be_large(client: httpx.Client, router: RunningRouter) -> None:
    assert router.service.payload_limit == 33_554_432
    found = client.post("/v1/chat/completions", json={"messages": [user(text_part("x" * 3_000_000))], "max_tokens": 1})
    assert error_of(found, 422)["code"] == "context_length_exceeded"


def test_hostile_images_harm_no_text_beside_them(router: RunningRouter, client: httpx.Client) -> None:
    def text_of_a_stream() -> str:
        chunks = chunks_of(ask(client, stream=True, max_tokens=200))
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    expected = text_of_a_stream()
    router.shard.step_s = 0.005
    try:
        with ThreadPoolExecutor(4) as threads:
            polite = [threads.submit(text_of_a_stream) for _ in range(2)]
            hostile = [threads.submit(ask, client, messages=[user(part)]) for part, _, _ in REFUSED]
            assert {call.result().status_code for call in hostile} == {422}
            assert [stream.result() for stream in polite] == [expected] * 2
    finally:
        router.shard.step_s = 0.0
    router.wait_until_free()

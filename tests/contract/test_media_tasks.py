"""Every task of images and audio over HTTP, in front of a shard whose numbers can be counted by hand."""

import base64
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import exp
from typing import Any

import httpx
import pytest

from tests.fakes.fake_row_shard import MASK, FakeRowShard, RowShardOptions, plain_logits
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

LABELS = ("cat", "dog", "bird", "fish", "cow", "horse")
KINDS = {
    "images": ("image-classification", RowShardOptions(heads=("labels",), labels=LABELS, media="image")),
    "objects": ("object-detection", RowShardOptions(heads=("boxes",), labels=LABELS, media="image")),
    "segments": (
        "image-segmentation",
        RowShardOptions(
            heads=("segments",), labels=LABELS, media="image", max_batch_files=1, subtasks=("panoptic", "semantic")
        ),
    ),
    "sounds": (
        "audio-classification",
        RowShardOptions(heads=("labels",), labels=LABELS, media="audio", problem_type="multi_label_classification"),
    ),
    "characters": (
        "automatic-speech-recognition",
        RowShardOptions(heads=("transcripts",), media="audio", max_batch_files=1),
    ),
    "speech": (
        "automatic-speech-recognition",
        RowShardOptions(
            heads=("transcripts",), media="audio", max_batch_files=1, languages=("en", "english", "de", "german")
        ),
    ),
}
FILE = b"\x89PNG and so on"  # the fake shard reads no format
SOFTMAX = "softmax"
BROKE = "Request failed during generation: "


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningRouter]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(task_router(tmp_path_factory.mktemp(kind), task, options))
            for kind, (task, options) in KINDS.items()
        }


@pytest.fixture(scope="module")
def clients(routers: dict[str, RunningRouter]) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(router.client()) for kind, router in routers.items()}


def coded(file: bytes) -> str:
    return base64.b64encode(file).decode()


def posted(client: httpx.Client, body: Any, path: str = "/", **headers: str) -> Any:
    """Send JSON, or bytes without a type, and return the answer."""
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, body: Any, path: str = "/", status: int = 422, **headers: str) -> tuple[str, str]:
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert isinstance(found["error"], str)
    return found["error_type"], found["error"]


def best(file: bytes, count: int, function: str = SOFTMAX) -> list[dict[str, Any]]:
    """Return the labels of a file by the formula of the fake shard and that of the function, written apart."""
    logits = plain_logits(file, len(LABELS))
    total = sum(exp(value) for value in logits)
    by_function = {
        SOFTMAX: [exp(value) / total for value in logits],
        "sigmoid": [1 / (1 + exp(-value)) for value in logits],
        "none": logits,
    }
    scores = by_function[function]
    order = sorted(range(len(LABELS)), key=lambda index: -scores[index])[:count]
    return [{"label": LABELS[index], "score": pytest.approx(scores[index], abs=1e-6)} for index in order]


@pytest.mark.parametrize("kind", ["images", "sounds"])
def test_labels_of_a_file(clients: dict[str, httpx.Client], kind: str) -> None:
    client = clients[kind]
    assert posted(client, FILE) == best(FILE, 5)
    assert posted(client, {"inputs": coded(FILE)}) == best(FILE, 5)
    more = {"top_k": 2, "function_to_apply": "sigmoid"}
    assert posted(client, {"inputs": coded(FILE), "parameters": more}) == best(FILE, 2, "sigmoid")
    assert posted(client, FILE, "/?top_k=2&function_to_apply=none&other=1") == best(FILE, 2, "none")
    assert posted(client, {"inputs": coded(FILE), "parameters": {"top_k": 100}}) == best(FILE, 6)


def test_unknown_field_of_the_address_is_logged_once(
    clients: dict[str, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="textmill_router.http.unknown_fields"):
        for _ in range(2):
            posted(clients["images"], FILE, "/?topk=2&top_k=1")
    assert [record.field for record in caplog.records] == ["topk"]  # type: ignore[attr-defined]


def test_a_list_gets_a_list_in_order(clients: dict[str, httpx.Client]) -> None:
    files = [b"one", b"two", b"three"]
    found = posted(clients["images"], {"inputs": [coded(file) for file in files], "parameters": {"top_k": 1}})
    assert found == [best(file, 1) for file in files]
    assert posted(clients["images"], {"inputs": [coded(FILE)]}) == [best(FILE, 5)]


@pytest.mark.parametrize(
    "kind",
    ["", "application/octet-stream", "application/x-www-form-urlencoded", "image/png", "audio/wav", "text/plain", "x"],
)
def test_bytes_are_a_file_whatever_type_is_said(clients: dict[str, httpx.Client], kind: str) -> None:
    assert posted(clients["images"], FILE, **({"content-type": kind} if kind else {})) == best(FILE, 5)


@pytest.mark.parametrize("kind", ["", "application/octet-stream", "application/x-www-form-urlencoded", "image/png"])
def test_a_body_that_begins_as_an_object_is_json_whatever_type_is_said(
    clients: dict[str, httpx.Client], kind: str
) -> None:
    body = b"\n " + json.dumps({"inputs": coded(FILE)}).encode()
    assert posted(clients["images"], body, **({"content-type": kind} if kind else {})) == best(FILE, 5)


def test_every_path_of_the_task(clients: dict[str, httpx.Client]) -> None:
    client = clients["images"]
    for path in (
        *("/", "/predict", "/invocations", "/models/a/b", "/pipeline/image-classification"),
        "/models/a/pipeline/image-classification",
    ):
        assert posted(client, FILE, path) == best(FILE, 5)
        assert posted(client, {"inputs": coded(FILE)}, path) == best(FILE, 5)
    instances = [{"inputs": coded(b"one")}, coded(b"two")]
    answer = posted(client, {"instances": instances}, "/vertex", **{"content-type": "application/json"})
    assert answer == {"predictions": [best(b"one", 5), best(b"two", 5)]}
    assert refused(client, FILE, "/pipeline/object-detection")[0] == "task"
    for path in ("/generate", "/embed", "/v1/embeddings", "/rerank"):
        assert "image-classification" in json.dumps(client.post(path, json={"inputs": "x"}).json())


def test_base64_is_read_as_clients_write_it(clients: dict[str, httpx.Client]) -> None:
    client = clients["images"]
    jpeg = b"\xff\xd8\xff\xe0 and more"
    assert coded(jpeg).startswith("/9j/")
    for text in (
        coded(jpeg),
        coded(jpeg).rstrip("="),
        "data:image/jpeg;base64," + coded(jpeg),
        "data:image/jpeg;charset=x;base64," + coded(jpeg),
        base64.encodebytes(jpeg * 20).decode(),
    ):
        file = jpeg * 20 if "\n" in text else jpeg
        assert posted(client, {"inputs": text}) == best(file, 5)
    long = b"0123456789" * 300_000  # is decoded in a thread, in pieces
    assert posted(client, {"inputs": coded(long)}) == best(long, 5)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"inputs": "https://example.org/a.png"}, "`inputs` is an address, and the server fetches nothing"),
        ({"inputs": ["aGk=", "file:///etc/passwd"]}, "`inputs[1]` is an address"),
        ({"inputs": "not base64!"}, "`inputs` must be a file in base64"),
        ({"inputs": ["aGk=", "ü"]}, "`inputs[1]` must be a file in base64"),
        ({"inputs": "data:image/png;base64,"}, "`inputs` is empty"),
        ({"inputs": ""}, "`inputs` is empty"),
        ({"inputs": []}, "`inputs` must hold at least one file, found an empty list"),
        ({"inputs": {"image": "aGk="}}, "`inputs`: expected `str | array`, got `object`"),
        ({"parameters": {}}, "`inputs` is missing"),
        ({"inputs": "aGk=", "parameters": {"top_k": 0}}, "`parameters.top_k` must be at least 1, found 0"),
        ({"inputs": "aGk=", "parameters": {"function_to_apply": "x"}}, "`parameters.function_to_apply`"),
        ({"inputs": coded(b"BAD file")}, "`inputs`: the file is bad"),
        ({"inputs": ["aGk=", coded(b"BAD file"), "aGk="]}, "`inputs[1]`: the file is bad"),
        (b"BAD file", "`inputs`: the file is bad"),
        (b"", "`inputs` is empty"),
    ],
    ids=str,
)
def test_what_is_no_file_is_refused_by_its_path(clients: dict[str, httpx.Client], body: Any, sentence: str) -> None:
    error_type, error = refused(clients["images"], body)
    assert error_type == "validation"
    assert sentence in error


def test_errors_of_bodies_and_addresses(clients: dict[str, httpx.Client]) -> None:
    client = clients["images"]
    form = client.post("/", files={"file": FILE})
    assert (form.status_code, form.json()["error_type"]) == (415, "unsupported_media_type")
    as_json = {"content-type": "application/json"}
    assert refused(client, FILE, status=400, **as_json)[0] == "invalid_json"
    assert refused(client, FILE, status=415, **{"content-encoding": "gzip"})[0] == "unsupported_media_type"
    assert "top_k" in refused(client, FILE, "/?top_k=many")[1]
    assert "`top_k` stands in the address" in refused(client, {"inputs": coded(FILE)}, "/?other=1&top_k=2")[1]
    assert "`top_k`: expected `int`, got `array`" in refused(client, FILE, "/?top_k=1&top_k=2")[1]
    too_many = {"inputs": ["aGk="] * 33}
    assert refused(client, too_many) == (
        "batch size exceeded",
        "`inputs` makes 33 rows, and a call has at most 32 (--max-task-rows); send less",
    )


def test_a_file_without_an_answer_is_named_in_its_list(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with task_router(tmp_path, task, options) as router, router.client() as client:
        assert isinstance(router.shard, FakeRowShard)
        files = {"inputs": [coded(b"one"), coded(b"two"), coded(b"three")]}
        router.shard.poison(lambda file: file == b"two")
        assert refused(client, files, status=424) == ("generation", f"{BROKE}`inputs[1]`: a score is not finite")
        assert refused(client, {"inputs": coded(b"two")}, status=424) == ("generation", f"{BROKE}a score is not finite")
        router.shard.poison(lambda file: False)
        router.shard.die_of(lambda file: file == b"three")
        error_type, error = refused(client, files, status=424)
        assert error_type == "generation"
        assert error.startswith(f"{BROKE}`inputs[2]`: the shard was lost twice with this row")


def test_a_body_above_the_limit_of_media_is_413(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    limits = {"media_payload_limit": 1000, "max_task_rows": 3}
    with task_router(tmp_path, task, options, **limits) as router, router.client() as client:
        error_type, error = refused(client, b"x" * 1001, status=413)
        assert error_type == "payload_too_large"
        assert "--media-payload-limit" in error
        assert refused(client, {"inputs": ["aGk="] * 4})[0] == "batch size exceeded"
        assert len(posted(client, {"inputs": ["aGk="] * 3})) == 3
        assert client.get("/info").json()["max_client_batch_size"] == 3


def test_a_text_task_keeps_its_own_limit(tmp_path: Any) -> None:
    limits = {"media_payload_limit": 9_000_000, "payload_limit": 100}
    with task_router(tmp_path, "feature-extraction", None, **limits) as router, router.client() as client:
        assert refused(client, {"inputs": "a " * 200}, status=413)[0] == "payload_too_large"


def test_objects_of_an_image(clients: dict[str, httpx.Client]) -> None:
    def box(label: int, score: float) -> dict[str, Any]:
        sides = {"xmin": label, "ymin": 10 + label, "xmax": 20 + label, "ymax": len(FILE)}
        return {"score": score, "label": LABELS[label], "box": sides}

    client = clients["objects"]
    assert posted(client, FILE) == [box(2, 0.75)]
    assert posted(client, FILE, "/?threshold=0.3") == [box(1, 0.5), box(2, 0.75)]
    body = {"inputs": [coded(FILE)] * 2, "parameters": {"threshold": 0.9}}
    assert posted(client, body) == [[], []]
    assert "from 0 to 1" in refused(client, {"inputs": coded(FILE), "parameters": {"threshold": 1.5}})[1]


def test_segments_of_an_image(clients: dict[str, httpx.Client]) -> None:
    client = clients["segments"]

    def segments(*scores: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"label": label, "mask": coded(MASK)} for label in ("cat", "bird")]
        if scores:
            found = [{**one, "score": pytest.approx(score)} for one, score in zip(found, scores, strict=True)]
        return found

    assert posted(client, FILE) == segments(0.9, 0.5)
    asked = {"threshold": 0.25, "mask_threshold": 0.75, "overlap_mask_area_threshold": 0.125, "subtask": "panoptic"}
    assert posted(client, {"inputs": [coded(FILE)] * 2, "parameters": asked}) == [segments(0.25, 0.125)] * 2
    assert posted(client, FILE, "/?subtask=semantic") == segments()
    for name, value in (("threshold", -1), ("mask_threshold", 2), ("overlap_mask_area_threshold", 1.1)):
        assert f"`parameters.{name}`" in refused(client, {"inputs": coded(FILE), "parameters": {name: value}})[1]
    error = refused(client, {"inputs": coded(FILE), "parameters": {"subtask": "instance"}})[1]
    assert "`parameters.subtask` must be one of those of this model (panoptic, semantic)" in error


def test_speech_by_characters(clients: dict[str, httpx.Client]) -> None:
    client = clients["characters"]
    assert posted(client, FILE) == {"text": "0 '' 0 0 0.000 0.000"}
    chunks = [{"text": "one", "timestamp": [0.0, 0.32]}, {"text": "two", "timestamp": [0.32, None]}]
    assert posted(client, FILE, "/?return_timestamps=word") == {"text": "2 '' 0 0 0.000 0.000", "chunks": chunks}
    asked = {"return_timestamps": "char", "chunk_length_s": 10, "stride_length_s": [2, 2]}
    assert posted(client, {"inputs": coded(FILE), "parameters": asked})["text"] == "3 '' 0 0 10.000 2.000"
    whole = {"inputs": coded(FILE), "parameters": {"stride_length_s": 0}}
    assert posted(client, whole)["text"] == "0 '' 0 0 30.000 0.000"
    for wrong, name in (
        ({"return_timestamps": True}, "return_timestamps"),
        ({"return_timestamps": "segment"}, "return_timestamps"),
        ({"language": "de"}, "language"),
        ({"generate_kwargs": {"task": "translate"}}, "task"),
        ({"stride_length_s": -1}, "stride_length_s"),
        ({"stride_length_s": [1, 2]}, "stride_length_s"),
        ({"chunk_length_s": -1}, "chunk_length_s"),
        ({"chunk_length_s": 1e-9}, "chunk_length_s"),
        ({"chunk_length_s": 0.099}, "chunk_length_s"),
        ({"chunk_length_s": 10, "stride_length_s": 4.501}, "stride_length_s"),
        ({"generation_parameters": {"num_beams": 2}}, "num_beams"),
        ({"generation_parameters": {"top_p": 0.5}}, "top_p"),
    ):
        assert f"`parameters.{name}`" in refused(client, {"inputs": coded(FILE), "parameters": wrong})[1]


def test_speech_by_generation(clients: dict[str, httpx.Client], routers: dict[str, RunningRouter]) -> None:
    client = clients["speech"]
    assert posted(client, FILE) == {"text": "0 '' 0 0 0.000 0.000"}
    assert posted(client, FILE, "/?return_timestamps=true&language=German")["text"] == "1 'german' 0 0 0.000 0.000"
    asked = {"return_timestamps": "word", "language": "<|de|>", "task": "translate", "max_new_tokens": 9}
    assert posted(client, {"inputs": coded(FILE), "parameters": asked})["text"] == "2 'de' 1 9 0.000 0.000"
    posted(client, {"inputs": coded(FILE), "parameters": {"num_beams": 5, "temperature": 1.0, "do_sample": False}})
    assert list(routers["speech"].shard.batches[-1].message.transcripts.num_beams) == [5, 0, 0, 0]
    inner = {"max_new_tokens": 9, "generate_kwargs": {"language": "de", "task": "translate"}}
    inner["generation_parameters"] = {"language": "en", "num_beams": 1, "do_sample": False}
    assert posted(client, {"inputs": coded(FILE), "parameters": inner})["text"] == "0 'en' 1 9 0.000 0.000"
    warned = client.post("/", json={"inputs": coded(FILE), "parameters": {"chunk_length_s": 30}})
    assert "chunk_length_s changes nothing" in warned.headers["x-warnings"]
    for wrong, name in (
        ({"return_timestamps": "char"}, "return_timestamps"),
        ({"language": "klingon"}, "language"),
        ({"task": "sing"}, "task"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"generate_kwargs": {"temperature": 0.5}}, "temperature"),
        ({"generate_kwargs": {"do_sample": True}}, "do_sample"),
        ({"num_beams": 9}, "num_beams"),
        ({"top_k": 50}, "top_k"),
    ):
        assert name in refused(client, {"inputs": coded(FILE), "parameters": wrong})[1]


def test_headers_say_how_much_was_computed(clients: dict[str, httpx.Client]) -> None:
    images = clients["images"].post("/", json={"inputs": [coded(FILE)] * 3})
    assert (images.headers["x-compute-images"], images.headers["x-task"]) == ("3", "image-classification")
    assert {"x-compute-type", "x-compute-time", "x-queue-time", "x-inference-time", "x-total-time"} <= set(
        images.headers
    )
    assert not {"x-compute-characters", "x-prompt-tokens"} & set(images.headers)
    sounds = clients["sounds"].post("/", json={"inputs": [coded(b"1234567"), coded(b"123")]})
    assert sounds.headers["x-compute-audio-length"] == "10.000"


def test_info_and_metrics(clients: dict[str, httpx.Client]) -> None:
    info = clients["images"].get("/info").json()
    assert info["task"] == info["model_pipeline_tag"] == "image-classification"
    assert info["tasks"] == ["image-classification"]
    assert info["labels"]["1"] == "dog"
    assert info["max_client_batch_size"] == 32
    posted(clients["images"], FILE)
    metrics = clients["images"].get("/metrics").text
    assert 'task="image-classification"' in metrics


def test_the_document_shows_a_body_that_is_a_file(clients: dict[str, httpx.Client]) -> None:
    document = clients["objects"].get("/openapi.json").json()
    operation = document["paths"]["/"]["post"]
    content = operation["requestBody"]["content"]
    # Swagger UI shows a field that takes a file for a body of this type, and the first type is the one that is chosen.
    assert list(content) == ["application/octet-stream", "application/json"]
    assert content["application/octet-stream"]["schema"] == {"type": "string", "format": "binary"}
    [threshold] = operation["parameters"]
    assert (threshold["name"], threshold["in"]) == ("threshold", "query")
    example = content["application/json"]["example"]
    assert base64.b64decode(example["inputs"]).startswith(b"\x89PNG")
    names = {one["name"] for one in clients["speech"].get("/openapi.json").json()["paths"]["/"]["post"]["parameters"]}
    assert {"language", "task", "return_timestamps", "chunk_length_s"} <= names
    assert "generate_kwargs" not in names


def test_files_that_wait_run_together_and_never_more_than_the_shard_takes(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with (
        task_router(tmp_path, task, options) as router,
        router.client() as client,
        ThreadPoolExecutor(20) as pool,
    ):
        shard: FakeRowShard = router.shard
        shard.hold()
        first = pool.submit(posted, client, b"first")
        shard.wait_for_batches(1)
        files = [b"x" * (20 + number) for number in range(11)]
        answers = [pool.submit(posted, client, file) for file in files]
        router.wait_until(lambda: router.service.permits.held == 12, "all calls are in work")
        shard.release()
        assert first.result() == best(b"first", 5)
        assert [answer.result() for answer in answers] == [best(file, 5) for file in files]
        sizes = [len(batch.rows) for batch in shard.batches]
        assert max(sizes) == 8
        assert sum(sizes) == 12


def test_files_of_many_bytes_go_in_several_messages(tmp_path: Any) -> None:
    """A message to the shard has at most 64 MiB, and eight files of this size would have 96."""
    task, _ = KINDS["images"]
    options = RowShardOptions(
        heads=("labels",), labels=LABELS, media="image", logits=lambda file, count: [float(len(file) % 7)] * count
    )
    with (
        task_router(tmp_path, task, options) as router,
        router.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        shard: FakeRowShard = router.shard
        shard.hold()
        first = pool.submit(posted, client, b"first")
        shard.wait_for_batches(1)
        answers = [pool.submit(posted, client, bytes(12 << 20)) for _ in range(4)]
        router.wait_until(lambda: router.service.permits.held == 5, "all calls are in work")
        shard.release()
        assert first.result()
        assert all(answer.result() for answer in answers)
        assert max(sum(map(len, batch.rows)) for batch in shard.batches) <= 32 << 20


def test_files_of_a_lost_shard_are_computed_again_once(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with task_router(tmp_path, task, options) as router, router.client() as client:
        router.shard.lose_batches(1)
        assert posted(client, FILE) == best(FILE, 5)
        assert len(router.shard.batches) == 2
        router.shard.lose_batches(2)
        assert refused(client, FILE, status=424)[0] == "generation"


def test_equal_files_are_answered_from_the_cache(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with task_router(tmp_path, task, options, response_cache_bytes=100_000) as router, router.client() as client:
        answers = [client.post("/", content=FILE) for _ in range(2)]
        assert answers[1].headers["x-cache"] == "hit"
        assert answers[1].json() == answers[0].json() == best(FILE, 5)
        assert "x-cache" not in client.post("/?top_k=1", content=FILE).headers
        assert "x-cache" not in client.post("/", content=FILE + b"x").headers
        assert len(router.shard.batches) == 3


def test_a_caller_that_leaves_takes_its_waiting_files_back(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with task_router(tmp_path, task, options) as router, router.client() as client, ThreadPoolExecutor(2) as pool:
        router.shard.hold()
        first = pool.submit(posted, client, FILE)
        router.shard.wait_for_batches(1)
        connection = router.send("/", {"inputs": [coded(FILE)] * 7})
        router.wait_until(lambda: router.service.permits.held == 8, "eight files are in work")
        connection.close()
        router.wait_until(lambda: router.service.permits.held == 1, "the permits are back")
        router.shard.release()
        assert first.result() == best(FILE, 5)
        assert len(router.shard.batches) == 1


def test_files_beyond_the_limit_get_429(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    with (
        task_router(tmp_path, task, options, max_queued_rows=2) as router,
        router.client() as client,
        ThreadPoolExecutor(2) as pool,
    ):
        router.shard.hold()
        kept = [pool.submit(posted, client, FILE) for _ in range(2)]
        router.wait_until(lambda: router.service.permits.held == 2, "two files are in work")
        answer = client.post("/", content=FILE)
        assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        router.shard.release()
        assert [one.result() for one in kept] == [best(FILE, 5)] * 2


def test_files_beyond_the_bound_in_bytes_get_429_until_a_call_ends(tmp_path: Any) -> None:
    task, options = KINDS["images"]
    large, rest = b"x" * 600, b"y" * 400
    with (
        task_router(tmp_path, task, options, max_queued_file_bytes=1000) as router,
        router.client() as client,
        ThreadPoolExecutor(2) as pool,
    ):
        shard: FakeRowShard = router.shard
        # Each of these calls needs most of the room, so that each proves that the one before has given its bytes back.
        shard.lose_batches(2)
        assert refused(client, large, status=424)[0] == "generation"
        assert refused(client, {"inputs": "x" * 601})[0] == "validation"  # no base64
        assert refused(client, b"")[0] == "validation"
        assert posted(client, large) == best(large, 5)  # the shard is back
        shard.hold()
        late = client.post("/", content=large, headers={"x-request-timeout-ms": "50"})
        assert late.status_code == 504

        connection = router.send("/", {"inputs": coded(large[:450])})  # 600 characters
        router.wait_until(lambda: router.service.permits.held == 1, "a call is in work")
        answer = client.post("/", content=large)
        assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
        assert "600 more (--max-queued-file-bytes)" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
        connection.close()
        router.wait_until(lambda: router.service.file_bytes.held == 0, "the client that left has given its bytes back")

        kept = [pool.submit(posted, client, file) for file in (large, rest)]
        router.wait_until(lambda: router.service.file_bytes.held == 1000, "as many bytes as the bound are in work")
        assert refused(client, b"z", status=429)[0] == "overloaded"
        shard.release()
        assert [one.result() for one in kept] == [best(large, 5), best(rest, 5)]
        assert posted(client, large) == best(large, 5)
        error_type, error = refused(client, b"x" * 1001)
        assert error_type == "validation"
        assert "1001 bytes, and the most is 1000 (--max-queued-file-bytes)" in error

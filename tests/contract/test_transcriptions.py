"""OpenAI's routes of audio in front of a shard that says what was asked of it, called by httpx and OpenAI's client."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

TASK = "automatic-speech-recognition"
WHISPER = RowShardOptions(
    heads=("transcripts",), media="audio", max_batch_files=1, languages=("en", "english", "de", "german")
)
KINDS = {
    "whisper": WHISPER,
    "english": RowShardOptions(heads=("transcripts",), media="audio", max_batch_files=1, languages=("en", "english")),
    "characters": RowShardOptions(heads=("transcripts",), media="audio", max_batch_files=1),
}
FILE = b"RIFF and 12"  # the fake shard reads no format; a byte is a second of audio
PATH, TRANSLATE = "/v1/audio/transcriptions", "/v1/audio/translations"
USAGE = {"type": "duration", "seconds": len(FILE)}
LIMIT = 40_000_000


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningRouter]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                task_router(tmp_path_factory.mktemp(kind), TASK, options, media_payload_limit=LIMIT)
            )
            for kind, options in KINDS.items()
        }


@pytest.fixture(scope="module")
def clients(routers: dict[str, RunningRouter]) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(router.client()) for kind, router in routers.items()}


def posted(client: httpx.Client, path: str = PATH, file: bytes = FILE, **fields: Any) -> httpx.Response:
    """Send a form. Underscores at the end of a field's name stand for brackets."""
    data = {f"{name[:-2]}[]" if name.endswith("__") else name: value for name, value in fields.items()}
    return client.post(path, data=data, files={"file": ("a.wav", file)})


def answered(client: httpx.Client, path: str = PATH, **fields: Any) -> Any:
    answer = posted(client, path, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: httpx.Client, path: str = PATH, status: int = 422, **fields: Any) -> tuple[str, str | None]:
    """Return the message and the parameter of OpenAI's error."""
    answer = posted(client, path, **fields)
    assert answer.status_code == status, answer.text
    return error_of(answer)


def error_of(answer: httpx.Response) -> tuple[str, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"], error["param"]


def test_a_file_alone_gets_its_words(clients: dict[str, httpx.Client]) -> None:
    answer = posted(clients["whisper"])
    assert answer.json() == {"text": "0 '' 0 0 0.000 0.000", "usage": USAGE}
    assert answer.headers["x-compute-audio-length"] == "11.000"
    assert answer.headers["x-task"] == TASK
    assert answered(clients["whisper"], "/audio/transcriptions", model="whisper-1")["text"] == "0 '' 0 0 0.000 0.000"


def test_language_and_prompt_reach_the_model(clients: dict[str, httpx.Client]) -> None:
    found = answered(clients["whisper"], language="german", prompt=" Textmill, gRPC ", temperature="0", stream="false")
    assert found["text"] == "0 'german' 0 0 0.000 0.000 after 'Textmill, gRPC'"
    long = answered(clients["whisper"], prompt="a" * 5000 + "b" * 3999)["text"]
    assert long.endswith(f"after 'a{'b' * 3999}'")


def test_translations_are_into_english(clients: dict[str, httpx.Client]) -> None:
    assert answered(clients["whisper"], TRANSLATE)["text"] == "0 '' 1 0 0.000 0.000"
    found = answered(clients["whisper"], TRANSLATE, response_format="verbose_json")
    assert (found["task"], found["language"]) == ("translate", "german")
    assert "English alone" in refused(clients["english"], TRANSLATE)[0]
    assert "does not translate" in refused(clients["characters"], TRANSLATE)[0]


def test_text_and_subtitles(clients: dict[str, httpx.Client]) -> None:
    text = posted(clients["whisper"], response_format="text")
    assert (text.text, text.headers["content-type"]) == ("0 '' 0 0 0.000 0.000\n", "text/plain; charset=utf-8")
    subtitles = posted(clients["whisper"], response_format="srt")
    assert subtitles.text == "1\n00:00:00,000 --> 00:00:00,320\none\n\n2\n00:00:00,320 --> 00:00:11,000\ntwo\n\n"
    web = posted(clients["whisper"], response_format="vtt")
    assert web.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.320\none\n")
    assert web.headers["content-type"] == "text/vtt; charset=utf-8"


MEASURES = {"seek": 7, "temperature": 0.0, "avg_logprob": -0.5, "compression_ratio": 1.25, "no_speech_prob": 0.125}
SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 0.32, "text": "one", "tokens": [*map(ord, "one")], **MEASURES},
    {"id": 1, "start": 0.32, "end": 11.0, "text": "two", "tokens": [*map(ord, "two")], **MEASURES},
]
WORDS = [{"word": "one", "start": 0.0, "end": 0.32}, {"word": "two", "start": 0.32, "end": 11.0}]
WHOLE = [{"id": 0, "start": 0.0, "end": 11.0, "text": "one two", "tokens": [*map(ord, "one two")], **MEASURES}]


@pytest.mark.parametrize(
    ("granularities", "kind", "details"),
    [
        ([], 1, {"segments": SEGMENTS}),
        (["segment"], 1, {"segments": SEGMENTS}),
        (["word"], 2, {"words": WORDS}),
        (["word", "segment"], 2, {"words": WORDS, "segments": WHOLE}),
    ],
)
def test_verbose_json_has_language_times_and_length(
    clients: dict[str, httpx.Client], granularities: list[str], kind: int, details: dict[str, Any]
) -> None:
    found = answered(clients["whisper"], response_format="verbose_json", timestamp_granularities__=granularities)
    facts = {"task": "transcribe", "language": "german", "duration": 11.0, "usage": USAGE}
    assert found == {"text": f"{kind} '' 0 0 0.000 0.000", **facts, **details}


def test_a_model_of_characters_has_words_and_no_segments(clients: dict[str, httpx.Client]) -> None:
    client = clients["characters"]
    found = answered(client, response_format="verbose_json")
    assert (found["words"], found["language"]) == (WORDS, "unknown")
    assert "segments" not in found
    for fields, name in (
        ({"response_format": "srt"}, "response_format"),
        ({"response_format": "verbose_json", "timestamp_granularities__": ["segment"]}, "timestamp_granularities[]"),
        ({"language": "en"}, "language"),
        ({"prompt": "Textmill"}, "prompt"),
    ):
        assert refused(client, **fields)[1] == name


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"response_format": "diarized_json"}, "response_format", "one of json, text, srt, verbose_json, vtt"),
        ({"temperature": "0.5"}, "temperature", "must be 0"),
        ({"temperature": "warm"}, "temperature", "float"),
        ({"stream": "true"}, "stream", "answered whole"),
        ({"stream": "perhaps"}, "stream", "bool"),
        ({"include__": ["logprobs"]}, "include[]", "single tokens are not answered"),
        ({"timestamp_granularities__": ["word"]}, "timestamp_granularities[]", "needs response_format verbose_json"),
        (
            {"timestamp_granularities__": ["letter"], "response_format": "verbose_json"},
            "timestamp_granularities[]",
            "must be word or segment",
        ),
        ({"language": "klingon"}, "language", "such as en, english, de, german"),
        ({"file": b""}, "file", "is empty"),
        ({"file": b"BAD"}, "file", "the file is bad"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    clients: dict[str, httpx.Client], fields: dict[str, Any], name: str, words: str
) -> None:
    fields = {"model": "any", **fields}
    message, param = refused(clients["whisper"], **fields)
    assert (param, words in message) == (name, True), message


def test_unknown_fields_change_nothing_and_are_logged_once(
    clients: dict[str, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "textmill_router")
    for _ in range(2):
        assert answered(clients["whisper"], chunking_strategy="auto", model="any")["text"] == "0 '' 0 0 0.000 0.000"
    said = [record for record in caplog.records if "chunking_strategy" in str(vars(record))]
    assert len(said) == 1


def test_a_form_without_a_file_and_a_file_without_a_name_are_refused(clients: dict[str, httpx.Client]) -> None:
    for files, words in (({"model": (None, b"any")}, "found none"), ({"file": (None, b"abc")}, "without a file name")):
        answer = clients["whisper"].post(PATH, files=files)
        assert answer.status_code == 422
        message, param = error_of(answer)
        assert (param, words in message) == ("file", True), message


def form(*parts: bytes, end: bytes = b"--XbX--\r\n") -> bytes:
    return b"".join(b"--XbX\r\nContent-Disposition: form-data; name=" + part + b"\r\n" for part in parts) + end


A_FILE = b'"file"; filename="a.wav"\r\n\r\nabc'


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (form(A_FILE), "multipart/form-data; boundary=XbX", 200, ""),
        (form(A_FILE, end=b""), "multipart/form-data; boundary=XbX", 422, "its end is missing"),
        (form(A_FILE)[:-20], "multipart/form-data; boundary=XbX", 422, "its end is missing"),
        (form(A_FILE), "multipart/form-data; boundary=other", 422, "no form that can be read"),
        (form(A_FILE), "multipart/form-data", 422, "boundary"),
        (form(*[b'"a"\r\n\r\n1'] * 1000, A_FILE), "multipart/form-data; boundary=XbX", 422, "number of fields is 64"),
        (form(*[A_FILE] * 1000), "multipart/form-data; boundary=XbX", 422, "number of files is 1"),
        (b"", "multipart/form-data; boundary=XbX", 422, "its end is missing"),
        (b'{"file": "abc"}', "application/json", 415, "multipart/form-data"),
        (b"RIFF", "audio/wav", 415, "multipart/form-data"),
    ],
)
def test_a_body_that_is_no_whole_form_is_refused(
    clients: dict[str, httpx.Client], body: bytes, content_type: str, status: int, words: str
) -> None:
    answer = clients["whisper"].post(PATH, content=body, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    if words:
        assert words in error_of(answer)[0]


def test_a_body_that_is_too_long_or_announced_too_long_is_413(routers: dict[str, RunningRouter]) -> None:
    with routers["whisper"].client() as client:
        answer = posted(client, file=bytes(LIMIT + 1))
        assert answer.status_code == 413
        assert "--media-payload-limit" in error_of(answer)[0]
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", routers["whisper"].port), 10) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=XbX\r\n"
        connection.sendall(f"{head}content-length: 5000000000\r\n\r\n".encode() + form(A_FILE)[:20])
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began_s < 5


def test_a_body_shorter_than_announced_is_never_computed(routers: dict[str, RunningRouter]) -> None:
    router = routers["whisper"]
    assert isinstance(router.shard, FakeRowShard)
    num_batches = len(router.shard.batches)
    with socket.create_connection(("127.0.0.1", router.port), 10) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=XbX\r\n"
        connection.sendall(f"{head}content-length: 100000\r\n\r\n".encode() + form(A_FILE))
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(1000).startswith(b"HTTP/1.1 200")
    with router.client() as client:
        answered(client)
    assert len(router.shard.batches) == num_batches + 1


def test_many_broken_forms_leave_no_memory_behind_and_a_call_beside_them_is_answered(
    routers: dict[str, RunningRouter],
) -> None:
    """The calls bring 200 MB, of which the server holds the bodies in work alone."""
    broken = [
        form(b'"file"; filename="a"\r\n\r\n' + bytes(5_000_000), end=b""),
        form(b'"a"\r\n\r\n' + b"x" * 5_000_000),
        form(*[b'"a"\r\n\r\n1'] * 50_000),
    ]
    headers = {"content-type": "multipart/form-data; boundary=XbX"}
    with routers["whisper"].client() as client, ThreadPoolExecutor(4) as pool:

        def send(body: bytes) -> int:
            return client.post(PATH, content=body, headers=headers).status_code

        assert set(pool.map(send, broken)) == {422}  # a first round, whose memory the allocator keeps
        process = psutil.Process()
        before = process.memory_info().rss
        statuses = pool.map(send, broken * 15)
        assert answered(client)["text"]
        assert set(statuses) == {422}
        assert process.memory_info().rss - before < 100_000_000


def test_the_client_of_openai_parses_every_format(routers: dict[str, RunningRouter]) -> None:
    client = OpenAI(base_url=f"{routers['whisper'].url}/v1", api_key="-", max_retries=0)
    create = client.audio.transcriptions.create
    audio = ("speech.wav", FILE)
    plain = create(model="whisper-1", file=audio, language="de", prompt="Textmill", temperature=0)
    assert plain.text == "0 'de' 0 0 0.000 0.000 after 'Textmill'"
    assert plain.usage is not None
    assert (plain.usage.type, plain.usage.seconds) == ("duration", 11)  # type: ignore[union-attr]
    verbose = create(
        model="whisper-1",
        file=audio,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (verbose.language, verbose.duration) == ("german", 11.0)
    assert verbose.words is not None
    assert [(word.word, word.start, word.end) for word in verbose.words] == [("one", 0.0, 0.32), ("two", 0.32, 11.0)]
    assert verbose.segments is not None
    assert [each.model_dump() for each in verbose.segments] == WHOLE
    assert create(model="whisper-1", file=audio, response_format="srt").startswith("1\n00:00:00,000")
    assert create(model="whisper-1", file=audio, response_format="vtt").startswith("WEBVTT")
    assert create(model="whisper-1", file=audio, response_format="text") == "0 '' 0 0 0.000 0.000\n"
    assert client.audio.translations.create(model="whisper-1", file=audio).text == "0 '' 1 0 0.000 0.000"
    with pytest.raises(UnprocessableEntityError, match="the file is bad"):
        create(model="whisper-1", file=("speech.wav", b"BAD"))
    with pytest.raises(UnprocessableEntityError, match="answered whole"):
        create(model="whisper-1", file=audio, stream=True)


def test_the_async_client_of_openai(routers: dict[str, RunningRouter]) -> None:
    async def call() -> str:
        async with AsyncOpenAI(base_url=f"{routers['whisper'].url}/v1", api_key="-", max_retries=0) as client:
            found = await client.audio.transcriptions.create(model="whisper-1", file=("speech.wav", FILE))
            return found.text

    assert asyncio.run(call()) == "0 '' 0 0 0.000 0.000"


def test_settings_of_v1_count(tmp_path_factory: pytest.TempPathFactory) -> None:
    """--v1-errors openai gives OpenAI's statuses, --strict-model holds, and equal calls get the kept answer."""
    settings: dict[str, Any] = {"v1_errors": "openai", "strict_model": True, "response_cache_bytes": 1 << 20}
    with task_router(tmp_path_factory.mktemp("v1"), TASK, WHISPER, **settings) as router:
        assert isinstance(router.shard, FakeRowShard)
        client = OpenAI(base_url=f"{router.url}/v1", api_key="-", max_retries=0)
        name = router.service.settings.model_names[0]
        audio = ("speech.wav", FILE)
        with pytest.raises(BadRequestError, match="the file is bad"):
            client.audio.transcriptions.create(model=name, file=("speech.wav", b"BAD"))
        with pytest.raises(NotFoundError):
            client.audio.transcriptions.create(model="another", file=audio)
        num_batches = len(router.shard.batches)
        first, second = (
            client.audio.transcriptions.create(model=name, file=audio, response_format="vtt") for _ in range(2)
        )
        assert first == second
        with router.client(headers={"authorization": "Bearer -"}) as plain:
            kept = posted(plain, model=name, response_format="vtt")
            assert (kept.headers["x-cache"], kept.headers["content-type"]) == ("hit", "text/vtt; charset=utf-8")
            assert "x-cache" not in posted(plain, model=name, response_format="srt").headers
        assert len(router.shard.batches) == num_batches + 2


def test_other_models_name_their_task(tmp_path_factory: pytest.TempPathFactory) -> None:
    with task_router(tmp_path_factory.mktemp("rows"), "text-classification") as router, router.client() as client:
        for path in (PATH, TRANSLATE, "/audio/transcriptions"):
            assert "the model's task is text-classification" in refused(client, path)[0]
    folder = tmp_path_factory.mktemp("writing")
    model = write_byte_tokenizer(folder / "model")
    with RunningRouter(folder, model=model) as running, running.client() as client:
        assert "the model's task is text-generation" in refused(client)[0]


def test_the_document_shows_the_form(clients: dict[str, httpx.Client]) -> None:
    document = clients["whisper"].get("/openapi.json").json()
    for path in (PATH, TRANSLATE):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert schema["required"] == ["file"]
        assert schema["properties"]["file"]["format"] == "binary"
        assert {"timestamp_granularities[]", "prompt", "response_format"} <= set(schema["properties"])
        assert all(field["description"] for field in schema["properties"].values())
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/plain"}

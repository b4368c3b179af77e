"""text-to-audio and OpenAI's /v1/audio/speech in front of a shard that says what was asked of it, by real clients."""

import asyncio
import base64
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.utils import HfHubHTTPError
from openai import AsyncOpenAI, OpenAI, UnprocessableEntityError

from tests.fakes.fake_row_shard import FakeRowShard, RowShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router

TASK = "text-to-audio"
KINDS = {
    "one": RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=1),
    "three": RowShardOptions(heads=("sounds",), media="text", max_batch_files=1, num_speakers=3),
}
SPEECH = "/v1/audio/speech"
FLAC, WAV, OGG, MP3, OPUS, PCM = range(6)  # as shard.proto numbers them


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunningRouter]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(task_router(tmp_path_factory.mktemp(kind), TASK, options))
            for kind, options in KINDS.items()
        }


@pytest.fixture(scope="module")
def clients(routers: dict[str, RunningRouter]) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        yield {kind: stack.enter_context(router.client()) for kind, router in routers.items()}


def said(answer: httpx.Response) -> tuple[int, int, int, str, str]:
    """Return format, seed, speaker, the numbers and the text that the shard was asked for."""
    assert answer.status_code == 200, answer.text
    kind, seed, speaker, *numbers = answer.content.decode().split(" ", 7)
    return int(kind), int(seed), int(speaker), " ".join(numbers[:4]), numbers[4]


def refused(client: httpx.Client, body: Any, path: str = "/", **headers: str) -> tuple[str, str]:
    answer = client.post(path, json=body, headers=headers)
    assert answer.status_code == 422, answer.text
    found = answer.json()
    message = found["error"] if isinstance(found["error"], str) else found["error"]["message"]
    return found["error_type"], message


def test_a_text_gets_flac_and_a_seed_of_its_own(clients: dict[str, httpx.Client]) -> None:
    answers = [clients["one"].post("/", json={"inputs": "Good day"}) for _ in range(2)]
    found = [said(answer) for answer in answers]
    assert {(kind, speaker, numbers, text) for kind, _, speaker, numbers, text in found} == {
        (FLAC, 0, "1 -1 -1 -1", "Good day")
    }
    assert found[0][1] != found[1][1]
    headers = answers[0].headers
    assert headers["content-type"] == "audio/flac"
    assert (headers["x-task"], headers["x-compute-characters"]) == (TASK, "8")
    assert headers["x-compute-audio-length"] == "8.000"
    assert headers["x-prompt-tokens"] == "17"  # of the shard


def test_parameters_reach_the_model(clients: dict[str, httpx.Client]) -> None:
    parameters = {"seed": 2**64 - 1, "speaker_id": 2, "speaking_rate": 0.5, "noise_scale": 0, "noise_scale_duration": 2}
    answer = clients["three"].post("/", json={"inputs": "Good day", "parameters": parameters})
    assert said(answer) == (FLAC, 2**64 - 1, 2, "1 0.5 0 2", "Good day")


@pytest.mark.parametrize(
    ("accept", "kind", "content_type"),
    [
        ("audio/flac", FLAC, "audio/flac"),
        ("audio/wav", WAV, "audio/wav"),
        ("audio/x-wav", WAV, "audio/wav"),
        ("AUDIO/OGG", OGG, "audio/ogg"),
        ("audio/mpeg", MP3, "audio/mpeg"),
        ("audio/mp3, */*", MP3, "audio/mpeg"),
        ("audio/wav;q=0.2, audio/ogg;q=0.8", OGG, "audio/ogg"),
        ("audio/aac, audio/ogg;q=0.5", OGG, "audio/ogg"),
        ("audio/aac, */*;q=0.1", FLAC, "audio/flac"),
        ("audio/*", FLAC, "audio/flac"),
        ("audio/wav;q=0", FLAC, "audio/flac"),
        ("application/json", FLAC, "audio/flac"),
        ("*/*", FLAC, "audio/flac"),
        ("", FLAC, "audio/flac"),
    ],
)
def test_accept_decides_the_format(clients: dict[str, httpx.Client], accept: str, kind: int, content_type: str) -> None:
    answer = clients["one"].post("/", json={"inputs": "hi"}, headers={"accept": accept})
    assert (said(answer)[0], answer.headers["content-type"]) == (kind, content_type)


def test_a_format_that_is_not_written_is_refused(clients: dict[str, httpx.Client]) -> None:
    assert "audio/mpeg" in refused(clients["one"], {"inputs": "hi"}, accept="audio/aac")[1]


def test_every_path_of_the_task(clients: dict[str, httpx.Client]) -> None:
    client = clients["one"]
    paths = ("/", "/predict", "/invocations", "/models/a/b", "/pipeline/text-to-speech", "/pipeline/text-to-audio")
    for path in paths:
        assert said(client.post(path, json={"inputs": "hi"}))[-1] == "hi"
    plain = client.post("/", content="hi there", headers={"content-type": "text/plain"})
    assert said(plain)[-1] == "hi there"
    info = client.get("/info").json()
    assert (info["task"], info["tasks"]) == (TASK, [TASK])
    assert refused(client, {"inputs": "hi"}, "/pipeline/fill-mask")[0] == "task"
    assert "/v1/audio/speech" in refused(client, {"inputs": "hi"}, "/generate")[1]


def test_predictions_of_vertex_are_audio_in_base64(clients: dict[str, httpx.Client]) -> None:
    answer = clients["one"].post("/vertex", json={"instances": [{"inputs": "one"}, "two"], "parameters": {"seed": 5}})
    assert answer.status_code == 200, answer.text
    found = [base64.b64decode(one).decode() for one in answer.json()["predictions"]]
    assert [text.rpartition(" ")[2] for text in found] == ["one", "two"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "`inputs` is missing"),
        ({"inputs": ["a", "b"]}, "`inputs` must be one text, because the answer is one file of audio"),
        ({"inputs": " \n"}, "`inputs` must not be empty"),
        ({"inputs": "a" * 4097}, "at most 4096 are spoken"),
        ({"inputs": "a", "parameters": {"seed": -1}}, "`parameters.seed` must be from 0 to 2^64 - 1"),
        ({"inputs": "a", "parameters": {"seed": 2**64}}, "`parameters.seed`"),
        ({"inputs": "a", "parameters": {"speaker_id": 3}}, "one of the 3 voices"),
        ({"inputs": "a", "parameters": {"speaker_id": -1}}, "one of the 3 voices"),
        ({"inputs": "a", "parameters": {"speaking_rate": 0}}, "`parameters.speaking_rate` must be from 0.25 to 4"),
        ({"inputs": "a", "parameters": {"speaking_rate": 1e300}}, "`parameters.speaking_rate` must be"),
        ({"inputs": "a", "parameters": {"noise_scale": -0.1}}, "`parameters.noise_scale` must be from 0 to 10"),
        ({"inputs": "a", "parameters": {"noise_scale_duration": 11}}, "`parameters.noise_scale_duration` must be"),
        ({"inputs": "BAD text"}, "`inputs`: the file is bad"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_name(
    clients: dict[str, httpx.Client], body: dict[str, Any], words: str
) -> None:
    kind, message = refused(clients["three"], body)
    assert (kind, words in message) == ("validation", True), message


def test_a_model_of_one_voice_has_no_other(clients: dict[str, httpx.Client]) -> None:
    message = refused(clients["one"], {"inputs": "a", "parameters": {"speaker_id": 1}})[1]
    assert "must be 0, because this model has one voice" in message


def test_speech_with_a_seed_is_kept_for_equal_calls(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("kept")
    with task_router(folder, TASK, KINDS["one"], response_cache_bytes=1 << 20) as router, router.client() as client:
        assert isinstance(router.shard, FakeRowShard)

        def is_kept(accept: str = "audio/wav", **parameters: Any) -> bool:
            body = {"inputs": "hi", "parameters": parameters}
            answer = client.post("/", json=body, headers={"accept": accept})
            assert answer.headers["content-type"] == accept
            return "x-cache" in answer.headers

        assert [is_kept(seed=1), is_kept(seed=1), is_kept(seed=2), is_kept("audio/ogg", seed=1)] == [0, 1, 0, 0]
        assert [is_kept(), is_kept(), is_kept(noise_scale=0), is_kept(noise_scale=0)] == [0, 0, 0, 0]
        quiet = {"noise_scale": 0, "noise_scale_duration": 0}
        assert [is_kept(**quiet), is_kept(**quiet)] == [0, 1]


# ---- OpenAI's route.


def test_the_form_of_openai(clients: dict[str, httpx.Client]) -> None:
    body = {"input": "Good day", "model": "tts-1", "voice": "alloy"}
    answer = clients["one"].post(SPEECH, json=body)
    assert said(answer)[2:] == (0, "1 -1 -1 -1", "Good day")
    assert answer.headers["content-type"] == "audio/mpeg"
    kinds = {"mp3": MP3, "opus": OPUS, "flac": FLAC, "wav": WAV, "pcm": PCM}
    for name, kind in kinds.items():
        asked = {**body, "response_format": name, "speed": 2, "seed": 5, "stream_format": "audio"}
        found = clients["one"].post("/audio/speech", json=asked, headers={"accept": "application/json"})
        assert said(found) == (kind, 5, 0, "2 -1 -1 -1", "Good day")
        assert found.headers["content-type"] == f"audio/{'mpeg' if name == 'mp3' else name}"


def test_a_voice_is_a_number_where_there_are_several(clients: dict[str, httpx.Client]) -> None:
    for voice, number in ((None, 0), ("2", 2), (1, 1), ({"id": "2"}, 2)):
        assert said(clients["three"].post(SPEECH, json={"input": "hi", "voice": voice}))[2] == number
    for voice, words in (("alloy", "must be the number"), ("3", "3 voices"), (-1, "3 voices"), ("²", "the number")):
        assert words in refused(clients["three"], {"input": "hi", "voice": voice}, SPEECH)[1]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"input": ""}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"response_format": "aac"}, "response_format"),
        ({"speed": 0.1}, "speed"),
        ({"speed": 5}, "speed"),
        ({"instructions": "whisper"}, "instructions"),
        ({"stream_format": "sse"}, "stream_format"),
        ({"seed": -1}, "seed"),
        ({"input": "BAD"}, "input"),
    ],
)
def test_what_openai_knows_and_the_model_does_not_is_refused_by_name(
    clients: dict[str, httpx.Client], fields: dict[str, Any], name: str
) -> None:
    answer = clients["one"].post(SPEECH, json={"input": "hi", "model": "any", "voice": "a", **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, name), answer.text


def test_the_clients_of_openai(routers: dict[str, RunningRouter]) -> None:
    base_url = f"{routers['one'].url}/v1"
    client = OpenAI(base_url=base_url, api_key="-", max_retries=0)
    found = client.audio.speech.create(model="tts-1", voice="alloy", input="hi", extra_body={"seed": 3})
    assert found.content == b"3 3 0 1 -1 -1 -1 hi"
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="hi", response_format="wav", speed=1.5, extra_body={"seed": 3}
    ) as streamed:
        assert b"".join(streamed.iter_bytes()) == b"1 3 0 1.5 -1 -1 -1 hi"
    with pytest.raises(UnprocessableEntityError, match="response_format"):
        client.audio.speech.create(model="tts-1", voice="alloy", input="hi", response_format="aac")

    async def call() -> bytes:
        async with AsyncOpenAI(base_url=base_url, api_key="-", max_retries=0) as one:
            return (await one.audio.speech.create(model="a", voice="b", input="hi", extra_body={"seed": 3})).content

    assert asyncio.run(call()) == b"3 3 0 1 -1 -1 -1 hi"


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of the client's own code
def test_the_clients_of_huggingface_hub(routers: dict[str, RunningRouter]) -> None:
    url = routers["one"].url
    assert InferenceClient(model=url).text_to_speech("hi").endswith(b" hi")
    extra = {"seed": 4, "noise_scale": 0.5}
    assert InferenceClient(model=url).text_to_speech("hi", extra_body=extra) == b"0 4 0 1 -1 0.5 -1 hi"
    with pytest.raises(HfHubHTTPError, match="must not be empty"):
        InferenceClient(model=url).text_to_speech(" ")

    async def call() -> bytes:
        async with AsyncInferenceClient(model=url) as client:
            return await client.text_to_speech("hi", extra_body=extra)

    assert asyncio.run(call()) == b"0 4 0 1 -1 0.5 -1 hi"


def test_other_models_name_their_task(tmp_path_factory: pytest.TempPathFactory) -> None:
    with task_router(tmp_path_factory.mktemp("rows"), "text-classification") as router, router.client() as client:
        for path in (SPEECH, "/audio/speech"):
            assert "the model's task is text-classification" in refused(client, {"input": "hi"}, path)[1]


def test_the_document_shows_files_of_audio(clients: dict[str, httpx.Client]) -> None:
    document = clients["one"].get("/openapi.json").json()
    for path, kinds in (
        ("/", {"audio/flac", "audio/wav", "audio/ogg", "audio/mpeg"}),
        (SPEECH, {"audio/mpeg", "audio/opus", "audio/flac", "audio/wav", "audio/pcm"}),
    ):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == kinds
        assert all(one["schema"]["format"] == "binary" for one in content.values())
    assert "/v1/audio/transcriptions" not in document["paths"]

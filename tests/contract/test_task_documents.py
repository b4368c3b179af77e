"""Each call of docs/tasks.md is sent as curl sends it, and gets an answer."""

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.byte_tokenizer import write_byte_tokenizer
from tests.fakes.fake_shard import FakeShardOptions
from tests.fakes.running_router import RunningRouter
from tests.fakes.task_router import task_router
from tests.fakes.task_shards import TASK_SHARDS
from tests.fakes.tiny_media import picture_file, sound_file

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE))
WRITING = {
    "summarization, translation, text2text-generation": (
        "summarization",
        FakeShardOptions(decoder_prompt_ids=(257,), max_encoder_tokens=60, max_model_tokens=100),
    ),
    "text-generation, conversational": ("text-generation", FakeShardOptions(eos_token_ids=(122,))),
}
FILES = {"@picture.jpg": picture_file(8, 8, kind="JPEG"), "@speech.flac": sound_file(0.1)}
CALLS = [
    (title, snippet)
    for title, text in SECTIONS.items()
    for snippet in re.findall(r"(?s)```bash\n(curl .*?)\n```", text)
]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    with ExitStack() as stack:
        found = {}
        for task, options in TASK_SHARDS.items():
            router = stack.enter_context(task_router(tmp_path_factory.mktemp("rows"), task, options))
            found[task] = stack.enter_context(router.client())
        for title, (task, writing) in WRITING.items():
            folder = tmp_path_factory.mktemp("writing")
            model = write_byte_tokenizer(folder / "model")
            router = stack.enter_context(RunningRouter(folder, writing, model=model, task=task))
            found[title] = stack.enter_context(router.client())
        yield found


def test_every_task_has_a_section_with_a_call() -> None:
    assert {title for title, _ in CALLS} == {*TASK_SHARDS, *WRITING}


@pytest.mark.parametrize(("title", "snippet"), CALLS, ids=[title for title, _ in CALLS])
def test_a_call_of_the_page_is_answered(clients: dict[str, httpx.Client], title: str, snippet: str) -> None:
    words = shlex.split(snippet)
    url = words[1]
    path = url.removeprefix("http://localhost:3000")
    if "-F" in words:
        pairs = [words[place + 1].partition("=") for place, word in enumerate(words) if word == "-F"]
        form = {name: (value[1:], FILES[value]) if value in FILES else (None, value) for name, _, value in pairs}
        answer = clients[title].post(path, files=form)
        assert answer.status_code == 200, answer.text
        assert answer.content
        return
    body = FILES[words[words.index("--data-binary") + 1]] if "--data-binary" in words else words[words.index("-d") + 1]
    headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl sends without -H
    if "-H" in words:
        name, _, value = words[words.index("-H") + 1].partition(":")
        headers |= {name.strip().lower(): value.strip()}
    answer = clients[title].post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    if title == "text-to-audio":
        assert (answer.headers["content-type"], answer.content) == (
            "audio/wav",
            b"1 7 0 1 -1 -1 -1 Good morning everybody",
        )
    else:
        assert answer.json()


def run_python(clients: dict[str, httpx.Client], title: str) -> dict[str, Any]:
    """Run the Python of a section against its server, and return the names that the section binds."""
    sources = re.findall(r"(?s)```python\n(.*?)\n```", SECTIONS[title])
    base = str(clients[title].base_url).rstrip("/")
    names: dict[str, Any] = {}
    for source in sources:
        exec(compile(source.replace("http://localhost:3000", base), "docs/tasks.md", "exec"), names)
    return names


def test_the_python_of_vectors_runs(clients: dict[str, httpx.Client]) -> None:
    assert len(run_python(clients, "feature-extraction")["vectors"].data) == 2


def test_the_python_of_images_runs(
    clients: dict[str, httpx.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture.jpg").write_bytes(FILES["@picture.jpg"])
    monkeypatch.chdir(tmp_path)
    assert {each.label for each in run_python(clients, "image-classification")["labels"]} == set(
        TASK_SHARDS["image-classification"].labels
    )


def test_the_python_of_words_about_images_runs(
    clients: dict[str, httpx.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture.jpg").write_bytes(FILES["@picture.jpg"])
    monkeypatch.chdir(tmp_path)
    assert run_python(clients, "image-to-text")["text"] == ""
    assert {each.answer for each in run_python(clients, "visual-question-answering")["answers"]} < set(
        TASK_SHARDS["visual-question-answering"].labels
    )
    [found] = run_python(clients, "document-question-answering")["answers"]
    assert (found.answer, found.start, found.end) == ("Total: $9.90", 0, 1)


def test_the_python_of_labels_of_the_call_runs(
    clients: dict[str, httpx.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture.jpg").write_bytes(FILES["@picture.jpg"])
    monkeypatch.chdir(tmp_path)
    found = run_python(clients, "zero-shot-image-classification")["labels"]
    assert {each.label for each in found} == {"a cat", "a dog"}


def test_the_python_of_depths_runs(
    clients: dict[str, httpx.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture.jpg").write_bytes(FILES["@picture.jpg"])
    monkeypatch.chdir(tmp_path)
    names = run_python(clients, "depth-estimation")
    assert (names["picture"].size, len(names["depths"])) == ((1, 1), 2)


def test_the_python_of_speech_runs(
    clients: dict[str, httpx.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speech.flac").write_bytes(FILES["@speech.flac"])
    monkeypatch.chdir(tmp_path)
    names = run_python(clients, "automatic-speech-recognition")
    assert names["text"] == "0 '' 0 0 0.000 0.000"
    assert [word.word for word in names["words"]] == ["one", "two"]


def test_the_python_of_spoken_texts_runs(clients: dict[str, httpx.Client]) -> None:
    names = run_python(clients, "text-to-audio")
    assert [names[name].split(b" ", 1)[0] for name in ("flac", "mp3")] == [b"0", b"3"]

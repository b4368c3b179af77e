"""The entries of --lora-adapters, the folders that they mean, and adapters in the place of a model."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from textmill_launcher.adapter_entries import AskedAdapter, read_entry
from textmill_launcher.adapters import find_adapters
from textmill_launcher.child_arguments import AdapterFolders, ModelFolder, ShardPlace, router_command, shard_command
from textmill_launcher.child_name import ChildName
from textmill_launcher.errors import ConflictingSettings, LaunchError, ModelFilesError, NoSuchModel, SettingsError
from textmill_launcher.model_files import find_model
from textmill_launcher.options import BadValue
from textmill_launcher.settings import load_settings
from textmill_router.settings import load_settings as load_router_settings
from textmill_shard.settings import load_settings as load_shard_settings

MODEL = ModelFolder(path=Path("/models/m"), model_id="org/m", model_sha=None)
PLACE = ShardPlace(rank=0, world_size=1, socket=Path("/run/s-0"), master_addr="127.0.0.1", master_port=None)


class Helper:
    """A stand-in for the process that downloads, which notes its command and answers with a folder."""

    def __init__(self, answer: Path) -> None:
        self.answer = answer
        self.commands: list[list[str]] = []

    async def __call__(self, name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
        self.commands.append(list(command))
        return str(self.answer)


async def no_helper(name: ChildName, command: Sequence[str], environ: Mapping[str, str]) -> str:
    raise AssertionError(f"no helper is needed, {name} was started")


def make_adapter(folder: Path, config: object = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config or {}))
    (folder / "adapter_model.safetensors").write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("org/poet", AskedAdapter("org/poet", "org/poet", None)),
        ("org/poet@main", AskedAdapter("org/poet", "org/poet", "main")),
        ("poet=/adapters/poet", AskedAdapter("poet", "/adapters/poet", None)),
        ("poet=org/poet", AskedAdapter("poet", "org/poet", None)),
        ("poet=org/poet@refs/pr/1", AskedAdapter("poet", "org/poet", "refs/pr/1")),
    ],
)
def test_entries_in_tgis_syntax_and_with_a_name_for_a_repository(entry: str, wanted: AskedAdapter) -> None:
    assert read_entry(entry) == wanted


@pytest.mark.parametrize("entry", ["a=b=c", "a@b@c", "=x", "a=", "a@", "@x", "a@b=c", "="])
def test_other_entries_are_refused(entry: str) -> None:
    with pytest.raises(BadValue):
        read_entry(entry)
    with pytest.raises(SettingsError, match="--lora-adapters"):
        load_settings(["--lora-adapters", entry], {})


def find(flags: list[str], helper: object = no_helper, base: tuple[str, ...] = ("org/m",)) -> AdapterFolders:
    return asyncio.run(find_adapters(load_settings(flags, {}), base, {}, helper))  # type: ignore[arg-type]


def test_folders_are_used_as_they_are_and_repositories_are_fetched(tmp_path: Path) -> None:
    poet, clerk = make_adapter(tmp_path / "poet"), make_adapter(tmp_path / "fetched")
    helper = Helper(clerk)
    flags = ["--lora-adapters", f"poet={poet},org/clerk@v2", "--lora-hub", "org/spare"]
    found = find([*flags, "--huggingface-hub-cache", "/cache"], helper)
    assert found.start == (("poet", poet), ("org/clerk", clerk))
    assert found.hub == (("org/spare", clerk),)
    words = helper.commands[0][1:]
    assert words == [
        *("-m", "textmill_launcher.hub_download", "--model-id", "org/clerk", "--revision", "v2"),
        *("--cache-dir", "/cache", "--include", "adapter_config.json", "--include", "adapter_model.safetensors"),
    ]


def test_the_variable_of_tgi_is_read(tmp_path: Path) -> None:
    poet = make_adapter(tmp_path / "poet")
    settings = load_settings([], {"LORA_ADAPTERS": f"poet={poet}, clerk={poet}"})
    assert settings.lora_adapters == (f"poet={poet}", f"clerk={poet}")


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        ("poet=POET,poet=POET", ConflictingSettings, "two adapters have the name poet"),
        ("org/m=POET", ConflictingSettings, "name of the base model"),
        ("poet=/nowhere", NoSuchModel, "no folder /nowhere"),
        ("poet", NoSuchModel, "no folder poet"),
        ("poet=POET@main", NoSuchModel, "has no revision"),
        ("poet=EMPTY", ModelFilesError, "holds no adapter_config.json"),
        ("poet=PICKLE", ModelFilesError, r"adapter_model\.bin is never read"),
    ],
)
def test_adapters_that_cannot_be_found_stop_the_start(
    tmp_path: Path, entries: str, error: type[LaunchError], words: str
) -> None:
    make_adapter(tmp_path / "POET")
    (tmp_path / "EMPTY").mkdir()
    pickled = make_adapter(tmp_path / "PICKLE")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for name in ("POET", "EMPTY", "PICKLE"):
        entries = entries.replace(f"={name}", f"={tmp_path / name}")
    with pytest.raises(error, match=words):
        find(["--lora-adapters", entries])


def test_only_repositories_are_listed_for_callers() -> None:
    with pytest.raises(NoSuchModel, match="no repository"):
        find(["--lora-hub", "poet=org/poet"])


def test_an_adapter_as_model_is_refused_with_the_command_that_serves_it(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "my poet", {"base_model_name_or_path": "org/base model"})
    settings = load_settings(["--model-id", str(folder)], {})
    with pytest.raises(ModelFilesError) as caught:
        asyncio.run(find_model(settings, {}, no_helper))
    assert f"launcher --model-id 'org/base model' --lora-adapters 'my poet={folder}'" in str(caught.value)
    fetched = Helper(make_adapter(tmp_path / "fetched"))
    with pytest.raises(ModelFilesError) as caught:
        asyncio.run(find_model(load_settings(["--model-id", "org/poet"], {}), {}, fetched))
    assert "launcher --model-id BASE_MODEL --lora-adapters org/poet" in str(caught.value)


def test_a_model_folder_that_also_holds_an_adapter_is_a_model(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "model")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    found = asyncio.run(find_model(load_settings(["--model-id", str(folder)], {}), {}, no_helper))
    assert found.path == folder


def test_children_get_folders_and_memory() -> None:
    settings = load_settings(["--lora-adapters", "poet=org/poet"], {})
    folders = AdapterFolders((("poet", Path("/a=b/poet")),), (("org/x", Path("/hub/x")),))
    router = load_router_settings(router_command(settings, MODEL, [PLACE.socket], folders)[3:], {})
    assert router.lora_adapter == ("poet=/a=b/poet",)
    assert router.lora_hub_folder == ("org/x=/hub/x",)
    assert load_shard_settings(shard_command(settings, MODEL, PLACE)[3:], {}).lora_memory_bytes is None
    for flags, wanted in (
        ([], 0),
        (["--lora-runtime-updates"], None),
        (["--lora-runtime-updates", "--lora-memory-bytes", "5"], 5),
    ):
        command = shard_command(load_settings(flags, {}), MODEL, PLACE)
        assert load_shard_settings(command[3:], {}).lora_memory_bytes == wanted

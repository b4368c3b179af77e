"""What reads images is made where the shard takes images, and a checkpoint that cannot be read ends the start."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from textmill_router import extras
from textmill_router.chat.template_files import load_chat_templates
from textmill_router.media.url_fetch import UrlFetcher
from textmill_router.serving.image_start import open_images
from textmill_router.serving.prompt_images import PromptImages
from textmill_router.settings import Settings, SettingsError
from textmill_router.text.tokenization import Tokenizer

from tests.fakes.image_families import row_id_of, write_image_family
from tests.fakes.router_facts import router_facts


def opened(folder: Path, *, tokenizer: Path | None = None, **facts: Any) -> PromptImages | None:
    async def run() -> PromptImages | None:
        settings = Settings(model_dir=str(folder), model_id="m", shard_uds_path=("s",))
        made = await open_images(
            settings,
            router_facts(**facts),
            Tokenizer.load(tokenizer or folder),
            load_chat_templates(folder, None),
            UrlFetcher(()),
        )
        if made is not None:
            await made.close()
        return made

    return asyncio.run(run())


def test_a_model_of_text_has_no_images(tmp_path: Path) -> None:
    assert opened(write_image_family(tmp_path, "llava")) is None


def test_a_model_of_images_reads_them(tmp_path: Path) -> None:
    folder = write_image_family(tmp_path, "qwen2_vl")
    made = opened(folder, media_kinds=["qwen2_vl"])
    assert made is not None
    assert made.row_id == row_id_of(folder)
    assert made.token_texts == {"<|image_pad|>"}


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "PIL" else object())
    with pytest.raises(SettingsError, match=r"llava needs PIL.*pip install 'textmill\[vision\]'"):
        opened(write_image_family(tmp_path, "llava"), media_kinds=["llava"])


def without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def of_another_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2_vl"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_processor, "preprocessor_config.json"),
        (of_another_type, "config.json has the type qwen2_vl, the shard takes llava"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_ends_the_start(tmp_path: Path, damage: Any, words: str) -> None:
    folder = write_image_family(tmp_path, "llava")
    damage(folder)
    with pytest.raises(SettingsError, match="images of this model cannot be read") as error:
        opened(folder, media_kinds=["llava"])
    assert words in str(error.value)


def test_a_tokenizer_that_cuts_the_token_of_images_ends_the_start(tmp_path: Path) -> None:
    folder = write_image_family(tmp_path / "model", "llava")
    other = write_image_family(tmp_path / "other", "mistral3")  # has no <image>
    with pytest.raises(SettingsError, match="the tokenizer reads '<image>' as the tokens"):
        opened(folder, tokenizer=other, media_kinds=["llava"])

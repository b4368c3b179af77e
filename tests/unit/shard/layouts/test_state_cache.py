"""A release of transformers whose layers do not ask their cache for states is refused with the release that does."""

from pathlib import Path

import pytest
from textmill_shard.errors import UnsupportedModelError
from textmill_shard.layouts.state_cache import check_states_can_be_asked
from textmill_shard.loader.load_options import LoadOptions
from textmill_shard.loader.model_loader import load_model
from transformers import Cache

from tests.zoo.drive import make_zoo_model
from tests.zoo.table import STATE


def test_an_old_release_is_named_with_the_release_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_states_can_be_asked()
    monkeypatch.delattr(Cache, "get_conv_state")  # as in 5.20 and before
    with pytest.raises(UnsupportedModelError, match=r"carry state.* transformers 5\.21 or newer, and \d+\.\d+"):
        check_states_can_be_asked()


def test_a_model_with_states_is_refused_with_these_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UnsupportedModelError("served with a newer release")

    make_zoo_model(next(entry for entry in STATE if entry.name == "mamba"), tmp_path)
    monkeypatch.setattr("textmill_shard.layouts.interface_layout.check_states_can_be_asked", refuse)
    with pytest.raises(UnsupportedModelError, match="served with a newer release"):
        load_model(LoadOptions(model_dir=tmp_path, dtype="float32", block_size=4), lambda phase, share: None)

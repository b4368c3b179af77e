"""Every architecture of the zoo through the real step loop, compared with transformers' uncached forward in fp32."""

from pathlib import Path

import pytest

from tests.fakes.native_cases import native_cache_folder
from tests.zoo.drive import load_zoo_model, make_zoo_model, run_zoo_model
from tests.zoo.entry import TOLERANCE, ZooEntry
from tests.zoo.table import ZOO


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_engine_gives_the_uncached_logits_of_transformers(entry: ZooEntry, tmp_path: Path) -> None:
    model = make_zoo_model(entry, tmp_path)
    for native_cache_dir in (native_cache_folder(), None):
        runner = load_zoo_model(model, native_cache_dir=native_cache_dir)
        assert runner.facts.layout == entry.layout
        assert runner.facts.rope_border == entry.rope_border
        specs = runner.facts.kv_specs
        assert bool(specs and runner.facts.state_bytes) == entry.is_hybrid
        assert any(spec.key_dim > spec.value_dim for spec in specs) == entry.has_uneven_widths
        result = run_zoo_model(model, runner)
        # The tokens for an encoder are not cut, so the prompts take fewer steps.
        assert result.num_mixed_steps >= (2 if entry.layout == "encoder_decoder" else 3)
        assert (result.num_two_sided_steps >= 3) == (entry.rope_border is not None)
        assert result.difference <= entry.tolerance


def test_a_looser_tolerance_has_a_reason() -> None:
    assert [entry.name for entry in ZOO if (entry.tolerance > TOLERANCE) != bool(entry.reason)] == []


def test_names_in_the_table_are_not_repeated() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)

"""Tiny models of the families that ranks share by rules of their own, or whose experts ranks share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tests.fakes.tiny_models import make_random_model
from tests.zoo.dense import DENSE
from tests.zoo.experts import EXPERTS


@dataclass(frozen=True, slots=True)
class Family:
    """The type and the config of one family's tiny model, whose heads four ranks can share."""

    model_type: str
    config: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        return int(self.config.get("num_hidden_layers") or self.config["n_layer"])


_NAMES = ("qwen3_moe", "phi3", "gpt2", "opt", "gpt_neox", "mixtral", "gpt_oss", "deepseek_v3", "gemma2", "gemma3")
_ZOO = {entry.name: entry for entry in (*DENSE, *EXPERTS)}
FAMILIES: Mapping[str, Family] = {name: Family(_ZOO[name].type_of_config, _ZOO[name].config) for name in _NAMES}


def make_family(name: str, folder: Path) -> Path:
    """Write the tiny model of a family into a new folder, and return the folder."""
    family = FAMILIES[name]
    make_random_model(AutoConfig.for_model(family.model_type, **family.config), folder)
    return folder

"""The children take each value that the launcher forwards, and read the value that the user gave."""

import re
from pathlib import Path

import pytest
from textmill_launcher.child_arguments import (
    ModelFolder,
    ShardPlace,
    router_command,
    router_environment,
    shard_command,
)
from textmill_launcher.options import (
    ATTENTION_BACKENDS,
    DTYPES,
    KV_CACHE_DTYPES,
    METRICS_ALIASES,
    POOLINGS,
    REASONING_FORMATS,
    TASK_SHAPES,
    TOOL_FORMATS,
    V1_ERRORS,
    Child,
    Option,
)
from textmill_launcher.settings import OPTIONS, load_settings
from textmill_router.api.openai.errors import V1_ERROR_STYLES
from textmill_router.parsers.formats import REASONING_NAMES, TOOL_FORMAT_NAMES
from textmill_router.settings import METRICS_ALIASES as ROUTER_METRICS_ALIASES
from textmill_router.settings import TASK_SHAPES as ROUTER_TASK_SHAPES
from textmill_router.settings import load_settings as load_router_settings
from textmill_shard.options import ATTENTION_BACKENDS as SHARD_ATTENTION_BACKENDS
from textmill_shard.options import DEVICE_SWAPS, SWAPS
from textmill_shard.options import DTYPES as SHARD_DTYPES
from textmill_shard.options import KV_CACHE_DTYPES as SHARD_KV_CACHE_DTYPES
from textmill_shard.options import POOLINGS as SHARD_POOLINGS
from textmill_shard.settings import load_settings as load_shard_settings

from tests.fakes.launcher_flags import GOOD_VALUES, arguments

MODEL = ModelFolder(path=Path("/models/m"), model_id="org/m", model_sha=None)
PLACE = ShardPlace(rank=0, world_size=1, socket=Path("/run/s-0"), master_addr="127.0.0.1", master_port=None)
# Options that the launcher uses itself, or hands on in the environment or as a part of another flag.
OWN = {
    "api_key",
    "conversion_cache",
    "env",
    "graceful_termination_timeout",
    "hf_token_file",
    "huggingface_hub_cache",
    "log_level",
    "lora_adapters",
    "lora_hub",
    "master_addr",
    "master_port",
    "max_restarts",
    "model_id",
    "node_rank",
    "node_timeout",
    "num_nodes",
    "num_replicas",
    "num_shard",
    "restart_window",
    "revision",
    "shard_address",
    "shard_tls_ca",
    "shard_tls_cert",
    "shard_tls_key",
    "shard_uds_path",
    "sharded",
    "task",
}


def as_text(value: object) -> str:
    """Return a value as text, because rooms keep lists and paths in types of their own."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def field_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


FORWARDED = [option for option in OPTIONS if option.to]


def test_every_option_is_the_launchers_own_or_reaches_a_child() -> None:
    assert {option.name for option in OPTIONS} - OWN == {option.name for option in FORWARDED}


@pytest.mark.parametrize("option", FORWARDED, ids=lambda option: option.name)
def test_children_read_the_value_that_the_launcher_was_given(option: Option) -> None:
    text, value = GOOD_VALUES[option.name]
    settings = load_settings(arguments(option.name, text), {})
    router_flag, shard_flag = option.flag_for(Child.ROUTER), option.flag_for(Child.SHARD)
    if router_flag is not None:
        router = load_router_settings(router_command(settings, MODEL, [PLACE.socket])[3:], {})
        assert as_text(getattr(router, field_of(router_flag))) == as_text(value)
    if shard_flag is not None:
        shard = load_shard_settings(shard_command(settings, MODEL, PLACE)[3:], {})
        assert as_text(getattr(shard, field_of(shard_flag))) == as_text(value)


# For each number that a child checks too: a text at each end of what the launcher takes.
BOUNDS = [
    (option, text)
    for option in FORWARDED
    for text in (
        *re.findall(r"whole number (?:from|>=) (\d+)", option.accepted),
        *re.findall(r"from -?\d+ to (-?\d+)", option.accepted),
        *re.findall(r"at most (\d)$", option.accepted),
        *(["0.001"] if "above 0" in option.accepted else []),
    )
]


@pytest.mark.parametrize(("option", "text"), BOUNDS, ids=lambda value: getattr(value, "name", value))
def test_children_take_the_ends_of_what_the_launcher_takes(option: Option, text: str) -> None:
    one_slot = [] if option.name == "num_slots" else ["--num-slots", "1"]  # every slot must fit into a step
    settings = load_settings([*arguments(option.name, text), *one_slot], {})
    if Child.ROUTER in option.to:
        load_router_settings(router_command(settings, MODEL, [PLACE.socket])[3:], {})
    if Child.SHARD in option.to:
        load_shard_settings(shard_command(settings, MODEL, PLACE)[3:], {})


def test_a_value_of_the_file_and_a_flag_win_over_what_a_child_would_read(tmp_path: Path) -> None:
    """The children have the environment too, so that the launcher must hand on what wins over a variable."""
    file = tmp_path / "server.toml"
    file.write_text("prefix-caching = false\nnum_slots = 3\n")
    settings = load_settings(["--config", str(file), "--max-n", "3"], {"MAX_N": "9"})
    router = load_router_settings(router_command(settings, MODEL, [PLACE.socket])[3:], {"MAX_N": "9"})
    shard = load_shard_settings(shard_command(settings, MODEL, PLACE)[3:], {"NUM_SLOTS": ""})
    assert (router.max_n, router.prefix_caching, shard.num_slots) == (3, False, 3)


def test_the_router_reads_all_keys_that_the_launcher_was_given() -> None:
    settings = load_settings(["--api-key", "a,b", "--api-key", "c d"], {})
    command = router_command(settings, MODEL, [PLACE.socket])
    assert [argument for argument in command if "api-key" in argument] == []
    assert load_router_settings(command[3:], router_environment({}, settings)).api_key == ("a,b", "c d")


def test_words_that_the_launcher_takes_are_those_of_its_children() -> None:
    assert sorted(TOOL_FORMAT_NAMES) == sorted(TOOL_FORMATS)
    assert list(REASONING_NAMES) == list(REASONING_FORMATS)
    assert list(V1_ERROR_STYLES) == list(V1_ERRORS)
    assert DTYPES == SHARD_DTYPES
    assert ATTENTION_BACKENDS == SHARD_ATTENTION_BACKENDS
    assert KV_CACHE_DTYPES == SHARD_KV_CACHE_DTYPES
    assert METRICS_ALIASES == ROUTER_METRICS_ALIASES
    assert TASK_SHAPES == ROUTER_TASK_SHAPES
    assert POOLINGS == SHARD_POOLINGS
    [about_swaps] = [option.help for option in OPTIONS if option.name == "disable_swaps"]
    assert [name for name in (*SWAPS, *DEVICE_SWAPS) if name not in about_swaps] == []

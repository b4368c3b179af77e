"""Each row of docs/migrate-from-tgi.md is true of the launcher, and no flag of TGI is left out."""

import dataclasses
import re

import pytest
from textmill_launcher.errors import SettingsError
from textmill_launcher.options import Ignored, Refused
from textmill_launcher.settings import ALL_OPTIONS, OPTIONS, Settings, load_settings
from textmill_router.settings import Settings as RouterSettings

from tests.deploy.manifests import REPOSITORY
from tests.fakes.launcher_flags import GOOD_VALUES, arguments

PAGE = (REPOSITORY / "docs" / "migrate-from-tgi.md").read_text()
# What `text-generation-launcher --help` of version 3 lists.
# fmt: off
TGI_FLAGS = [
    "model-id", "revision", "validation-workers", "sharded", "num-shard", "quantize", "speculate", "dtype",
    "kv-cache-dtype", "trust-remote-code", "max-concurrent-requests", "max-best-of", "max-stop-sequences",
    "max-top-n-tokens", "max-input-tokens", "max-input-length", "max-total-tokens", "waiting-served-ratio",
    "max-batch-prefill-tokens", "max-batch-total-tokens", "max-waiting-tokens", "max-batch-size", "cuda-graphs",
    "hostname", "port", "prometheus-port", "shard-uds-path", "master-addr", "master-port", "huggingface-hub-cache",
    "weights-cache-override", "disable-custom-kernels", "cuda-memory-fraction", "rope-scaling", "rope-factor",
    "json-output", "otlp-endpoint", "otlp-service-name", "cors-allow-origin", "api-key", "watermark-gamma",
    "watermark-delta", "ngrok", "ngrok-authtoken", "ngrok-edge", "tokenizer-config-path", "disable-grammar-support",
    "env", "max-client-batch-size", "lora-adapters", "usage-stats", "payload-limit", "enable-prefill-logprobs",
    "graceful-termination-timeout",
]
# fmt: on


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """Return state and remark of each row of a section's table, by what the first column names."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {
        name: (state, rest) for name, state, rest in re.findall(r"^\| `(.+?)` \| ([\w ]+) \|(.*)\|$", section, re.M)
    }


FLAGS = rows("Flags")
VARIABLES = rows("Variables without a flag")
OURS = {flag: option for option in ALL_OPTIONS for flag in (option.flag, *option.aliases)}
STATES = {"no effect": Ignored, "refused": Refused, "as in TGI": type(None), "differs": type(None), "read": type(None)}


def test_every_flag_of_tgi_has_a_row() -> None:
    assert sorted(FLAGS) == sorted(f"--{name}" for name in TGI_FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_taken_or_refused_as_its_row_says(flag: str) -> None:
    state, _ = FLAGS[flag]
    option = OURS[flag]
    assert option.has_flag
    assert isinstance(option.verdict, STATES[state])
    if state == "refused":
        with pytest.raises(SettingsError, match=f"{flag} is refused"):
            load_settings([flag] if option.is_switch else [flag, "1"], {})
    elif state != "no effect":
        text = GOOD_VALUES[option.name][0]
        command = [flag] if option.is_switch else [flag, text]
        assert load_settings(command, {}) == load_settings(arguments(option.name, text), {})


def test_every_flag_that_the_page_recommends_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE))
    assert named - set(FLAGS) - set(OURS) == set()


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_is_read_or_not_as_its_row_says(variable: str) -> None:
    state = VARIABLES[variable][0]
    environ = {variable: {"LOG_LEVEL": "debug", "AIP_HTTP_PORT": "99", "PREFIX_CACHING": "false"}.get(variable, "1")}
    if state == "refused":
        with pytest.raises(SettingsError, match=f"{variable} is refused"):
            load_settings([], environ)
        return
    settings = load_settings([], environ)
    assert len(settings.notes) == (state == "no effect")
    assert (dataclasses.replace(settings, notes=()) != load_settings([], {})) == (state == "read")


def test_every_variable_that_the_page_recommends_exists() -> None:
    recommended = {name for _, remark in VARIABLES.values() for name in re.findall(r"set `([A-Z_]+)`", remark)}
    assert recommended
    assert recommended <= {name for option in OPTIONS for name in option.variables}


def test_the_numbers_of_the_page_are_the_defaults() -> None:
    defaults = load_settings([], {})
    assert isinstance(defaults, Settings)
    assert f"{defaults.graceful_termination_timeout:g} seconds" in FLAGS["--graceful-termination-timeout"][1]
    assert f" {defaults.port};" in FLAGS["--port"][1]
    for flag in ("--max-concurrent-requests", "--max-best-of", "--max-stop-sequences", "--max-top-n-tokens"):
        default = RouterSettings.__dataclass_fields__[OURS[flag].name].default
        assert FLAGS[flag][1].strip().partition(";")[0] == str(default)
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    for line in ("PORT=8080", "HUGGINGFACE_HUB_CACHE=/models/hub", "USER 10001:0", 'ENTRYPOINT ["launcher"]'):
        assert line in dockerfile

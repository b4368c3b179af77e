"""The settings: flags, their variables, and the messages of refusals."""

import dataclasses
import pwd
from pathlib import Path

import pytest
from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.options import Ignored, Option, Refused
from textmill_launcher.settings import ALL_OPTIONS, OPTIONS, Settings, load_settings
from textmill_launcher.tgi_options import TGI_OPTIONS

from tests.fakes.launcher_flags import COMPANIONS, GOOD_VALUES, arguments


def test_every_option_has_a_sample_here() -> None:
    assert set(GOOD_VALUES) == {option.name for option in OPTIONS}


def test_fields_without_a_flag_are_those_that_only_the_environment_says() -> None:
    without_flag = {field.name for field in dataclasses.fields(Settings)} - set(GOOD_VALUES)
    assert without_flag == {"hub_token", "notes", "visible_devices", "warnings"}


# A value as users of text-generation-inference write it, by the option's name; `true` where no other stands here.
TGI_VALUES = {
    "waiting_served_ratio": "0.3",
    "max_waiting_tokens": "20",
    "max_batch_size": "8",
    "prometheus_port": "9000",
    "usage_stats": "off",
    "rocm_use_skinny_gemm": "1",
    "speculate": "3",
}


def ways(option: Option) -> list[tuple[list[str], dict[str, str]]]:
    """Return the flag of an option and each of its variables, with a value."""
    text = TGI_VALUES.get(option.name, "true")
    flag = [[option.flag] if option.is_switch else [option.flag, text]] if option.has_flag else []
    variables: list[dict[str, str]] = [{name: text} for name in (*option.variables, *option.platform_variables)]
    return [*((argv, {}) for argv in flag), *(([], environ) for environ in variables)]


@pytest.mark.parametrize("option", TGI_OPTIONS, ids=lambda option: option.name)
def test_flags_that_do_nothing_here_say_why_and_their_variables_too(option: Option) -> None:
    assert len(ways(option)) == option.has_flag + len(option.variables) + len(option.platform_variables) >= 1
    for argv, environ in ways(option):
        where = argv[0] if argv else next(iter(environ))
        match option.verdict:
            case Ignored(reason):
                settings = load_settings(argv, environ)
                assert settings.notes == (f"{where} has no effect here: {reason}",)
                assert dataclasses.replace(settings, notes=()) == load_settings([], {})
            case Refused(reason, instead):
                with pytest.raises(SettingsError) as refused:
                    load_settings(argv, environ)
                assert str(refused.value) == f"{where} is refused: {reason}; {instead}"
                assert refused.value.exit_code == 2
            case None:
                pytest.fail(f"{option.name} works, so it is a field of Settings")


@pytest.mark.parametrize(("variable", "value"), [("NGROK", "false"), ("SPECULATE", "0"), ("ATTENTION", "paged")])
def test_a_refused_flag_with_the_value_that_holds_here_is_taken(variable: str, value: str) -> None:
    assert load_settings([], {variable: value}) == load_settings([], {})


def test_all_refusals_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(["--speculate", "2"], {"QUANTIZE": "awq", "ROPE_FACTOR": "2"})
    assert [line.split()[0] for line in str(refused.value).splitlines()] == ["QUANTIZE", "--speculate", "ROPE_FACTOR"]


def test_values_of_flags_without_effect_are_checked() -> None:
    with pytest.raises(SettingsError, match="ENABLE_PREFILL_LOGPROBS is 'perhaps', wanted true or false"):
        load_settings([], {"ENABLE_PREFILL_LOGPROBS": "perhaps"})


def test_no_two_options_share_a_flag_or_a_variable() -> None:
    flags = [flag for option in ALL_OPTIONS if option.has_flag for flag in (option.flag, *option.aliases)]
    variables = [name for option in ALL_OPTIONS for name in (*option.variables, *option.platform_variables)]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)


def test_variables_of_sagemaker_are_the_flags_and_win_over_the_plain_ones() -> None:
    environ = {
        "HF_MODEL_ID": "org/m",
        "HF_MODEL_REVISION": "v2",
        "SM_NUM_GPUS": "4",
        "HF_MODEL_TRUST_REMOTE_CODE": "true",
        "MODEL_ID": "/opt/ml/model",
    }
    settings = load_settings([], environ)
    assert (settings.model_id, settings.revision, settings.num_shard) == ("org/m", "v2", 4)
    assert settings.trust_remote_code
    assert load_settings(["--model-id", "x"], environ).model_id == "x"


def test_env_is_a_flag_alone_because_shells_use_the_variable() -> None:
    assert not load_settings([], {"ENV": "production"}).env
    assert load_settings(["-e"], {}).env


def test_token_of_the_hub_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hf_file\n")
    assert load_settings(["--hf-token-file", str(file)], {}).hub_token == "hf_file"
    assert load_settings(["--hf-token-file", str(file)], {"HF_TOKEN": "hf_x"}).hub_token == "hf_x"
    file.write_text("\n")
    with pytest.raises(SettingsError, match="is empty, wanted the token"):
        load_settings(["--hf-token-file", str(file)], {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(["--hf-token-file", str(tmp_path / "none")], {})


@pytest.mark.parametrize("name", GOOD_VALUES)
def test_flag_sets_its_field(name: str) -> None:
    text, value = GOOD_VALUES[name]
    assert getattr(load_settings(arguments(name, text), {}), name) == value


@pytest.mark.parametrize("name", sorted(set(GOOD_VALUES) - {"env"}))
def test_variable_sets_the_field_of_its_flag(name: str) -> None:
    text, value = GOOD_VALUES[name]
    assert getattr(load_settings(COMPANIONS.get(name, []), {name.upper(): text}), name) == value


def test_flag_wins_over_variable() -> None:
    assert load_settings(["--port", "4000"], {"PORT": "5000"}).port == 4000
    assert load_settings([], {"PORT": "5000", "AIP_HTTP_PORT": "6000"}).port == 6000
    assert load_settings(["--port", "4000"], {"AIP_HTTP_PORT": "6000"}).port == 4000


def test_empty_variable_counts_as_unset() -> None:
    assert load_settings([], {"PORT": "", "MODEL_ID": ""}) == load_settings([], {})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "70000"], ("--port", "'70000'", "1 to 65535")),
        (["--aip-health-route", "alive"], ("--aip-health-route", "'alive'", "begins with a slash")),
        (["--stall-timeout", "0"], ("--stall-timeout", "'0'", "above 0")),
        (["--port", "http"], ("--port", "'http'", "1 to 65535")),
        (["--num-shard", "0"], ("--num-shard", "'0'", "1 to 64")),
        (["--max-concurrent-requests", "-1"], ("--max-concurrent-requests", "'-1'", ">= 1")),
        (["--validation-workers", "0"], ("--validation-workers", "'0'", "1 to 256")),
        (["--memory-fraction", "1.5"], ("--memory-fraction", "'1.5'", "above 0 and at most 1")),
        (["--cuda-memory-fraction", "nan"], ("--cuda-memory-fraction", "'nan'", "above 0 and at most 1")),
        (["--watermark-gamma", "1"], ("--watermark-gamma", "'1'", "above 0 and below 1")),
        (["--watermark-delta", "nan"], ("--watermark-delta", "'nan'", "-100 to 100")),
        (["--dtype", "int3"], ("--dtype", "'int3'", "float32")),
        (["--cuda-graphs", "all"], ("--cuda-graphs", "'all'", ">= 1 with commas")),
        (["--cuda-graphs", "4,"], ("--cuda-graphs", "'4,'", ">= 1 with commas")),
        (["--cuda-graphs", "0,4"], ("--cuda-graphs", "'0,4'", "or 0 for none")),
        (["--attention-backend", "sdpa"], ("--attention-backend", "'sdpa'", "triton, flash, reference")),
        (["--kv-cache-dtype", "fp8"], ("--kv-cache-dtype", "'fp8'", "fp8_e4m3fn")),
        (["--sharded", "perhaps"], ("--sharded", "'perhaps'", "true or false")),
        (["--hostname", "example.org"], ("--hostname", "'example.org'", "IP address")),
        (["--graceful-termination-timeout", "inf"], ("--graceful-termination-timeout", "'inf'", "seconds >= 0")),
        (["--model-id", " "], ("--model-id", "is empty", "hub id")),
        (["--shard-uds-path", "/" + "x" * 200], ("--shard-uds-path", "201 bytes", "at most 104")),
    ],
)
def test_bad_value_is_refused_with_name_value_and_range(argv: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(argv, {})
    assert all(word in str(refused.value) for word in words)


def test_bad_value_of_a_variable_names_the_variable() -> None:
    with pytest.raises(SettingsError, match="MAX_TOP_N_TOKENS is 'many'"):
        load_settings([], {"MAX_TOP_N_TOKENS": "many"})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-input-tokens", "64", "--max-total-tokens", "64"], ("64", "must be smaller")),
        (["--max-batch-prefill-tokens", "9", "--max-step-tokens", "8"], ("9", "8", "must not be larger")),
        (["--max-total-tokens", "65", "--max-batch-total-tokens", "64"], ("65", "64", "never fits")),
        (["--max-input-tokens", "3", "--max-input-length", "4"], ("--max-input-length and --max-input-tokens",)),
    ],
)
def test_values_that_exclude_each_other_are_refused(argv: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConflictingSettings) as refused:
        load_settings(argv, {})
    assert all(word in str(refused.value) for word in words)


def test_max_input_length_is_the_older_name_of_max_input_tokens() -> None:
    assert load_settings(["--max-input-length", "9"], {}).max_input_tokens == 9
    assert load_settings([], {"MAX_INPUT_LENGTH": "9"}).max_input_tokens == 9


def test_hostname_variable_that_names_the_machine_is_no_wish() -> None:
    settings = load_settings([], {"HOSTNAME": "a1b2c3"})
    assert settings.hostname == "0.0.0.0"
    assert "a1b2c3" in settings.warnings[0]


def test_origins_come_from_repeated_flags_and_comma_lists() -> None:
    argv = ["--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"]
    assert load_settings(argv, {}).cors_allow_origin == ("https://a", "https://b")
    assert load_settings([], {"CORS_ALLOW_ORIGIN": "https://a, https://b"}).cors_allow_origin == (
        "https://a",
        "https://b",
    )


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"])
def test_hub_token_comes_from_any_of_its_variables(variable: str) -> None:
    assert load_settings([], {variable: "hf_x"}).hub_token == "hf_x"


def test_description_masks_secrets() -> None:
    shown = str(load_settings(["--api-key", "s3cret"], {"HF_TOKEN": "hf_x"}).describe())
    assert "s3cret" not in shown
    assert "hf_x" not in shown
    assert "'api_key': '***'" in shown


def test_several_keys_come_from_repeated_flags_and_from_lines_of_the_variable() -> None:
    assert load_settings(["--api-key", "a,b", "--api-key", "c"], {}).api_key == ("a,b", "c")
    assert load_settings([], {"API_KEY": "a,b\nc\n"}).api_key == ("a,b", "c")
    for bad in ("\n", "a\n\nb"):
        with pytest.raises(SettingsError, match=r"API_KEY is (empty|\*\*\*, wanted some text on each line)"):
            load_settings([], {"API_KEY": bad})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tls-cert", "c.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-key", "k.pem"], "--tls-cert and --tls-key belong together"),
        (["--cors-allow-credentials"], "--cors-allow-credentials needs --cors-allow-origin"),
        (["--port", "90", "--kv-events-port", "90"], "--port and --kv-events-port are 90"),
        (["--port", "90", "--kv-events-port", "89"], "--port and --kv-events-replay-port are 90"),
    ],
)
def test_flags_that_need_another_flag_say_so(argv: list[str], words: str) -> None:
    with pytest.raises(ConflictingSettings, match=words):
        load_settings(argv, {})


def test_empty_value_is_told_with_the_way_out() -> None:
    with pytest.raises(SettingsError, match=r"^--api-key is empty: give a value, or leave it out \(key that callers"):
        load_settings(["--api-key", "  "], {})


@pytest.mark.parametrize(
    ("value", "level"), [("trace", "DEBUG"), ("warn", "WARNING"), ("textmill=debug,info", "INFO"), ("a=b", "INFO")]
)
def test_log_level_takes_words_and_filters(value: str, level: str) -> None:
    assert load_settings([], {"LOG_LEVEL": value}).log_level == level


def test_log_level_is_a_flag_too() -> None:
    assert load_settings(["--log-level", "warn"], {"LOG_LEVEL": "debug"}).log_level == "WARNING"


def test_unknown_log_level_is_refused() -> None:
    with pytest.raises(SettingsError, match="LOG_LEVEL is 'loud'"):
        load_settings([], {"LOG_LEVEL": "loud"})


def test_help_shows_the_words_that_a_flag_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--help"], {})
    shown = capsys.readouterr().out
    for words in ("--device auto|cpu|cuda", "--v1-errors mixed|openai|tgi", "--sharded true|false", "--port N"):
        assert words in shown


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), (["--version"], 0), (["--num-shards", "2"], 2)])
def test_help_and_version_end_well_and_an_unknown_flag_does_not(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(argv, {})
    assert ended.value.code == code
    assert capsys.readouterr() != ("", "")


def test_conversion_cache_lies_in_the_cache_of_the_user() -> None:
    assert load_settings([], {"XDG_CACHE_HOME": "/c"}).conversion_cache == "/c/textmill/converted"
    assert load_settings([], {"HOME": "/home/u"}).conversion_cache == "/home/u/.cache/textmill/converted"


def test_user_without_home_and_without_an_entry_gets_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run under any user id, so a home is needed only where no flag or variable names the folder."""

    def nobody(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(SettingsError, match="set HOME or XDG_CACHE_HOME, or give --conversion-cache"):
        load_settings([], {})
    assert load_settings(["--conversion-cache", "/c"], {}).conversion_cache == "/c"


def test_shards_that_meet_outside_of_the_loopback_are_warned_of() -> None:
    for inside in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert load_settings(["--master-addr", inside], {}).warnings == ()
    [warning] = load_settings(["--master-addr", "10.0.0.7"], {}).warnings
    assert "--master-addr is 10.0.0.7" in warning
    assert "without encryption" in warning


def test_nodes_are_known_by_flags_or_by_the_variables_of_a_leader_worker_set() -> None:
    variables = {"LWS_GROUP_SIZE": "3", "LWS_WORKER_INDEX": "2", "LWS_LEADER_ADDRESS": "x-0.x.default"}
    settings = load_settings([], variables)
    assert (settings.num_nodes, settings.node_rank, settings.master_addr) == (3, 2, "x-0.x.default")
    assert load_settings(["--node-rank", "1"], variables).node_rank == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--node-rank", "1"], "--node-rank is 1 and --num-nodes is 1"),
        (["--num-nodes", "2"], "--master-addr is missing"),
        (["--num-nodes", "2", "--master-addr", "10.0.0.1", "--num-replicas", "2"], "--num-replicas is 2"),
        (["--num-nodes", "2", "--master-addr", "10.0.0.1", "--lora-adapters", "a=/x"], "adapters"),
    ],
)
def test_node_that_cannot_be_is_refused(flags: list[str], words: str) -> None:
    with pytest.raises(ConflictingSettings, match=words):
        load_settings(flags, {})

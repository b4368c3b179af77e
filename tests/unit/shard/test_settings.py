import pwd
from pathlib import Path

import pytest
from textmill_shard.options import Option
from textmill_shard.settings import (
    CONVERT_OPTIONS,
    SERVE_OPTIONS,
    ConvertSettings,
    ServeSettings,
    SettingsError,
    default_num_threads,
    load_settings,
)

SERVE = ["serve", "--model-dir", "/models/tiny", "--uds-path", "/run/shard-0"]


def serve(*flags: str, **environ: str) -> ServeSettings:
    settings = load_settings([*SERVE, *flags], environ)
    assert isinstance(settings, ServeSettings)
    return settings


def test_defaults() -> None:
    settings = serve("--num-threads", "3")
    assert settings.model_id == "tiny"
    assert (settings.rank, settings.world_size, settings.master_port) == (0, 1, None)
    assert (settings.dtype, settings.device, settings.block_size) == ("auto", "auto", 16)
    assert (settings.num_slots, settings.max_step_tokens, settings.num_threads) == (64, None, 3)
    assert (settings.kv_cache_bytes, settings.max_kv_tokens, settings.memory_fraction) == (None, None, None)
    assert settings.router_lease_s == 5.0
    assert (settings.json_output, settings.log_level) == (False, "INFO")


def test_a_text_of_1024_tokens_fits_a_step_beside_all_other_slots() -> None:
    """BART and its kin read 1,024 tokens at once."""
    assert serve().step_tokens(has_encoder=False) == 1024
    assert serve("--num-slots", "7").step_tokens(has_encoder=True) == 1024 + 7
    for has_encoder in (False, True):
        assert serve("--max-step-tokens", "99", "--num-slots", "7").step_tokens(has_encoder=has_encoder) == 99


TLS = ["--shard-tls-cert", "/c.pem", "--shard-tls-key", "/k.pem", "--shard-tls-ca", "/ca.pem"]
EXAMPLES = {
    "model_dir": ("/m", Path("/m")),
    "model_id": ("name", "name"),
    "model_sha": ("abc", "abc"),
    "uds_path": ("/s", Path("/s")),
    "shard_address": ("[::1]:9000", "[::1]:9000"),
    "shard_tls_cert": ("/c.pem", "/c.pem"),
    "shard_tls_key": ("/k.pem", "/k.pem"),
    "shard_tls_ca": ("/ca.pem", "/ca.pem"),
    "rank": ("0", 0),
    "task": ("summarization", "summarization"),
    "pooling": ("cls", "cls"),
    "max_batch_tokens": ("4096", 4096),
    "max_image_pixels": ("1000", 1000),
    "max_audio_seconds": ("60", 60.0),
    "world_size": ("3", 3),
    "local_rank": ("0", 0),
    "local_world_size": ("2", 2),
    "replica": ("1", 1),
    "num_replicas": ("2", 2),
    "master_addr": ("::1", "::1"),
    "master_port": ("29500", 29500),
    "dtype": ("bfloat16", "bfloat16"),
    "kv_cache_dtype": ("fp8_e4m3fn", "fp8_e4m3fn"),
    "device": ("cuda:1", "cuda:1"),
    "kv_cache_bytes": ("1000000", 1_000_000),
    "memory_fraction": ("0.5", 0.5),
    "max_kv_tokens": ("4096", 4096),
    "lora_memory_bytes": ("auto", None),
    "max_lora_rank": ("512", 512),
    "media_cache_bytes": ("4096", 4096),
    "block_size": ("32", 32),
    "num_slots": ("8", 8),
    "max_step_tokens": ("99", 99),
    "num_threads": ("2", 2),
    "native_cache_dir": ("/c", Path("/c")),
    "attention_backend": ("flash", "flash"),
    "no_native_kernels": ("true", True),
    "no_native_decoder": ("true", True),
    "cuda_graphs": ("1,2,8", (1, 2, 8)),
    "no_graphs": ("true", True),
    "no_overlap": ("true", True),
    "trust_remote_code": ("true", True),
    "allow_pickle": ("true", True),
    "text_only": ("true", True),
    "disable_swaps": ("qkv, rms_norm", ("qkv", "rms_norm")),
    "watermark_gamma": ("0.25", 0.25),
    "watermark_delta": ("-1.5", -1.5),
    "router_lease_s": ("0.5", 0.5),
    "json_output": ("true", True),
}


def test_every_flag_has_a_variable_and_the_flag_wins() -> None:
    assert {option.name for option in SERVE_OPTIONS} == set(EXAMPLES)
    environ = {option.variables[0]: EXAMPLES[option.name][0] for option in SERVE_OPTIONS}
    settings = load_settings(["serve"], environ)
    for option in SERVE_OPTIONS:
        assert option.variables[0] == option.flag[2:].replace("-", "_").upper()
        assert getattr(settings, option.name) == EXAMPLES[option.name][1], option.name
    settings = load_settings(["serve", "--num-slots", "5"], environ)
    assert isinstance(settings, ServeSettings)
    assert settings.num_slots == 5


def test_an_empty_variable_counts_as_unset() -> None:
    assert serve(NUM_SLOTS="").num_slots == 64


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (["--num-slots", "0"], {}, r"--num-slots is '0', wanted a whole number >= 1"),
        ([], {"NUM_SLOTS": "many"}, r"NUM_SLOTS is 'many', wanted a whole number >= 1"),
        (["--memory-fraction", "1.5"], {}, "--memory-fraction is '1.5', wanted a number above 0 and at most 1"),
        (["--memory-fraction", "nan"], {}, "--memory-fraction"),
        (["--dtype", "int8"], {}, "wanted one of auto, float32, bfloat16, float16"),
        (["--device", "gpu"], {}, "--device is 'gpu', wanted auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:"], {}, "--device is 'cuda:'"),
        (["--lora-memory-bytes", "5%"], {}, "--lora-memory-bytes is '5%', wanted a whole number >= 0, or auto"),
        (["--max-lora-rank", "513"], {}, "--max-lora-rank is '513', wanted a whole number from 1 to 512"),
        (["--watermark-gamma", "1"], {}, "--watermark-gamma is '1', wanted a number above 0 and below 1"),
        (["--watermark-delta", "inf"], {}, "--watermark-delta is 'inf', wanted a number from -100 to 100"),
        (["--router-lease-s", "0"], {}, "--router-lease-s"),
        ([], {"JSON_OUTPUT": "maybe"}, "JSON_OUTPUT is 'maybe', wanted true or false"),
        ([], {"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        (["--rank", "1"], {}, "--rank is 1, with --world-size 1"),
        (["--replica", "2", "--num-replicas", "2"], {}, "--replica is 2, with --num-replicas 2"),
        (["--world-size", "2"], {}, "--master-port is missing"),
        (["--shard-address", "9000"], {}, "--shard-address is '9000', wanted a host and a port"),
        (["--shard-address", "::1:9000"], {}, "wanted a host and a port, such as 127.0.0.1:9000 or"),
        (["--shard-address", "h:0"], {}, "wanted a host and a port from 1 to 65535"),
        (["--shard-address", "h:9000"], {}, "--shard-address needs --shard-tls-cert, --shard-tls-key, --shard-tls-ca:"),
        (["--shard-address", "h:9000", *TLS[:4]], {}, "--shard-address needs --shard-tls-ca: over TCP"),
        (TLS, {}, "need --shard-address"),
        (
            ["--shard-address", "h:9000", *TLS, "--rank", "1", "--world-size", "2", "--master-port", "5"],
            {},
            "for rank 0, which has the stream; this is rank 1",
        ),
        (["--task", "rerank", "--world-size", "2", "--master-port", "1"], {}, "--num-replicas of the launcher"),
        (["--task", "rerank", "--kv-cache-dtype", "fp8_e5m2"], {}, "--task rerank keeps no keys and values"),
        (["--kv-cache-dtype", "fp8"], {}, "--kv-cache-dtype is 'fp8', wanted one of auto, fp8_e4m3fn, fp8_e5m2"),
        (
            ["--cuda-graphs", "all"],
            {},
            "--cuda-graphs is 'all', wanted whole numbers >= 1 with commas between them, or 0",
        ),
        (["--cuda-graphs", "4,"], {}, "--cuda-graphs is '4,', wanted whole numbers >= 1"),
        (["--cuda-graphs", "0,4"], {}, "--cuda-graphs is '0,4', wanted whole numbers >= 1"),
        (["--cuda-graphs", "4,-1"], {}, "--cuda-graphs is '4,-1', wanted whole numbers >= 1"),
        (["--attention-backend", "sdpa"], {}, "--attention-backend is 'sdpa', wanted one of triton, flash, reference"),
        (["--task", "guess"], {}, "--task is 'guess', wanted one of text-generation"),
        (["--num-slots", "65", "--max-step-tokens", "64"], {}, "slots <= tokens per step"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(flags: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings([*SERVE, *flags], environ)


@pytest.mark.parametrize("missing", ["--model-dir", "--uds-path"])
def test_a_required_flag_that_is_missing_is_named(missing: str) -> None:
    at = SERVE.index(missing)
    with pytest.raises(SettingsError, match=f"{missing} is missing"):
        load_settings(SERVE[:at] + SERVE[at + 2 :], {})


def test_an_unknown_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings([*SERVE, "--watermark"], {})
    assert ended.value.code == 2
    assert "unrecognized arguments: --watermark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_cores", "world_size", "expected"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (8, 1, 7), (8, 2, 3), (2, 4, 1)]
)
def test_one_core_of_many_is_left_to_the_router(num_cores: int, world_size: int, expected: int) -> None:
    assert default_num_threads(num_cores, world_size) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/textmill/native")),
        ({}, Path.home() / ".cache/textmill/native"),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache/textmill/native"),
    ],
)
def test_kernels_are_kept_in_the_users_cache(environ: dict[str, str], expected: Path) -> None:
    assert serve(**environ).native_cache_dir == expected


def test_user_without_home_and_without_an_entry_gets_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run under any user id. Only where nothing names a folder, a folder is asked for."""

    def nobody(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(SettingsError, match="set HOME or XDG_CACHE_HOME, or give --native-cache-dir"):
        load_settings(SERVE, {})
    assert serve("--native-cache-dir", "/c").native_cache_dir == Path("/c")


def test_convert_has_its_own_flags() -> None:
    settings = load_settings(["convert", "--gguf", "/m.gguf"], {"CACHE_DIR": "/cache"})
    assert settings == ConvertSettings(
        gguf=Path("/m.gguf"), cache_dir=Path("/cache"), dtype="bfloat16", json_output=False, log_level="INFO"
    )
    assert {option.name for option in CONVERT_OPTIONS} == {"gguf", "cache_dir", "dtype", "json_output"}
    with pytest.raises(SettingsError, match="--dtype is 'auto'"):
        load_settings(["convert", "--gguf", "/m.gguf", "--cache-dir", "/c", "--dtype", "auto"], {})


@pytest.mark.parametrize(
    "option", [option for option in SERVE_OPTIONS if option.aliases], ids=lambda option: option.flag
)
def test_an_alias_means_what_its_option_means(option: Option) -> None:
    example, value = EXAMPLES[option.name]
    needed = [word for one in SERVE_OPTIONS if one.is_required for word in (one.flag, EXAMPLES[one.name][0])]
    for alias, variable in zip(option.aliases, option.variables[1:], strict=True):
        flag = [alias] if option.is_switch else [alias, example]
        by_flag = load_settings(["serve", *needed, *flag], {})
        by_variable = load_settings(["serve", *needed], {variable: example})
        assert getattr(by_flag, option.name) == getattr(by_variable, option.name) == value
        assert getattr(load_settings(["serve", *needed], {}), option.name) != value

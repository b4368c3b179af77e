"""The file of `--config`, and the settings printed as such a file."""

from pathlib import Path

import pytest
from textmill_launcher.config_print import print_config
from textmill_launcher.errors import ConflictingSettings, SettingsError
from textmill_launcher.settings import OPTIONS, load_settings, read_start, serve_parser

from tests.fakes.launcher_flags import GOOD_VALUES, arguments


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def load(file: Path, text: str, *argv: str, **environ: str):  # type: ignore[no-untyped-def]
    file.write_text(text)
    return load_settings(["--config", str(file), *argv], environ)


def test_keys_are_flags_with_dashes_or_underscores_and_their_older_names(file: Path) -> None:
    settings = load(
        file,
        'model-id = "org/m"\nmax_input_length = 7\nmemory-fraction = 0.5\nstrict_model = true\nsharded = false\n'
        'cors-allow-origin = ["https://a", "https://b"]\n',
    )
    assert (settings.model_id, settings.max_input_tokens, settings.memory_fraction) == ("org/m", 7, 0.5)
    assert (settings.strict_model, settings.sharded) == (True, False)
    assert settings.cors_allow_origin == ("https://a", "https://b")


def test_flags_then_platforms_then_variables_win_over_the_file(file: Path) -> None:
    text = "port = 1\n"
    assert load(file, text).port == 1
    assert load(file, text, PORT="2").port == 2
    assert load(file, text, PORT="2", AIP_HTTP_PORT="3").port == 3
    assert load(file, text, "--port", "4", PORT="2", AIP_HTTP_PORT="3").port == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-inptu-tokens = 3", ("max-inptu-tokens", "did you mean max_input_tokens?")),
        ("zzz = 3", ("the key zzz, which is no flag",)),
        ("port = 70000", ("port in ", "server.toml is '70000'", "1 to 65535")),
        ("port = [1, 2]", ("is a list, wanted one value: a whole number from 1 to 65535",)),
        ("[serving]\nport = 1", ("serving", "no flag")),
        ("[port]\nx = 1", ("port in ", "is a table")),
        ("port = 2020-01-01", ("wanted a text, a number",)),
        ("port = x y", ("is no TOML", "line 1")),
        ('quantize = "awq"', ("quantize in ", "is refused", "leave it out")),
        ('api_key = " "', ("api_key in ", "is empty")),
    ],
)
def test_mistakes_of_the_file_are_named(file: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as refused:
        load(file, text)
    assert all(word in str(refused.value) for word in words), refused.value


def test_two_names_of_one_flag_exclude_each_other(file: Path) -> None:
    with pytest.raises(ConflictingSettings, match="mean the same"):
        load(file, "max_input_tokens = 3\nmax_input_length = 3\n")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*none\.toml cannot be read"):
        load_settings(["--config", str(tmp_path / "none.toml")], {})


def printed(argv: list[str], environ: dict[str, str]) -> str:
    return print_config(read_start(serve_parser(), argv, environ))


@pytest.mark.parametrize("name", sorted(set(GOOD_VALUES) - {"api_key"}))
def test_printed_settings_are_a_file_that_means_the_same(name: str, file: Path) -> None:
    argv = arguments(name, GOOD_VALUES[name][0])
    file.write_text(printed(argv, {}))
    assert load_settings(["--config", str(file)], {}) == load_settings(argv, {})


def test_printed_settings_tell_where_each_value_is_from(file: Path) -> None:
    file.write_text("max-n = 3\n")
    shown = printed(["--config", str(file), "-p", "80"], {"MAX_BEST_OF": "4", "API_KEY": "s3cret"}).splitlines()
    for line in (
        "port = 80  # -p",
        "max_best_of = 4  # MAX_BEST_OF",
        f"max_n = 3  # max-n in {file}",
        "# max_top_n_tokens = 5  # default",
        '# pooling = "auto"  # default',
        "# prefix_caching = true  # default",
        'hostname = "0.0.0.0"  # default',
        "# max_input_tokens: the router decides",
        "# api_key = ***  # API_KEY",
    ):
        assert line in shown
    assert "s3cret" not in "\n".join(shown)
    keys = [line.lstrip("# ").partition(" ")[0].rstrip(":") for line in shown if "  # " in line or "decides" in line]
    assert keys == [option.name for option in OPTIONS]

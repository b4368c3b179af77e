"""argv and environment become settings, or a message that says what to change."""

import pytest
from textmill_router.settings import SettingsError, load_settings

NEEDED = ["--model-dir", "/m", "--model-id", "org/m", "--shard-uds-path", "/s.sock"]


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings(NEEDED, {})
    assert (settings.max_concurrent_requests, settings.max_best_of, settings.max_stop_sequences) == (128, 2, 4)
    assert (settings.max_top_n_tokens, settings.max_client_batch_size, settings.validation_workers) == (5, 4, 2)
    assert (settings.payload_limit, settings.port, settings.hostname) == (None, 3000, "0.0.0.0")
    assert settings.max_input_tokens is None
    assert settings.metrics_alias is None
    assert settings.max_total_tokens is None


def test_flag_wins_over_variable() -> None:
    environ = {"MAX_BEST_OF": "7", "MAX_STOP_SEQUENCES": "8", "PREFIX_CACHING": "0"}
    settings = load_settings([*NEEDED, "--max-best-of", "3"], environ)
    assert (settings.max_best_of, settings.max_stop_sequences, settings.prefix_caching) == (3, 8, False)


def test_lists_come_from_repeated_flags_or_a_comma_list() -> None:
    flags = ["--cors-allow-origin", "http://a", "--cors-allow-origin", "http://b"]
    assert load_settings([*NEEDED, *flags], {}).cors_allow_origin == ("http://a", "http://b")
    assert load_settings(NEEDED, {"CORS_ALLOW_ORIGIN": "http://a,http://b"}).cors_allow_origin == (
        "http://a",
        "http://b",
    )


def test_hostname_of_the_machine_is_not_an_address_to_listen_on() -> None:
    assert load_settings(NEEDED, {"HOSTNAME": "box17"}).hostname == "0.0.0.0"
    assert load_settings(NEEDED, {"HOSTNAME": "127.0.0.2"}).hostname == "127.0.0.2"


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["--port", "70000"], {}, ("--port", "70000", "65535")),
        (["--max-best-of", "x"], {}, ("--max-best-of", "'x'", "whole number")),
        ([], {"VALIDATION_WORKERS": "0"}, ("VALIDATION_WORKERS", "'0'", "1 to 256")),
        (["--header-timeout", "-1"], {}, ("--header-timeout", "seconds")),
        (["--hostname", "example.org"], {}, ("--hostname", "IP address")),
        (["--metrics-alias", "tgi"], {}, ("--metrics-alias", "'tgi'", "vllm")),
        (["--max-input-tokens", "10", "--max-total-tokens", "10"], {}, ("--max-input-tokens", "smaller")),
        ([], {"LOG_LEVEL": "loud"}, ("LOG_LEVEL", "loud")),
        (["--tls-cert", "c.pem"], {}, ("--tls-cert", "--tls-key", "belong together")),
        ([], {"TLS_KEY": "k.pem"}, ("--tls-cert", "--tls-key", "belong together")),
        (["--shard-address", "h:1"], {}, ("either --shard-uds-path or --shard-address",)),
        (["--shard-tls-ca", "ca.pem"], {}, ("--shard-tls-ca need --shard-address",)),
        (["--cors-allow-credentials"], {}, ("--cors-allow-credentials", "needs --cors-allow-origin")),
        (["--cors-allow-header", "a b"], {}, ("--cors-allow-header", "'a b'", "name of a header")),
        (["--cors-max-age", "-1"], {}, ("--cors-max-age", "0 to 86400")),
    ],
)
def test_bad_value_is_named_with_what_would_do(
    argv: list[str], environ: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings([*NEEDED, *argv], environ)
    for word in words:
        assert word in str(caught.value)


TCP = ["--shard-address", "h:9000", "--shard-address", "h:9001"]
TLS = ["--shard-tls-cert", "c.pem", "--shard-tls-key", "k.pem", "--shard-tls-ca", "ca.pem"]


def test_shards_are_reached_by_sockets_or_over_tcp_with_certificates() -> None:
    model = ["--model-dir", "/m", "--model-id", "org/m"]
    assert load_settings([*model, *TCP, *TLS], {}).num_replicas == 2
    assert load_settings([*NEEDED, "--shard-uds-path", "/t.sock"], {}).num_replicas == 2
    for flags, words in (
        ([], "either --shard-uds-path or --shard-address"),
        (TCP, "--shard-address needs --shard-tls-cert, --shard-tls-key, --shard-tls-ca"),
        ([*TCP, *TLS[:4]], "--shard-address needs --shard-tls-ca"),
        (["--shard-address", "h"], "a host and a port"),
    ):
        with pytest.raises(SettingsError, match=words):
            load_settings([*model, *flags], {})


def test_missing_flag_is_named() -> None:
    with pytest.raises(SettingsError, match="--model-id"):
        load_settings(["--model-dir", "/m", "--shard-uds-path", "/s"], {})


def test_secret_is_masked() -> None:
    settings = load_settings([*NEEDED, "--api-key", "hush"], {})
    assert settings.api_key == ("hush",)
    assert "hush" not in str(settings.describe())
    with pytest.raises(SettingsError) as caught:
        load_settings([*NEEDED, "--api-key", " "], {})
    assert "'" not in str(caught.value)


def test_several_keys_come_from_repeated_flags_and_from_lines_of_the_variable() -> None:
    assert load_settings([*NEEDED, "--api-key", "a,b", "--api-key", "c"], {}).api_key == ("a,b", "c")
    assert load_settings(NEEDED, {"API_KEY": "a,b\nc\n"}).api_key == ("a,b", "c")
    assert load_settings(NEEDED, {}).api_key == ()
    for bad in ("\n", "a\n\nb"):  # a blank key would let everybody in
        with pytest.raises(SettingsError, match=r"API_KEY is \*\*\*"):
            load_settings(NEEDED, {"API_KEY": bad})


def test_log_level_of_a_filter_is_its_general_part() -> None:
    assert load_settings(NEEDED, {"LOG_LEVEL": "warn,textmill=debug"}).log_level == "WARNING"

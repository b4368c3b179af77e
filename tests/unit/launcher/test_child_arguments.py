"""The command lines and environments of the children."""

import dataclasses
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from textmill_launcher.child_arguments import (
    ModelFolder,
    ShardPlace,
    child_environment,
    download_command,
    download_environment,
    drain_timeout_s,
    router_command,
    router_environment,
    shard_command,
)
from textmill_launcher.settings import load_settings

MODEL = ModelFolder(path=Path("/models/m"), model_id="org/m", model_sha="a" * 40)
ALONE = ShardPlace(rank=0, world_size=1, socket=Path("/run/s-0"), master_addr="127.0.0.1", master_port=None)
SECRETS = {"API_KEY": "s3cret", "HF_TOKEN": "hf_1", "HF_API_TOKEN": "hf_2", "HUGGING_FACE_HUB_TOKEN": "hf_3"}


def value_after(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1, command
    return command[command.index(flag) + 1]


def test_unset_options_are_left_to_the_room_that_uses_them() -> None:
    settings = load_settings([], {})
    given = [argument for argument in router_command(settings, MODEL, [ALONE.socket]) if argument.startswith("--")]
    own = [
        "--model-dir",
        "--model-id",
        "--model-sha",
        "--task",
        "--shard-uds-path",
        "--launcher-notes",
        "--drain-timeout",
    ]
    used_by_both = ["--hostname", "--port", "--shutdown-delay"]
    assert sorted(given) == sorted([*own, *used_by_both])
    assert "--dtype" not in shard_command(settings, MODEL, ALONE)


def test_children_are_told_the_task_and_the_shard_only_one_that_writes_no_text() -> None:
    settings, classifier = load_settings([], {}), dataclasses.replace(MODEL, task="text-classification")
    assert value_after(router_command(settings, classifier, [ALONE.socket]), "--task") == "text-classification"
    assert value_after(shard_command(settings, classifier, ALONE), "--task") == "text-classification"
    assert value_after(router_command(settings, MODEL, [ALONE.socket]), "--task") == "text-generation"
    assert "--task" not in shard_command(settings, MODEL, ALONE)


def test_shard_gets_rank_socket_and_its_options() -> None:
    settings = load_settings(["--dtype", "float32", "--kv-cache-bytes", "999", "--json-output"], {})
    place = dataclasses.replace(ALONE, rank=1, world_size=2, socket=Path("/run/s-1"), master_port=29999)
    command = shard_command(settings, MODEL, place)
    assert command[1:4] == ["-m", "textmill_shard", "serve"]
    assert value_after(command, "--rank") == "1"
    assert value_after(command, "--world-size") == "2"
    assert value_after(command, "--uds-path") == "/run/s-1"
    assert value_after(command, "--master-port") == "29999"
    assert value_after(command, "--dtype") == "float32"
    assert value_after(command, "--kv-cache-bytes") == "999"
    assert "--json-output" in command


SHARD_TLS = ["--shard-tls-cert", "/c.pem", "--shard-tls-key", "/k.pem", "--shard-tls-ca", "/ca.pem"]


def test_over_tcp_rank_0_of_each_replica_has_a_port_of_its_own_and_the_router_knows_them() -> None:
    settings = load_settings(["--shard-address", "[::1]:9000", *SHARD_TLS, "--num-replicas", "2"], {})
    for replica, port in enumerate((9000, 9001)):
        place = replace(ALONE, world_size=2, master_port=5, replica=replica)
        command = shard_command(settings, MODEL, place)
        assert value_after(command, "--shard-address") == f"[::1]:{port}"
        assert value_after(command, "--shard-tls-key") == "/k.pem"
        assert value_after(command, "--uds-path") == "/run/s-0"  # the launcher asks for health there
        assert "--shard-address" not in shard_command(settings, MODEL, replace(place, rank=1))
    command = router_command(settings, MODEL, [Path("/run/s-0"), Path("/run/s-1")])
    places = [command[at + 1] for at, word in enumerate(command) if word == "--shard-address"]
    assert places == ["[::1]:9000", "[::1]:9001"]
    assert value_after(command, "--shard-tls-ca") == "/ca.pem"
    assert "--shard-uds-path" not in command


def test_variables_of_the_shards_places_do_not_reach_the_children() -> None:
    environ = {"SHARD_ADDRESS": "127.0.0.1:9", "SHARD_TLS_CA": "/ca.pem", "SHARD_UDS_PATH": "/run/s", "HOME": "/h"}
    names = child_environment(environ, load_settings([], {})).keys()
    assert "HOME" in names
    assert not [name for name in names if name.startswith("SHARD_")]


def test_largest_step_of_the_shard_holds_the_prefill_budget_and_the_decodes() -> None:
    command = shard_command(load_settings(["--max-batch-prefill-tokens", "8192"], {}), MODEL, ALONE)
    assert int(value_after(command, "--max-step-tokens")) == 8192 + 256


def test_tokens_of_all_requests_together_bound_the_kv_cache() -> None:
    command = shard_command(load_settings(["--max-batch-total-tokens", "4096"], {}), MODEL, ALONE)
    assert value_after(command, "--max-kv-tokens") == "4096"


def test_log_level_reaches_the_children_without_its_filters() -> None:
    settings = load_settings([], {"LOG_LEVEL": "textmill_router=debug,warn"})
    assert child_environment({"LOG_LEVEL": "textmill_router=debug,warn"}, settings)["LOG_LEVEL"] == "warning"


def test_single_shard_has_nobody_to_meet() -> None:
    assert "--master-addr" not in shard_command(load_settings([], {}), MODEL, ALONE)


def test_each_shard_knows_its_replica_and_the_router_finds_them_all() -> None:
    settings = load_settings(["--num-replicas", "2"], {})
    command = shard_command(settings, MODEL, replace(ALONE, replica=1))
    assert (value_after(command, "--replica"), value_after(command, "--num-replicas")) == ("1", "2")
    command = router_command(settings, MODEL, [Path("/run/s-0"), Path("/run/s-4")])
    paths = [command[index + 1] for index, part in enumerate(command) if part == "--shard-uds-path"]
    assert paths == ["/run/s-0", "/run/s-4"]


def test_router_gets_limits_and_each_origin() -> None:
    argv = ["--max-best-of", "3", "--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"]
    command = router_command(load_settings(argv, {}), MODEL, [Path("/run/s-0")])
    assert value_after(command, "--max-best-of") == "3"
    assert value_after(command, "--shard-uds-path") == "/run/s-0"
    assert value_after(command, "--model-sha") == "a" * 40
    assert [command[i + 1] for i, part in enumerate(command) if part == "--cors-allow-origin"] == [
        "https://a",
        "https://b",
    ]


def test_router_drains_a_little_shorter_than_until_its_sigkill() -> None:
    assert drain_timeout_s(90.0) == 81.0
    assert drain_timeout_s(1000.0) == 990.0
    assert drain_timeout_s(0.0) > 0.0


def test_secrets_are_on_no_command_line() -> None:
    settings = load_settings(["--api-key", "s3cret"], SECRETS)
    commands = [
        router_command(settings, MODEL, [ALONE.socket]),
        shard_command(settings, MODEL, ALONE),
        download_command("org/m", settings),
    ]
    assert not any(secret in " ".join(command) for command in commands for secret in SECRETS.values())


def test_each_child_gets_only_the_secret_it_needs() -> None:
    settings = load_settings([], SECRETS)
    environ = {**SECRETS, "PATH": "/bin"}
    assert not set(SECRETS) & set(child_environment(environ, settings))
    assert {name for name in SECRETS if name in router_environment(environ, settings)} == {"API_KEY"}
    assert {name for name in SECRETS if name in download_environment(environ, settings)} == {"HF_TOKEN"}
    assert child_environment(environ, settings)["PATH"] == "/bin"


def test_shards_that_meet_on_the_loopback_talk_on_the_loopback() -> None:
    inside = child_environment({}, load_settings([], {}))
    assert inside["GLOO_SOCKET_IFNAME"] in [name for _, name in socket.if_nameindex()]
    assert inside["NCCL_SOCKET_IFNAME"] == inside["GLOO_SOCKET_IFNAME"]
    chosen = child_environment({"GLOO_SOCKET_IFNAME": "eth7"}, load_settings([], {}))
    assert chosen["GLOO_SOCKET_IFNAME"] == "eth7"
    assert "GLOO_SOCKET_IFNAME" not in child_environment({}, load_settings(["--master-addr", "10.0.0.7"], {}))


def test_children_never_ask_the_hub_but_the_download_does() -> None:
    settings = load_settings([], {})
    assert child_environment({}, settings)["HF_HUB_OFFLINE"] == "1"
    assert child_environment({"USE_HUB_KERNELS": "YES"}, settings)["USE_HUB_KERNELS"] == "NO"
    assert "HF_HUB_OFFLINE" not in download_environment({}, settings)
    assert download_environment({"HF_HUB_OFFLINE": "1"}, settings)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("is_trusted", [True, False])
def test_code_of_the_model_is_fetched_and_run_together(is_trusted: bool) -> None:
    settings = load_settings(["--trust-remote-code"] if is_trusted else [], {})
    assert ("--with-code" in download_command("org/m", settings)) == is_trusted
    assert ("--trust-remote-code" in shard_command(settings, MODEL, ALONE)) == is_trusted


@pytest.mark.parametrize("is_allowed", [True, False])
def test_pickled_weights_are_fetched_and_read_together(is_allowed: bool) -> None:
    settings = load_settings(["--allow-pickle"] if is_allowed else [], {})
    assert ("--or-pickled" in download_command("org/m", settings)) == is_allowed
    assert ("--allow-pickle" in shard_command(settings, MODEL, ALONE)) == is_allowed


def test_download_is_told_revision_and_cache() -> None:
    settings = load_settings(["--revision", "v2", "--huggingface-hub-cache", "/data"], {})
    command = download_command("org/m", settings)
    assert value_after(command, "--revision") == "v2"
    assert value_after(command, "--cache-dir") == "/data"


def test_ranks_of_several_machines_talk_on_the_interface_between_them() -> None:
    settings = load_settings(["--num-nodes", "2", "--master-addr", "10.0.0.1"], {})
    environ = child_environment({}, settings, interface="eth3")
    assert (environ["GLOO_SOCKET_IFNAME"], environ["NCCL_SOCKET_IFNAME"]) == ("eth3", "eth3")
    assert child_environment({"GLOO_SOCKET_IFNAME": "ib0"}, settings, interface="eth3")["GLOO_SOCKET_IFNAME"] == "ib0"

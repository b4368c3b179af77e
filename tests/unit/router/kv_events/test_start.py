"""The publisher is started where a port is given, and a missing package names the extra that brings it."""

import pytest
from textmill_router import extras
from textmill_router.extras import ExtraMissing
from textmill_router.kv_events.start import EventSettings, start_publisher
from textmill_router.settings import SettingsError, load_settings

NEEDED = ["--model-dir", "/m", "--model-id", "m", "--shard-uds-path", "/s"]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"--kv-events-port 5557 needs zmq.*pip install 'textmill\[kv-events\]'"):
        start_publisher(EventSettings("127.0.0.1", 5557, None, "t"))
    assert start_publisher(EventSettings("127.0.0.1", None, None, "t")) is None


def test_replay_port_is_the_next_one_unless_it_is_given() -> None:
    publisher = start_publisher(EventSettings("127.0.0.1", 0, 0, "t"))
    assert publisher is not None
    port = publisher.port
    assert publisher.close(10.0)
    publisher = start_publisher(EventSettings("127.0.0.1", port, None, "t"))
    assert publisher is not None
    assert (publisher.port, publisher.replay_port) == (port, port + 1)
    assert publisher.close(10.0)


def test_flags_of_the_events_need_a_port() -> None:
    for flag in (["--kv-events-topic", "t"], ["--kv-events-replay-port", "5"]):
        with pytest.raises(SettingsError, match="need --kv-events-port"):
            load_settings([*NEEDED, *flag], {})

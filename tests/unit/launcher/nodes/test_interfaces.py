"""The interface of an address."""

from textmill_launcher.loopback import loopback_interface
from textmill_launcher.nodes.interfaces import interface_of


def test_loopback_has_the_address_of_the_loopback() -> None:
    assert interface_of("127.0.0.1") == loopback_interface()


def test_address_of_another_machine_is_on_no_interface() -> None:
    assert interface_of("192.0.2.1") is None

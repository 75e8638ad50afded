"""bot/port.py with real sockets."""

import os
import socket

import pytest

from bot.port import hindrance


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_a_free_port_has_no_hindrance(host: str) -> None:
    assert hindrance(host, _free_port()) == ""


def test_a_port_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert hindrance("127.0.0.1", other.getsockname()[1])


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_an_address_of_ipv6_is_one_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        assert hindrance("::1", port)
    assert hindrance("::1", port) == ""


def test_a_host_that_is_not_this_machines_is_said() -> None:
    assert hindrance("no.such.host.invalid", _free_port())
    assert hindrance("192.0.2.1", _free_port())


@pytest.mark.skipif(os.name != "posix", reason="nobody is let in by a port that lingers elsewhere")
def test_a_port_whose_last_connection_lingers_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            taken, _ = server.accept()
            taken.close()  # the server's end closes first: it is the one that lingers
    assert hindrance("127.0.0.1", port) == ""


def test_nobody_is_let_in_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    port, refused = _free_port(), []
    bind = socket.socket.bind

    def and_knock(self: socket.socket, address: tuple[str, int]) -> None:
        bind(self, address)
        with socket.socket() as client:
            refused.append(client.connect_ex(("127.0.0.1", port)))

    monkeypatch.setattr(socket.socket, "bind", and_knock)
    assert hindrance("127.0.0.1", port) == ""
    assert refused
    assert 0 not in refused

"""Where llama-server listens: from its options, its environment variables and its defaults, and whether it answers."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf_bof4.errors import UserError

FIRST_PORT = 8080
N_PORTS = 100
"""Ports that are tried where none is given: FIRST_PORT and those after it."""

_DEFAULT_HOST = "127.0.0.1"
_OF_ALL_INTERFACES = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PATIENCE = 5.0  # seconds for one answer


def option_value(
    arguments: Sequence[str], environment: Mapping[str, str], names: Sequence[str], variable: str
) -> str | None:
    """The value that llama-server takes for an option: the last one given, else that of the environment variable.

    Args:
        names: of the option, as in its help, e.g. -c and --ctx-size.
        variable: e.g. LLAMA_ARG_CTX_SIZE.
    """
    value = environment.get(variable)
    for i, name in enumerate(arguments):
        # llama.cpp takes --ctx_size, too
        if (name.replace("_", "-") if name.startswith("--") else name) in names:
            value = arguments[i + 1] if i + 1 < len(arguments) else None
    return value


@dataclass(frozen=True)
class Address:
    """Where one listener of llama-server is reached.

    Attributes:
        host: a name or an address, or the path of a Unix socket, which ends in .sock.
        prefix: of all paths, e.g. /llama; often empty.
    """

    host: str
    port: int
    prefix: str = ""

    @property
    def is_socket(self) -> bool:
        return self.host.endswith(".sock")

    @property
    def url(self) -> str:
        """What a browser on this machine opens; unix://PATH for a Unix socket."""
        if self.is_socket:
            return f"unix://{self.host}"
        host = _OF_ALL_INTERFACES.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.prefix}"

    def connect(self) -> socket.socket:
        """A connection to the listener.

        Raises:
            OSError: there is none.
        """
        if not self.is_socket:
            return socket.create_connection((_OF_ALL_INTERFACES.get(self.host, self.host), self.port), _PATIENCE)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(self.host)
        except OSError:
            connection.close()
            raise
        return connection

    def is_ready(self) -> bool:
        """Does /health say that the model is loaded?"""
        with contextlib.suppress(OSError, http.client.HTTPException):
            client = http.client.HTTPConnection("localhost")
            client.sock = self.connect()
            try:
                client.request("GET", f"{self.prefix}/health")
                return client.getresponse().status == http.HTTPStatus.OK
            finally:
                client.close()
        return False


def is_taken(host: str, port: int) -> bool:
    """Does another program listen on this port? False where that cannot be told: llama-server will say why."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama-server does
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _any_port(host: str) -> int:
    """A port that is free now, chosen by the system.

    Raises:
        UserError: this machine cannot listen on the host.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}: give a name or an address of this machine") from error


def _next_port(hosts: Sequence[str]) -> int:
    for port in range(FIRST_PORT, FIRST_PORT + N_PORTS):
        if not any(is_taken(host, port) for host in hosts):
            return port
    raise UserError(
        f"the ports {FIRST_PORT} to {FIRST_PORT + N_PORTS - 1} are all in use: give another one with --port"
    )


def _port_number(given: str) -> int:
    if not given.isdecimal() or int(given) > 65535:
        raise UserError(f"--port {given}: give a number from 0 (any free port) to 65535")
    return int(given)


def choose_addresses(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[Address], list[str]]:
    """Where llama-server will listen with these arguments, and arguments to add so that it does.

    Without a port, that is 8080, or the next one that is free. Port 0 is any free one.

    Raises:
        UserError: the given port is taken, or none is free.
    """
    hosts = option_value(arguments, environment, ["--host"], "LLAMA_ARG_HOST") or _DEFAULT_HOST
    names = [host.strip() for host in hosts.split(",") if host.strip()] or [_DEFAULT_HOST]
    prefix = option_value(arguments, environment, ["--api-prefix"], "LLAMA_ARG_API_PREFIX") or ""
    given = option_value(arguments, environment, ["--port"], "LLAMA_ARG_PORT")
    of_network = [name for name in names if not name.endswith(".sock")]
    added: list[str] = []
    if given is not None and (port := _port_number(given)) > 0:
        shared = "--reuse-port" in arguments or "LLAMA_ARG_REUSE_PORT" in environment
        for host in () if shared else of_network:
            if is_taken(host, port):
                raise UserError(
                    f"port {port} of {host} is in use by another program: give another one with --port, or leave "
                    "--port out for the next free one"
                )
    elif not of_network:
        port = 0
    else:
        port = _any_port(of_network[0]) if given is not None else _next_port(of_network)
        added = ["--port", str(port)]
    return [Address(name, port, prefix) for name in names], added

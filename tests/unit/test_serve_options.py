"""bof4 serve without a server: what is passed to llama-server, and where it will listen."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import bof4

from gguf_bof4.cli import listening
from gguf_bof4.cli.listening import Address, choose_addresses, is_taken, option_value
from gguf_bof4.cli.serve import CONTEXT, default_arguments
from gguf_bof4.errors import UserError

PORT = (["--port"], "LLAMA_ARG_PORT")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that a program listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, None),
        (["--port", "9000"], {}, "9000"),
        (["--port", "9000", "-c", "1", "--port", "9001"], {}, "9001"),
        (["--port", "9000"], {"LLAMA_ARG_PORT": "9002"}, "9000"),
        ([], {"LLAMA_ARG_PORT": "9002"}, "9002"),
        (["--port"], {}, None),
        (["--ports", "9000"], {}, None),
    ],
)
def test_the_value_of_an_option(arguments: list[str], environment: dict[str, str], expected: str | None) -> None:
    assert option_value(arguments, environment, *PORT) == expected


def test_underscores_in_options_are_hyphens_as_in_llama_cpp() -> None:
    assert option_value(["--ctx_size", "512"], {}, ["-c", "--ctx-size"], "LLAMA_ARG_CTX_SIZE") == "512"


@pytest.mark.parametrize(
    ("arguments", "environment", "trained", "cores", "expected"),
    [
        ([], {}, 131072, None, ["-c", str(CONTEXT)]),
        ([], {}, 512, None, ["-c", "512"]),
        ([], {}, None, None, ["-c", str(CONTEXT)]),
        (["-c", "0"], {}, 131072, None, []),
        (["--kv-unified-per-slot", "4096"], {}, 131072, None, []),
        ([], {"LLAMA_ARG_CTX_SIZE": "0"}, 131072, None, []),
        ([], {"LLAMA_ARG_KV_UNIFIED_PER_SLOT": "4096"}, 131072, None, []),
        (["-c", "0"], {}, 512, 3, ["-t", "3"]),
        (["-c", "0", "--threads", "8"], {}, 512, 3, []),
        (["-c", "0"], {"LLAMA_ARG_THREADS": "8"}, 512, 3, []),
    ],
)
def test_context_and_threads_are_added_where_they_are_not_given(
    arguments: list[str], environment: dict[str, str], trained: int | None, cores: int | None, expected: list[str]
) -> None:
    assert default_arguments(arguments, environment, trained, cores) == expected


def test_without_a_port_the_next_free_one_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "FIRST_PORT", taken)
    (address,), added = choose_addresses([], {})
    assert taken < address.port < taken + listening.N_PORTS
    assert added == ["--port", str(address.port)]
    assert address.url == f"http://127.0.0.1:{address.port}"
    monkeypatch.setattr(listening, "N_PORTS", 1)
    with pytest.raises(UserError, match=rf"ports {taken} to {taken} are all in use.*--port"):
        choose_addresses([], {})


def test_a_given_port_that_is_taken_is_refused(taken: int) -> None:
    for arguments, environment in ((["--port", str(taken)], {}), ([], {"LLAMA_ARG_PORT": str(taken)})):
        with pytest.raises(UserError, match=rf"port {taken} of 127\.0\.0\.1 is in use by another program.*--port"):
            choose_addresses(arguments, environment)
    everywhere = ["--port", str(taken), "--host", "0.0.0.0"]
    with pytest.raises(UserError, match=r"of 0\.0\.0\.0 is in use"):
        choose_addresses(everywhere, {})
    assert choose_addresses([*everywhere, "--reuse-port"], {})[0] == [Address("0.0.0.0", taken)]
    assert choose_addresses(["--host", "/tmp/llama.sock", "--port", str(taken)], {}) == (
        [Address("/tmp/llama.sock", taken)],
        [],
    )


def test_port_0_is_any_free_one() -> None:
    (address,), added = choose_addresses(["--port", "0"], {})
    assert added == ["--port", str(address.port)]
    assert address.port > 0
    assert not is_taken("127.0.0.1", address.port)
    with pytest.raises(UserError, match=r"--host nowhere\.invalid: .*this machine"):
        choose_addresses(["--port", "0", "--host", "nowhere.invalid"], {})


@pytest.mark.parametrize("given", ["http", "-1", "65536", ""])
def test_what_is_no_port_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"--port .*: give a number"):
        choose_addresses(["--port", given], {})


@pytest.mark.parametrize(
    ("arguments", "urls"),
    [
        (["--host", "0.0.0.0"], ["http://127.0.0.1:9000"]),
        (["--host", "::"], ["http://[::1]:9000"]),
        (["--host", "127.0.0.1, localhost"], ["http://127.0.0.1:9000", "http://localhost:9000"]),
        (["--host", "127.0.0.1,/tmp/llama.sock"], ["http://127.0.0.1:9000", "unix:///tmp/llama.sock"]),
        (["--api-prefix", "/llama"], ["http://127.0.0.1:9000/llama"]),
    ],
)
def test_addresses_that_are_printed(
    arguments: list[str], urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "is_taken", lambda host, port: False)
    addresses, added = choose_addresses([*arguments, "--port", "9000"], {})
    assert [address.url for address in addresses] == urls
    assert added == []


def test_what_is_no_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is not a model, only some text.")
    for name, complaint in (("missing.gguf", "does not exist"), ("text.gguf", "is not a GGUF file"), ("", "a folder")):
        refused = bof4("serve", str(tmp_path / name), "--port", "9000")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith(f"bof4: {tmp_path / name}")
        assert complaint in refused.stderr

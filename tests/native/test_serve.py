"""bof4 serve, as a user types it, with a model of random weights that has outlier lists."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import bof4
from served import Server, children, heed_ctrl_c, is_running, programs_with, serving, start, state, wait_for
from tiny_models import CONTEXT, write_llama

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", lambda name: name.startswith("blk."))


@pytest.fixture(scope="module")
def without_page(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs, without a web page."""
    return programs_with(built, tmp_path_factory.mktemp("without-page"), None)


@pytest.fixture(scope="module")
def made_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a few files, as `bof4 build --ui` leaves it."""
    folder = tmp_path_factory.mktemp("pages") / "page-0"
    for name, content in {"index.html": "<p>a page", "_app/bundle.js": "let a = 1", "sw.js": "//"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    (folder / "made-from").write_text(folder.name)
    return folder


@pytest.fixture(scope="module")
def server(tiny: Path, without_page: Path) -> Iterator[Server]:
    with serving(tiny, "--alias", "tiny", "--api-key", "secret", BOF4_BIN=str(without_page)) as server:
        yield server


def test_the_address_is_printed_when_the_server_answers(server: Server) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert server.get("/health")[:2] == (200, '{"status":"ok"}')
    log = server.log.read_text()
    assert log.index("bof4 serve: loading ") < log.index("model loaded") < log.index("bof4 serve: ready")


def test_options_are_passed_on_and_context_is_that_of_the_model(server: Server) -> None:
    status, text, _ = server.get("/v1/models", Authorization="Bearer secret")
    assert status == 200
    (model,) = json.loads(text)["data"]
    assert model["id"] == "tiny"
    props = json.loads(server.get("/props", Authorization="Bearer secret")[1])
    assert props["default_generation_settings"]["n_ctx"] == CONTEXT


def test_a_build_without_the_page_says_how_to_get_it(server: Server) -> None:
    for path in ("/", "/index.html"):
        status, text, headers = server.get(path)  # without the key
        assert status == 200
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert "has no web page" in text
        assert "<code>bof4 build --ui</code>" in text
        assert "content-encoding" not in headers
        assert server.get(path, If_None_Match=headers["etag"])[0] == 304


def test_other_paths_are_as_before(server: Server) -> None:
    status, text, headers = server.get("/nothing", Authorization="Bearer secret")
    assert (status, headers["content-type"]) == (404, "application/json; charset=utf-8")
    assert json.loads(text)["error"]["code"] == 404
    assert server.get("/v1/models")[0] == 401
    assert server.get("/sw.js", Authorization="Bearer secret")[0] == 404


def test_a_page_beside_the_program_is_served(tiny: Path, built: Path, made_page: Path, tmp_path: Path) -> None:
    programs = programs_with(built, tmp_path, made_page)
    with serving(tiny, "--api-key", "secret", BOF4_BIN=str(programs)) as server:
        for path, content, kind in (
            ("/", "<p>a page", "text/html; charset=utf-8"),
            ("/index.html", "<p>a page", "text/html; charset=utf-8"),
            ("/_app/bundle.js", "let a = 1", "application/javascript"),
        ):
            request = urllib.request.Request(server.url + path, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request) as answer:
                assert gzip.decompress(answer.read()).decode() == content
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Content-Encoding"] == "gzip"
                etag = answer.headers["ETag"]
            assert server.get(path, Accept_Encoding="gzip", If_None_Match=etag)[0] == 304
        assert server.get("/made-from", Authorization="Bearer secret")[0] == 404
        assert server.get("/v1/models")[0] == 401
    with serving(tiny, "--no-ui", BOF4_BIN=str(programs)) as server:
        assert server.get("/")[0] == 404
        assert "unregister" in server.get("/sw.js")[1]  # llama-server's own: removes a page that was kept by a browser
    (tmp_path / "index.html").write_text("<p>my own")
    with serving(tiny, "--path", str(tmp_path), BOF4_BIN=str(programs)) as server:
        assert server.get("/")[:2] == (200, "<p>my own")


def test_two_servers_without_a_port_get_different_ones(tiny: Path, built: Path, tmp_path: Path) -> None:
    first = start(tiny, log=tmp_path / "first")
    try:
        assert first.stdout is not None
        url = first.stdout.readline().strip()
        assert int(url.rpartition(":")[2]) >= 8080
        with serving(tiny, "--host", "127.0.0.1") as second:
            assert second.url != url
            assert int(second.url.rpartition(":")[2]) > int(url.rpartition(":")[2])
    finally:
        first.terminate()
        first.communicate()


def test_a_unix_socket(tiny: Path, built: Path, tmp_path: Path) -> None:
    path = tmp_path / "llama.sock"
    with serving(tiny, "--host", str(path)) as server:
        assert server.url == f"unix://{path}"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b" 200 OK" in connection.recv(4096)


def test_a_prefix_of_all_paths(tiny: Path, built: Path) -> None:
    with serving(tiny, "--api-prefix", "/llama") as server:
        assert server.url.endswith("/llama")
        assert server.get("/v1/models")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@linux
def test_signals_stop_it_cleanly(tiny: Path, built: Path, number: signal.Signals) -> None:
    with serving(tiny) as server:
        (llama,) = children(server.process.pid)
        assert server.stop(number) == 0
        assert not is_running(llama)
        log = server.log.read_text()
    assert "cleaning up before exit" in log
    assert "Traceback" not in log


@linux
def test_ctrl_c_at_a_terminal_reaches_the_server_once(tiny: Path, built: Path) -> None:
    """llama-server ends at once, without cleaning up, at the second one."""
    import pty

    mine, theirs = pty.openpty()
    program = Path(sys.executable).with_name("bof4")
    # setsid -c: a new session with this terminal, whose Ctrl-C goes to the whole foreground group, as in a shell
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "sh", "-c", 'trap : INT; "$@"; echo "exit code $?"', "sh", program, "serve",
         tiny, "--port", "0", "-t", "1"],
        stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=heed_ctrl_c,  # noqa: PLW1509 - the tests have no threads
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while b"http://127.0.0.1:" not in shown.rpartition(b"ready")[2]:
            shown += os.read(mine, 4096)
        os.write(mine, b"\x03")
        with contextlib.suppress(OSError):  # the terminal ends with its last program
            while piece := os.read(mine, 4096):
                shown += piece
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    assert b"loading" in shown
    assert b"cleaning up before exit" in shown
    assert b"second interrupt" not in shown
    assert b"exit code 0" in shown


@pytest.mark.parametrize("headers", [{}, {"X-Conversation-Id": "1"}], ids=["ordinary", "resumable"])
def test_streams_do_not_keep_it_from_stopping(tiny: Path, built: Path, headers: dict[str, str]) -> None:
    """Whatever llama-server does at the moment of the signal; the page's streams are resumable."""
    for _ in range(3):
        with serving(tiny) as server:
            body = json.dumps({"prompt": "a", "n_predict": -1, "stream": True, "ignore_eos": True}).encode()
            with urllib.request.urlopen(urllib.request.Request(server.url + "/completion", body, headers)) as stream:
                for _ in range(20):
                    stream.readline()
                assert server.stop() == 0


@linux
def test_a_signal_while_the_model_loads_ends_both(smol_listed: Path, built: Path, tmp_path: Path) -> None:
    process = start(smol_listed, "--port", "0", log=tmp_path / "log")
    wait_for(lambda: "bof4 serve: loading" in (tmp_path / "log").read_text(), "the start of llama-server")
    (llama,) = children(process.pid)
    os.kill(llama, signal.SIGSTOP)  # it cannot get ready
    wait_for(lambda: state(llama) == "T", "the stop of llama-server")  # before that, SIGTERM would overtake
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    os.kill(llama, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + signal.SIGTERM, "")
    assert not is_running(llama)
    assert "Traceback" not in (tmp_path / "log").read_text()


@linux
def test_when_bof4_is_killed_the_server_ends(tiny: Path, built: Path) -> None:
    with serving(tiny) as server:
        (llama,) = children(server.process.pid)
        server.process.kill()
        wait_for(lambda: not is_running(llama), "the end of llama-server", 30)


@linux
def test_when_the_server_is_killed_that_is_said(tiny: Path, built: Path) -> None:
    with serving(tiny) as server:
        (llama,) = children(server.process.pid)
        os.kill(llama, signal.SIGKILL)
        assert server.process.wait(30) == 1
        assert "bof4: llama-server was ended by SIGKILL: memory may have run out" in server.log.read_text()


def test_a_model_that_does_not_load_ends_with_the_reason(tiny: Path, built: Path, tmp_path: Path) -> None:
    """The file is a valid GGUF file of an architecture that llama.cpp does not know."""
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(tiny.read_bytes().replace(b"llama", b"lloma"))
    failed = bof4("serve", str(unknown), "--port", "0", "-t", "1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "unknown model architecture: 'lloma'" in failed.stderr
    assert "exiting due to model loading error" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_options_that_llama_server_refuses(tiny: Path, built: Path) -> None:
    failed = bof4("serve", str(tiny), "--no-such-option")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "invalid argument: --no-such-option" in failed.stderr
    shown = bof4("serve", str(tiny), "-h")
    assert shown.returncode == 0
    assert "--ctx-size" in shown.stdout


def test_a_port_in_use_is_refused(tiny: Path, server: Server) -> None:
    port = server.url.rpartition(":")[2]
    refused = bof4("serve", str(tiny), "--port", port)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"bof4: port {port} of 127.0.0.1 is in use")


def test_a_damaged_file_is_refused(tiny: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny.read_bytes()[:-4096])
    refused = bof4("serve", str(short))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"bof4: {short}")


def test_without_a_build_the_remedy_is_named(tiny: Path, tmp_path: Path) -> None:
    refused = bof4("serve", str(tiny), BOF4_CACHE=str(tmp_path), BOF4_BIN="")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "run `bof4 build`" in refused.stderr

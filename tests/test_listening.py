"""Where a server listens: ports that are taken, and what is said when."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from premeditate.serving import listening
from premeditate.serving.listening import NotListening, reserve
from support.command import premeditate


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_port_in_use_is_told_before_anything_is_loaded_or_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "loads.py").write_text("raise ValueError('it was loaded')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = premeditate("rewards", "serve", "loads:reward", "--port", port)
    assert done.code == 2 and f"port {port} is taken; give another --port" in done.err
    assert "http://" not in done.err and "loaded" not in done.err


def test_of_two_that_start_at_once_one_is_told() -> None:
    port = free()
    one, other = reserve("127.0.0.1", port), reserve("127.0.0.1", port)  # neither listens yet
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        one[0].listen()
        said: list[str] = []
        with pytest.raises(NotListening, match="is taken"):
            listening.serve(None, "127.0.0.1", port, other, lambda: said.append("ready"))
        assert not said
    finally:
        listening.close([*one, *other])


def test_addresses_that_are_not_this_machines() -> None:
    for host, said in (("192.0.2.1", "does not have the address"), ("no.such.host.invalid", "nobody knows")):
        with pytest.raises(NotListening, match=said):
            reserve(host, free())
    sockets = reserve("localhost", free())
    assert {s.family for s in sockets} <= {socket.AF_INET, socket.AF_INET6} and sockets
    listening.close(sockets)


def test_the_command_says_that_it_serves_when_it_does_and_ends_in_order() -> None:
    port = free()
    command = [sys.executable, "-m", "premeditate.cli", "rewards", "serve", "exact", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        assert f"on http://127.0.0.1:{port}" in process.stderr.readline()
        found = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=30).json()
        assert found["dimensions"] == ["follow", "keep", "quality"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0 and process.stderr.read() == ""
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stderr.close()

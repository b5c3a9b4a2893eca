"""The demo's server: its limits, and how `hf-ebm demo` starts and stops it."""

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import urllib.request

import pytest

from hf_ebm.cli.main import main
from hf_ebm.demo import limits
from hf_ebm.demo.server import BodyLimit, FolderLimit


@pytest.mark.parametrize(
    ("announced", "parts", "status"),
    [(11, [b""], 413), (None, [b"123456", b"78901"], 500), (None, [b"1234567890"], 200)],
)
def test_bodies_are_bounded_announced_or_not(announced, parts, status):
    async def app(scope, receive, send):
        more, code = True, 200
        while more:
            message = await receive()
            more, code = message.get("more_body", False), 500 if message["type"] == "http.disconnect" else 200
        await send({"type": "http.response.start", "status": code})

    async def call():
        messages = [
            {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
            for index, part in enumerate(parts)
        ]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        headers = [] if announced is None else [(b"content-length", str(announced).encode())]
        await BodyLimit(app, 10)({"type": "http", "headers": headers}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(call()) == status


def test_uploads_stop_while_the_folder_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ebm.demo.server.MAX_FILES", 2)
    own = tmp_path / "example.png"
    own.touch()

    async def app(scope, receive, send):
        await send({"status": 200})

    async def call(path="/gradio_api/upload"):
        sent = []

        async def send(message):
            sent.append(message)

        await FolderLimit(app, tmp_path, [own])({"type": "http", "path": path}, None, send)
        return sent[0]["status"]

    (tmp_path / "first.png").touch()
    assert asyncio.run(call()) == 200
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "second.png").touch()
    assert asyncio.run(call()) == 503 and asyncio.run(call("/other")) == 200
    (tmp_path / "first.png").unlink()  # as Gradio does
    assert asyncio.run(call()) == 200
    monkeypatch.setattr("hf_ebm.demo.server.MAX_TOTAL_BYTES", limits.MAX_UPLOAD_BYTES - 1)
    assert asyncio.run(call()) == 503


def test_hf_ebm_demo_serves_only_this_machine_by_default(monkeypatch):
    calls = []
    monkeypatch.setattr("hf_ebm.demo.server.serve", lambda *values: calls.append(values))
    main(["demo", "--model", "a"])
    main(["demo", "--model", "a", "--host", "0.0.0.0", "--port", "80", "--share"])
    main(["demo", "--model", "a", "--device", "cpu"])
    local = ("a", "127.0.0.1", 7860, False)
    assert calls == [(*local, None), ("a", "0.0.0.0", 80, True, None), (*local, "cpu")]


def test_a_busy_port_is_an_error_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("hf_ebm.demo.demo_models.load_demo_model", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as end:
            main(["demo", "--model", "a", "--port", port])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.startswith(f"hf-ebm: error: --port {port} of 127.0.0.1")
    assert "choose another --port" in printed and "GRADIO" not in printed
    with pytest.raises(SystemExit):
        main(["demo", "--model", "a", "--port", "70000"])
    assert "--port 70000" in capsys.readouterr().err


def test_a_port_taken_during_loading_is_the_same_error(tiny_pipeline, tmp_path, monkeypatch, capsys):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # put back afterwards
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("hf_ebm.demo.server.check_port", lambda *_: None)  # it was free when it was asked
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit) as end:
            main(["demo", "--model", str(tmp_path / "model"), "--port", port])
    signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err.splitlines()
    last = said[-1]
    assert f"loading {tmp_path / 'model'} and the page ..." in said  # for who would wait in silence
    assert end.value.code == 2 and last.startswith(f"hf-ebm: error: --port {port} of 127.0.0.1 cannot be listened on")
    assert last.endswith("choose another --port.") and "GRADIO" not in last


def test_the_demo_prints_only_its_address(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reader, writer = os.pipe()

    def serve():
        os.dup2(writer, 1)
        os.close(writer)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        main(["demo", "--model", str(tmp_path / "model"), "--port", str(port)])

    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    os.close(writer)
    with os.fdopen(reader) as printed:
        first = printed.readline()
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").status
        process.terminate()
        rest = printed.read()
    process.join()
    assert page == 200 and first == f"the demo is at http://127.0.0.1:{port}/ until Ctrl-C\n" and rest == ""
    assert process.exitcode == 0


def test_without_gradio_the_error_names_the_extra(monkeypatch):
    from hf_ebm.demo.server import serve

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_ebm.demo.app", raising=False)
    monkeypatch.delattr("hf_ebm.demo.app", raising=False)
    with pytest.raises(ValueError, match=r"pip install '\.\[demo\]' in a clone"):
        serve("none")

"""Serve the demo: one process, and one temporary folder for all uploads, deleted at the end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hf_ebm.demo.limits import MAX_FILES, MAX_TOTAL_BYTES, MAX_UPLOAD_BYTES
from hf_ebm.utils.software import how_to_install

MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 2**16  # of any request: one file and its form data


class BodyLimit:
    """ASGI middleware that answers 413 to a request whose body is larger than `max_bytes`, announced or not."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.max_bytes:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
            await send({"type": "http.response.body", "body": b"The request is too large."})
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return {"type": "http.disconnect"} if received > self.max_bytes else message

        await self.app(scope, counted, send)


class FolderLimit:
    """ASGI middleware that answers 503 to an upload while `folder` is full; Gradio deletes old files from it.

    The files `kept` (the page's own) do not count.
    """

    def __init__(self, app: Any, folder: Path, kept: Collection[Path]) -> None:
        self.app, self.folder, self.kept = app, folder, frozenset(kept)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, unless it is an upload and the folder is full."""
        if scope["type"] == "http" and scope["path"].endswith("/upload"):
            files = [path for path in self.folder.rglob("*") if path not in self.kept and path.is_file()]
            sizes = [path.stat().st_size for path in files]
            if len(sizes) >= MAX_FILES or sum(sizes) + MAX_UPLOAD_BYTES > MAX_TOTAL_BYTES:
                await send({"type": "http.response.start", "status": 503, "headers": [(b"connection", b"close")]})
                await send(
                    {"type": "http.response.body", "body": b"The server stores too many files; try again later."}
                )
                return
        await self.app(scope, receive, send)


def check_port(host: str, port: int) -> None:
    """Raise a `ValueError` if the port is not available, before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:  # taken, not this machine's, or no port at all
        raise port_error(host, port, error) from error


def port_error(host: str, port: int, reason: object) -> ValueError:
    """Return the error for a port that is not available."""
    return ValueError(f"--port {port} of {host} cannot be listened on ({reason}); choose another --port.")


def serve(
    model: str, host: str | None = None, port: int | None = None, share: bool = False, device: str | None = None
) -> None:
    """Serve the demo of a model, a run folder or a Hub id, until the process is stopped.

    Without `host` and `port`, those of ``GRADIO_SERVER_NAME``, which a Space sets, and ``GRADIO_SERVER_PORT`` hold, or
    localhost and the first free port from 7860. `share` opens a public link through gradio.live.
    """
    if port is not None:
        check_port(host or "127.0.0.1", port)
    print(f"loading {model} and the page ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="hf-ebm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from starlette.middleware import Middleware

            from hf_ebm.demo import app
        except ImportError as error:
            raise ValueError(f"the demo needs more packages ({error}): {how_to_install('demo')}.") from error
        from hf_ebm.demo.demo_models import load_demo_model

        examples = Path(folder, "examples")
        examples.mkdir()
        page = app.build_page(load_demo_model(model, device), examples)
        own_files = [path for path in Path(folder).rglob("*") if path.is_file()]
        limits = [
            Middleware(BodyLimit, max_bytes=MAX_BODY_BYTES),
            Middleware(FolderLimit, folder=Path(folder), kept=own_files),
        ]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is deleted, too
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=share,
                max_file_size=MAX_UPLOAD_BYTES,
                app_kwargs={"middleware": limits},
                theme=app.THEME,
                css=app.CSS,
                i18n=app.WORDS,
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                quiet=True,
                prevent_thread_lock=True,
            )
            print(f"the demo is at {page.local_url} until Ctrl-C", flush=True)
            page.block_thread()
        except OSError as error:
            if port is None or "empty port" not in str(error):
                raise
            reason = "another program took it while the model was loaded"
            raise port_error(host or "127.0.0.1", port, reason) from error
        finally:
            page.close(verbose=False)

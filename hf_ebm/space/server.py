"""Start the demo: one process, one temporary folder for all that visitors send, deleted at the end."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_ebm.space.limits import MAX_UPLOAD_BYTES

MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 2**16  # of any request: one file and what is said about it


class BodyLimit:
    """ASGI middleware that answers 413 to a request whose body is larger than `max_bytes`, announced or not."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, counting what comes."""
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


def serve(model: str, host: str | None = None, port: int | None = None, share: bool = False) -> None:
    """Serve the demo of a model until the process is stopped.

    Args:
        model: A run folder or a Hub id.
        host: Address to listen on; None = ``GRADIO_SERVER_NAME``, which a Space sets, or this machine alone.
        port: Port; None = ``GRADIO_SERVER_PORT``, or the first free one from 7860.
        share: Whether to open a public link through gradio.live.

    Raises:
        ValueError: If the model cannot be shown, or gradio is missing.
    """
    with tempfile.TemporaryDirectory(prefix="hf-ebm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from starlette.middleware import Middleware

            from hf_ebm.space import app
        except ImportError as error:
            raise ValueError(f"the demo needs more packages ({error}): pip install 'hf-ebm[demo]'.") from error
        from hf_ebm.space.demo_models import load_demo_model

        examples = Path(folder, "examples")
        examples.mkdir()
        page = app.build_page(load_demo_model(model), examples)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes, too
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=share,
                max_file_size=MAX_UPLOAD_BYTES,
                app_kwargs={"middleware": [Middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)]},
                theme=app.THEME,
                css=app.CSS,
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
            )
        finally:
            page.close(verbose=False)

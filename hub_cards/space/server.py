# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The page by Gradio, and the one address that takes a file.

Gradio's own upload keeps files under their names in a folder until a timer clears it. Here the browser sends the bytes alone,
without a name, and they stay in memory until they are answered; Gradio's addresses that take something are closed.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from pathlib import Path

import gradio as gr
import uvicorn
from examples import Example, load_examples
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from frame import frame_html
from models import Onlooker
from page import answer_of
from scans import MAX_UPLOAD_MB, Refused, ScanReader
from views import look_at


HERE = Path(__file__).resolve().parent
LOOK = "/look"
WAITING = 8  # uploads that may be in memory at once; more are asked to come again
UPLOAD_SECONDS = 300
# The browser itself then asks no other machine for anything. Gradio's page builds functions from text.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'none'"
)
BUSY = "Others are being served right now. Try again in a moment."
TOO_LARGE = f"This file is too large: at most {MAX_UPLOAD_MB} MB are read. Cut the loop, or drop one of its frames."
UNEXPECTED = "This file could not be shown. Nothing of it was kept."
logger = logging.getLogger("urfm.space")


class Doors:
    """ASGI middleware: nothing but `LOOK` takes a file, and every answer says what the browser may load and keep."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # Addresses are compared from their end: a proxy may have put something before them.
        if scope["method"] not in ("GET", "HEAD") and not scope["path"].endswith(LOOK):
            return await JSONResponse({"detail": "closed"}, 403)(scope, receive, send)

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", CONTENT_POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


class Desk:
    """Takes uploads, one look at a time; what was made of an example is kept, of an upload nothing is."""

    def __init__(self, onlooker: Onlooker, reader: ScanReader, examples: dict[str, Example]):
        self.onlooker, self.reader, self.examples = onlooker, reader, examples
        self.turn, self.inside, self.answers = asyncio.Lock(), 0, {}

    async def __call__(self, request: Request) -> Response:
        if self.inside >= WAITING:
            return refused(BUSY, 503)
        self.inside += 1
        try:
            key = request.query_params.get("example")
            if key in self.answers:
                return answered(self.answers[key])
            if key is not None and key not in self.examples:
                return refused("There is no such example.", 404)
            data = await read_body(request) if key is None else self.examples[key].data
            async with self.turn:
                if key is None and await request.is_disconnected():  # another file was dropped meanwhile
                    return Response(status_code=499)
                answer = await run_in_threadpool(self.look, data)
            if key is not None:
                self.answers[key] = answer
            return answered(answer)
        except Refused as error:
            return refused(str(error), 422)
        except Exception as error:
            # The kind alone: a message may quote what the file says.
            logger.error("a look failed: %s", type(error).__name__)
            return refused(UNEXPECTED, 500)
        finally:
            self.inside -= 1

    def look(self, data: bytes) -> dict:
        return answer_of(look_at(self.reader(data), self.onlooker), self.onlooker)


def answered(answer: dict) -> Response:
    return JSONResponse(answer, headers={"cache-control": "no-store"})


def refused(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status, headers={"cache-control": "no-store"})


async def read_body(request: Request) -> bytes:
    """What was sent, in memory.

    Raises:
        Refused: more than `MAX_UPLOAD_MB`, or it did not come to an end in time.
    """
    limit, body = MAX_UPLOAD_MB << 20, bytearray()
    if int(request.headers.get("content-length") or 0) > limit:
        raise Refused(TOO_LARGE)

    async def receive():
        async for part in request.stream():
            body.extend(part)
            if len(body) > limit:
                raise Refused(TOO_LARGE)

    try:
        await asyncio.wait_for(receive(), UPLOAD_SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        raise Refused("The upload took too long.") from None
    return bytes(body)


# ---------------------------------------------------------------- the page


def build_page(onlooker: Onlooker, examples: dict[str, Example], local: bool) -> gr.Blocks:
    with gr.Blocks(title="URFM: what an ultrasound model sees", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(frame_html(onlooker.name, examples, local), js_on_load=None, apply_default_css=False, elem_id="urfm")
    return page


def build_app(onlooker: Onlooker, reader: ScanReader, examples: dict[str, Example], local: bool = True) -> FastAPI:
    """`local`: it is served to this machine alone; else the page says that what is dropped travels."""

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        reader.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_api_route(LOOK, Desk(onlooker, reader, examples).__call__, methods=["POST"], response_model=None)
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"],
                           font_mono=["ui-monospace", "monospace"])  # fmt: skip
    head = f"<style>{(HERE / 'page.css').read_text()}</style><script>{(HERE / 'page.js').read_text()}</script>"
    app = gr.mount_gradio_app(
        app, build_page(onlooker, examples, local), path="/", theme=theme, head=head, footer_links=[], run_history=False,
        ssr_mode=False, show_error=False, enable_monitoring=False, pwa=False, mcp_server=False, max_file_size=1,
        favicon_path=str(HERE / "icon.svg"),
    )  # fmt: skip
    app.add_middleware(Doors)
    return app


def serve(onlooker: Onlooker, where: socket.socket) -> None:
    """Until it is stopped. `where`: bound, and not yet listening."""
    reader, examples = ScanReader(), load_examples()
    reader(next(iter(examples.values())).data)  # its process takes seconds to start, which nobody should wait for
    host, port = where.getsockname()[:2]
    app = build_app(onlooker, reader, examples, local=ipaddress.ip_address(host).is_loopback)
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    print(f"Open http://{shown}:{port} in a browser. Ctrl-C ends it.", flush=True)
    server.run(sockets=[where])

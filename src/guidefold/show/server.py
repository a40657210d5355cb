"""The server of the live page, for one user on this machine only.

Every request is checked first: the Host header (against DNS rebinding, a foreign name that
resolves to this machine), the token (against other users of the machine and other pages in the
browser) and, where the request changes something, the Origin header.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guidefold.ground import InputError
from guidefold.run import Results, read_log
from guidefold.show.html import content_policy, fill, read_parts
from guidefold.show.live import LARGEST_SEED, LONGEST_PROMPT, Comparison, LivePictures
from guidefold.show.summary import folded_share, undertrained

HOME = "127.0.0.1"  # the loopback address only: others are open to the network
TOKEN = "X-Guidefold-Token"
LARGEST_BODY = 16 * 1024  # bytes
MOST_REQUESTS = 32  # at a time
SAFE = ("GET", "HEAD")
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Guard:
    """ASGI middleware that refuses requests of other pages and users, and adds security headers.

    Attributes:
        app: The application that answers accepted requests.
        port: The page's port.
        token: The token that every request must carry.
        policy: The content security policy of every response.
    """

    app: ASGIApp
    port: int
    token: str
    policy: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(
                    {**HEADERS, "Content-Security-Policy": self.policy}
                )
            await send(message)

        reason = self.refusal(Request(scope))
        answer = self.app if reason is None else JSONResponse({"error": reason}, 403)
        await answer(scope, receive, send_with_headers)

    def refusal(self, request: Request) -> str | None:
        """The reason to refuse a request; None where it is accepted."""
        homes = {f"{name}:{self.port}" for name in (HOME, "localhost")}
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0] not in homes:
            return "This is not the address of the page."
        origins = request.headers.getlist("origin")
        own = len(origins) == 1 and origins[0] in {f"http://{home}" for home in homes}
        if not own and (origins or request.method not in SAFE):
            return "Another page sent this request."
        token = request.headers.get(TOKEN)
        if token is None and request.url.path == "/":
            token = request.query_params.get("token")
        # compare_digest takes the same time wherever the strings differ, so timing reveals nothing.
        if token is None or not secrets.compare_digest(token.encode(), self.token.encode()):
            return "Open the address that 'guidefold compare' printed; it is new at every start."
        return None


@contextmanager
def serving(live: LivePictures, port: int = 0) -> Iterator[str]:
    """Serve the live page from a thread.

    Args:
        live: The live pictures; closed when the server ends.
        port: The port on the loopback address; 0 takes a free one.

    Returns:
        The page's address, with the token.

    Raises:
        InputError: The port is not available.
    """
    try:
        listening = socket.create_server((HOME, port))
    except OSError as error:
        raise InputError(
            f"--port {port}: {error.strerror}", "Choose another, or leave --port out."
        ) from error
    port, token = listening.getsockname()[1], secrets.token_urlsafe(32)
    server = uvicorn.Server(_config(application(live, port, token)))

    def serve() -> None:
        try:
            server.run([listening])
        finally:
            live.close()

    thread = threading.Thread(target=serve, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{HOME}:{port}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(timeout=5)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_REQUESTS,
        timeout_graceful_shutdown=1,
    )


def application(live: LivePictures, port: int, token: str) -> ASGIApp:
    """The guarded application: the page, drawings and pictures.

    Args:
        live: The live pictures.
        port: The page's port.
        token: The token that every request must carry.
    """
    style, script = read_parts("page.css", "compare.css"), read_parts("wipe.js", "compare.js")
    policy = content_policy(
        style, script, "img-src blob: data:", "connect-src 'self'", "frame-ancestors 'none'"
    )
    handlers = Handlers(live, _page(live, style, script, policy))
    routes = [
        Route("/", handlers.page),
        Route("/drawings", handlers.begin, methods=["POST"]),
        Route("/drawings/{id}", handlers.status),
        Route("/drawings/{id}", handlers.stop, methods=["DELETE"]),
        Route("/pictures/{id}", handlers.picture),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _as_json})
    app.router.redirect_slashes = False
    return Guard(app, port, token, policy)


@dataclass(frozen=True)
class Handlers:
    """The handlers of the routes.

    Attributes:
        live: The live pictures.
        html: The page.
    """

    live: LivePictures
    html: str

    async def page(self, _request: Request) -> Response:
        """The page itself."""
        return HTMLResponse(self.html)

    async def begin(self, request: Request) -> Response:
        """Begin a drawing, unless one is in progress."""
        if request.headers.get("content-type") != "application/json":
            raise HTTPException(415, "The request must be JSON.")
        try:
            drawing = self.live.begin(Comparison.model_validate_json(await _body(request)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{name}: " for name in first["loc"])
            raise HTTPException(422, f"{where}{first['msg']}.") from error
        except InputError as error:
            raise HTTPException(422, f"{error.message}. {error.remedy}") from error
        if drawing is None:
            raise HTTPException(429, "Another drawing is under way; wait for it, or stop it.")
        return JSONResponse({"id": drawing}, 202)

    async def status(self, request: Request) -> Response:
        """A drawing's state."""
        return JSONResponse(_found(self.live.status(request.path_params["id"])))

    async def stop(self, request: Request) -> Response:
        """Stop a drawing."""
        _found(self.live.stop(request.path_params["id"]) or None)
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        """A picture."""
        data = _found(self.live.picture(request.path_params["id"]))
        return Response(data, media_type="image/png")


def _page(live: LivePictures, style: str, script: str, policy: str) -> str:
    session = live.session
    return fill(
        "compare.html",
        style,
        script,
        policy,
        name=session.run.name,
        pipeline=session.findings.pipeline,
        steps=session.settings.steps_of("teacher"),
        student_steps=session.settings.steps_of("student"),
        prompt=session.held_out[0].text,
        dial=json.dumps(live.dial),
        start=[strength for strength, _ in live.dial].index(session.compared.strength),
        dial_trained=session.settings.adapter.dial,
        warning=undertrained(
            folded_share(Results.read(session.run.results), read_log(session.run.log)),
            session.settings,
        ),
        longest_prompt=LONGEST_PROMPT,
        largest_seed=LARGEST_SEED,
    )


async def _body(request: Request) -> bytes:
    """A request's body, up to the limit."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise HTTPException(413, f"A request has at most {LARGEST_BODY} bytes.")
    except ClientDisconnect as gone:
        raise HTTPException(400, "The client hung up in the middle of its request.") from gone
    return body


def _found(value: Value | None) -> Value:
    if value is None:
        raise HTTPException(404, "Not found, or no longer kept.")
    return value


async def _as_json(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)

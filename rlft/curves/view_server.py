"""The read-only server behind `rlft view`: a list of runs, the page of each, live, and comparisons.

It answers GET and HEAD only, opens nothing but the run directories that it was given, whose names in addresses are
looked up and never joined to a path, and refuses requests whose Host header is not its own: a page of another site that
lets its name point here (DNS rebinding) reads nothing. Beyond the loopback interface everybody needs its token.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlft.curves import pages
from rlft.curves.report import page
from rlft.curves.text import visible
from rlft.curves.view_runs import Runs, ServedRun
from rlft.curves.view_samples import Query
from rlft.run import damage

INDEX_STYLES = ("base.css", "page.css", "runs.css")
"""Style sheets of the list of runs."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""
_COOKIE = "rlft_view_token"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask."""

    host: str = "127.0.0.1"
    """What the server listens on."""
    token: str = ""
    """What everybody has to know; empty on the loopback interface."""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token:
            raise ValueError(f"{self.host} can be reached by others, so the server needs a token")

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this server."""
        if self.host in _EVERYWHERE:
            return True  # it has many names; a foreign page does not have the token's cookie
        name = host.rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host
        name = name.strip("[]").lower()
        return name == self.host.lower() or (self.host in LOOPBACK and name in LOOPBACK)

    def knows(self, request: Request) -> bool:
        """Whether a request has the token."""
        given = request.cookies.get(_COOKIE) or request.headers.get("authorization", "").removeprefix("Bearer ")
        return not self.token or secrets.compare_digest(given.encode(), self.token.encode())


def create_app(
    folders: Sequence[Path],
    access: Access | None = None,
    *,
    poll_s: float = 2.0,
    stream_s: float = 600.0,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Starlette:
    """The server as an ASGI application.

    Args:
        folders: run directories, and folders that hold some.
        access: who may ask.
        poll_s: how often a run is looked at for having grown.
        stream_s: how long one stream of events lasts; browsers then open the next one.
        is_stopping: whether the server is about to end, for which it waits for streams.

    Raises:
        ValueError: a folder is none.
    """
    runs, access = Runs(folders), access or Access()

    def found(request: Request) -> ServedRun:
        run = runs.all().get(request.path_params["name"])
        if run is None:
            raise HTTPException(404, "there is no such run")
        return run

    async def index(request: Request) -> Response:
        names = await run_in_threadpool(runs.all)
        rows = [
            {"name": name, "href": f"runs/{quote(name)}/", "folder": str(run.folder)} for name, run in names.items()
        ]
        return HTMLResponse(_index(rows))

    async def line(request: Request) -> Response:
        return Response(pages.as_json(await run_in_threadpool(found(request).line)), media_type="application/json")

    async def run_page(request: Request) -> Response:
        told = await run_in_threadpool(found(request).line)
        name = request.path_params["name"]
        return HTMLResponse(page({"name": name, "verdict": told}, "", live=True))

    async def data(request: Request) -> Response:
        body = await run_in_threadpool(found(request).data)
        return Response(body, media_type="application/json", headers={"Content-Encoding": "gzip"})

    async def samples(request: Request) -> Response:
        query, run = _query(request), found(request)
        answer = await run_in_threadpool(lambda: pages.as_json(run.samples().find(query)))
        return Response(answer, media_type="application/json")

    async def moved(request: Request) -> Response:
        run, asked = found(request), request.query_params
        answer = await run_in_threadpool(_moved, run.folder, asked.get("from", ""), asked.get("to", ""))
        return Response(answer, media_type="application/json")

    async def events(request: Request) -> Response:
        stream = _grown(found(request), poll_s, stream_s, is_stopping)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def compare(request: Request) -> Response:
        known = await run_in_threadpool(runs.all)
        sides = [request.query_params.getlist(side) for side in ("a", "b")]
        if not all(sides) or any(name not in known for side in sides for name in side):
            raise HTTPException(400, "tick at least one run of this list on each side, A and B")
        body = await run_in_threadpool(_compared, *([known[name].folder for name in side] for side in sides))
        return HTMLResponse(body)

    routes = [
        Route("/", index),
        Route("/compare", compare),
        Route("/runs/{name}/", run_page),
        Route("/runs/{name}/line.json", line),
        Route("/runs/{name}/data.json", data),
        Route("/runs/{name}/samples", samples),
        Route("/runs/{name}/moved", moved),
        Route("/runs/{name}/events", events),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, access=access)],
        exception_handlers={ValueError: _refused, HTTPException: _failed},
    )


class _Guard:
    """Lets pass what `Access` allows, and marks every answer as nobody else's business."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, marked)

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("this server only shows", 405)
        if not self._access.answers_to(request.headers.get("host", "")):
            return PlainTextResponse("this server has another name; open the address that rlft view printed", 400)
        given = request.query_params.get("token", "")
        if self._access.token and secrets.compare_digest(given.encode(), self._access.token.encode()):
            rest = request.url.remove_query_params("token")  # so that the token stays in no history
            # Two slashes in front would name another server.
            place = "/" + rest.path.lstrip("/") + (f"?{rest.query}" if rest.query else "")
            answer = RedirectResponse(place, 303)
            answer.set_cookie(_COOKIE, self._access.token, httponly=True, samesite="strict")
            return answer
        if not self._access.knows(request):
            return PlainTextResponse("open the address with ?token=..., which rlft view printed", 401)
        return None


def _query(request: Request) -> Query:
    asked = request.query_params
    try:
        step, start = (int(asked[name]) if asked.get(name) else None for name in ("step", "cursor"))
    except ValueError:
        raise HTTPException(400, "step and cursor are numbers") from None
    kind = asked.get("kind", "")
    if kind not in ("", "differ", "alike", "failed") or (start or 0) < 0:
        raise HTTPException(400, "kind is differ, alike or failed, and cursor not negative")
    return Query(step=step, task=asked.get("task", ""), kind=kind, text=asked.get("q", ""), start=start or 0)


async def _grown(run: ServedRun, poll_s: float, stream_s: float, is_stopping: Callable[[], bool]) -> AsyncIterator[str]:
    """Server-sent events: `grown` whenever the run's directory has."""
    seen, began = run.size(), time.monotonic()
    looked = began
    yield "retry: 3000\n\n"
    while time.monotonic() - began < stream_s and not is_stopping():
        await asyncio.sleep(min(poll_s, 0.2))
        if time.monotonic() - looked >= poll_s:
            size = await run_in_threadpool(run.size)
            yield f"event: grown\ndata: {json.dumps(size)}\n\n" if size != seen else ": still here\n\n"
            seen, looked = size, time.monotonic()


def _moved(run: Path, first: str, last: str) -> bytes:
    """What moved the reward between two windows. Raises ValueError where one has no samples."""
    from rlft.curves.contributions import explain, read_window
    from rlft.curves.page_data.moved import change
    from rlft.curves.reading import read_config

    with damage.left_out():  # the page's data says what
        windows = read_window(run, first), read_window(run, last)
        return pages.as_json(change(explain(read_config(run), *windows)))


def _compared(before: Sequence[Path], after: Sequence[Path]) -> bytes:
    """The page of a comparison of two groups. Raises ValueError as `rlft compare` refuses them."""
    from rlft.curves.compare import compare, min_effect_of
    from rlft.curves.compare_page import compare_page
    from rlft.curves.scored_run import VERSUS, read_groups

    names = [[escape(str(each)) for each in side] for side in (before, after)]
    first, second, remarks = read_groups([*names[0], VERSUS, *names[1]])
    return compare_page(compare(first, second, min_effect=min_effect_of(first), remarks=remarks))


def _index(rows: Sequence[Mapping[str, str]]) -> bytes:
    from markupsafe import Markup

    style, script = pages.styles(*INDEX_STYLES), pages.script("runs.js")
    return pages.render(
        "runs.html.j2",
        rows=rows,
        style=Markup(style),
        style_hash=pages.source_hash(style),
        script=Markup(script),
        script_hash=pages.source_hash(script),
    )


async def _refused(request: Request, error: Exception) -> Response:
    return PlainTextResponse(visible(str(error)), 422)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(visible(str(error.detail)), error.status_code)

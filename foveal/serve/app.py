"""The web application: REST, tiles, metrics and the page.

    POST /v1/classify           an image, or the path of one below the folder: a row of `foveal.predict`
    POST /v1/classify/stream    the same, look by look, as server-sent events
    GET  /v1/model              classes, levels, locations, budgets, limits
    GET  /v1/images             images below the folder
    GET  /v1/image              size and levels of an image
    GET  /v1/tile/...           a tile of an image, for the viewer
    GET  /v1/look               a box as the model sees it
    GET  /v1/report             the self-contained page of `foveal explain`
    GET  /healthz, /metrics     for probes, and for Prometheus
    GET  /, /docs, /openapi.json

Example:
    >>> from foveal.models import create_model
    >>> from foveal.serve.service import Service
    >>> service = Service(create_model("test_resnet", num_classes=2))
    >>> sorted(make_app(service).openapi()["paths"])[:2]
    ['/healthz', '/metrics']
    >>> service.close()
"""

# No `from __future__ import annotations`: FastAPI evaluates annotations, and some name local functions.

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from foveal import __version__
from foveal.errors import FovealError
from foveal.serve.guard import Guard, refusal_headers
from foveal.serve.limits import Refused
from foveal.serve.metrics import CONTENT_TYPE, Metrics
from foveal.serve.page import STATIC, docs_page
from foveal.serve.service import TOP_K, Service, Settings, Source
from foveal.serve.tiles import Tiles

Value = TypeVar("Value")

_TAGS = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, (content, _) in STATIC.items()}
SMALLEST_BOX = 0.01
"""Smallest side of a box that is shown, in pixels."""

_TILE_THREADS = 4
_COPIED = 1 << 20


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="one sentence: what is wrong, and what to do")


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Look(BaseModel):
    """A look at the image; further keys as in a row of `foveal predict`."""

    model_config = ConfigDict(extra="allow")
    box: list[float] = Field(description="y0, x0, y1, x1 in full-resolution pixels; may reach outside the image")
    level: int = Field(description="processing level, 1 for the first look")
    probability: float = Field(description="probability of the choice")
    mpp: float | None = Field(description="µm per pixel of the look")


class Answer(BaseModel):
    """A row of `foveal predict`, with its keys."""

    model_config = ConfigDict(extra="allow")
    path: str = Field(description="path below the folder, or name of the upload")
    label: str = Field(description="predicted class, or the predicted labels with | between them")
    probability: float
    top_k: list[ClassProbability]
    locations: int = Field(description="number of looks after the first")
    glimpses: list[Look]
    macs: int = Field(description="multiply-accumulates of this image")
    bytes_read: int | None = Field(description="bytes read from the file")
    seconds: float = Field(description="time to open the image, and its share of the time of its batch")


class Images(BaseModel):
    """Names of images below the folder."""

    images: list[str]
    total: int = Field(description="number of images that match the search")


class ImageDescription(BaseModel):
    """Size and levels of an image."""

    path: str
    width: int
    height: int
    tile: int = Field(description="side of a tile in pixels")
    levels: int = Field(description="number of levels of tiles; level 0 is one pixel, the last is full resolution")
    stored_levels: list[list[int]] = Field(description="(width, height) of the levels of the file")
    mpp: float | None = Field(description="µm per pixel")
    version: str = Field(description="differs when the file has changed")


class Budget(BaseModel):
    """An early exit that the run stores."""

    budget: str
    locations: list[int]
    threshold: float


class Model(BaseModel):
    """The model and the limits of the service."""

    name: str
    model: str = Field(description="name of the model, or its class")
    fingerprint: str
    version: str = Field(description="version of foveal")
    classes: list[str]
    task: str
    channels: int
    look_size: list[int] = Field(description="(height, width) to which a look is resampled")
    locations: list[int] = Field(description="looks per grid at each level, unless a request says otherwise")
    most_levels: int | None = Field(description="most levels with locations; none for any number")
    most_cells: int | None = Field(description="cells of each grid; none for any number")
    colours: list[str] = Field(description="colours of the levels in pictures")
    budgets: list[Budget]
    images: bool = Field(description="whether there is a folder of images")
    upload_bytes: int
    upload_pixels: int
    seconds: float


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in (400, 401, 403, *statuses)}


_IMAGE_PATH = Annotated[str, Query(max_length=4096, description="path below the folder")]
_LOOKS = r"^[0-9]{1,3}(,[0-9]{1,3}){0,7}$"


class _Asked(NamedTuple):
    source: Source
    settings: Settings
    top_k: int


def make_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The application of a service. It closes the service when it ends.

    Args:
        service: the model and its folder of images.
        token: secret that clients must send; None if all clients of this machine may ask.
    """
    metrics = Metrics()
    service.on_batch = metrics.batch
    pool = ThreadPoolExecutor(_TILE_THREADS, "foveal-tiles")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        pool.shutdown()

    app = FastAPI(
        title="foveal",
        version=__version__,
        summary=f"Classify images with {service.name} by looking where it matters",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard,  # type: ignore[arg-type]
        limits=service.limits,
        token=token,
        seconds_each=lambda: service.seconds_each,
        metrics=metrics,
    )
    _add_errors(app)
    _add_classification(app, service)
    _add_images(app, service, pool)
    _add_description(app, service, metrics)
    _add_pages(app)
    return app


def _add_errors(app: FastAPI) -> None:
    """Errors are one sentence."""

    @app.exception_handler(FovealError)
    async def refuse(request: Request, error: FovealError) -> Response:
        refused = error if isinstance(error, Refused) else Refused(422, str(error))
        return JSONResponse({"detail": str(refused)}, refused.status, refusal_headers(refused))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return JSONResponse({"detail": f"`{name}`: {first['msg']}; see /docs"}, 422)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": "the service failed; its log has the reason"}, 500)


def _add_classification(app: FastAPI, service: Service) -> None:
    """Rows of images, at once and look by look."""

    async def asked(
        image: Annotated[UploadFile | None, File(description="an image file")] = None,
        path: Annotated[str | None, Form(max_length=4096, description="instead: path below the folder")] = None,
        locations: Annotated[
            str | None, Form(pattern=_LOOKS, description="looks per level, as 2,1; the model's own if left out")
        ] = None,
        budget: Annotated[
            str | None, Form(max_length=40, description="mean cost of an image, one of those of GET /v1/model")
        ] = None,
        stop_at: Annotated[
            float | None, Form(gt=0, le=1, description="instead of a budget: probability at which looking stops")
        ] = None,
        top_k: Annotated[int, Form(ge=1, le=TOP_K, description="number of most probable classes")] = 5,
    ) -> AsyncIterator[_Asked]:
        if (image is None) == (path is None):
            raise Refused(400, "give either `image`, a file, or `path`, a path below the folder of the service")
        settings = service.settings(locations, budget, stop_at)
        with ExitStack() as stack:
            if image is not None:
                source = stack.enter_context(service.uploading(image.filename or "upload"))
                await asyncio.to_thread(_copy, image, source.path)
            else:
                source = await asyncio.to_thread(service.find, str(path))
            yield _Asked(source, settings, top_k)

    @app.post("/v1/classify", responses=_problems(404, 413, 415, 422, 429, 503), tags=["classify"])
    async def classify(asked: Annotated[_Asked, Depends(asked)]) -> Answer:
        """Classify an image. Send a form with a file `image`, or with a `path` below the folder of the service."""
        return _good(await asyncio.wrap_future(service.classify(asked.source, asked.settings, asked.top_k)))

    @app.post(
        "/v1/classify/stream",
        response_class=StreamingResponse,
        responses={
            **_problems(404, 413, 415, 422, 429, 503),
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events"},
        },
        tags=["classify"],
    )
    async def stream(asked: Annotated[_Asked, Depends(asked, scope="request")]) -> Response:
        """Classify an image look by look, as server-sent events: `look` after each turn with the boxes of its looks
        and the class so far, then `answer` as of `/v1/classify`; or `error`. A client that closes the connection stops
        the model after the current look."""
        loop, turns, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()
        deadline = loop.time() + service.limits.seconds

        def tell(turn: Any) -> bool:
            loop.call_soon_threadsafe(turns.put_nowait, turn)
            return not stop.is_set()

        future = service.walk(asked.source, asked.settings, asked.top_k, tell)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(turns.put_nowait, None))
        try:
            first = await turns.get()
        except asyncio.CancelledError:
            stop.set()
            future.cancel()
            raise
        if first is None:
            _good(future.result())  # an error before the first look has a status

        async def events() -> AsyncIterator[str]:
            turn = first
            try:
                async with asyncio.timeout_at(deadline):
                    while turn is not None:
                        yield _event("look", turn._asdict())
                        turn = await turns.get()
                yield _event("answer", _good(future.result()))
            except (FovealError, TimeoutError) as error:
                late = f"the request was not answered within {service.limits.seconds:g} s; ask for fewer looks"
                yield _event("error", {"detail": str(error) or late})
            finally:
                stop.set()
                future.cancel()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _add_images(app: FastAPI, service: Service, pool: ThreadPoolExecutor) -> None:
    """Images of the folder: their names, tiles, looks and pages."""
    tiles = Tiles(lambda path: service.open_pyramid(Source(path.name, path)), service.limits.tile_bytes)
    free, waiting = asyncio.Semaphore(_TILE_THREADS), 0

    async def cut(request: Request, source: Source, work: Callable[[], Value]) -> Value:
        """Run work on an image in a thread; not, if the client has gone away."""
        nonlocal waiting
        if waiting >= service.limits.tiles:
            raise Refused(429, f"{waiting} requests for tiles are waiting already; try again later", 1)
        waiting += 1
        try:
            async with free:
                if await request.is_disconnected():
                    raise Refused(400, "the client has closed the connection")
                return await asyncio.get_running_loop().run_in_executor(pool, work)
        except Refused:
            raise
        except FovealError as error:
            raise Refused(422, service.public(source, str(error))) from error
        except FileNotFoundError as error:
            raise Refused(404, f"{source.name}: the file is gone") from error
        finally:
            waiting -= 1

    async def found(path: _IMAGE_PATH) -> Source:
        return await asyncio.to_thread(service.find, path)

    Found = Annotated[Source, Depends(found)]

    @app.get("/v1/images", responses=_problems(422), tags=["images"])
    async def images(
        search: Annotated[str, Query(max_length=200, description="part of the name")] = "",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Images:
        """List images below the folder."""
        names = [] if service.folder is None else await asyncio.to_thread(service.folder.names)
        names = [name for name in names if search.lower() in name.lower()]
        return Images(images=names[offset : offset + limit], total=len(names))

    @app.get("/v1/image", responses=_problems(404, 422, 429), tags=["images"])
    async def image(request: Request, source: Found) -> ImageDescription:
        """Describe an image."""
        about = await cut(request, source, lambda: tiles.describe(source.path))
        return ImageDescription(path=source.name, **about)

    @app.get(
        "/v1/tile/{level}/{column}/{row}",
        response_class=Response,
        responses={**_problems(404, 422, 429), 200: {"content": {"image/jpeg": {}}}, 304: {"description": "unchanged"}},
        tags=["images"],
    )
    async def tile(request: Request, source: Found, level: int, column: int, row: int) -> Response:
        """A tile of an image as JPEG, see `GET /v1/image`."""
        tag = f'"{await asyncio.to_thread(tiles.version, source.path)}-{level}-{column}-{row}"'
        headers = {"etag": tag, "cache-control": "private, max-age=3600"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        data = await cut(request, source, lambda: tiles.tile(source.path, level, column, row))
        return Response(data, media_type="image/jpeg", headers=headers)

    @app.get(
        "/v1/look",
        response_class=Response,
        responses={**_problems(404, 422, 429), 200: {"content": {"image/png": {}}}},
        tags=["images"],
    )
    async def look(
        request: Request,
        source: Found,
        box: Annotated[str, Query(max_length=200, description="y0,x0,y1,x1 in full-resolution pixels")],
        size: Annotated[
            str | None,
            Query(pattern=r"^[0-9]{1,5},[0-9]{1,5}$", description="height,width; that of a look if left out"),
        ] = None,
    ) -> Response:
        """A box of an image as the model sees it, as PNG."""
        model = service.predictor.model
        corners = _parse_box(box)
        height, width = model.size if size is None else map(int, size.split(","))
        if min(height, width) < 1:
            raise Refused(422, "`size`: has no pixels; give height,width")
        fill = model.mean.tolist()
        data = await cut(
            request, source, lambda: tiles.look(source.path, corners, (height, width), fill, model.antialias)
        )
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    @app.get(
        "/v1/report",
        response_class=Response,
        responses={**_problems(404, 422, 429, 503), 200: {"content": {"text/html": {}}}},
        tags=["classify"],
    )
    async def report(source: Found, locations: Annotated[str | None, Query(pattern=_LOOKS)] = None) -> Response:
        """The page of `foveal explain`, a file that needs no service."""
        settings = service.settings(locations)
        page = await asyncio.wrap_future(service.explain(source, settings))
        return HTMLResponse(page, headers={"content-disposition": 'attachment; filename="report.html"'})


def _add_description(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """The model, and the state of the service."""
    described = _describe(service)

    @app.get("/v1/model", responses=_problems(), tags=["service"])
    async def model() -> Model:
        """Describe the model."""
        return described

    @app.get("/healthz", responses={503: {"model": Problem}}, tags=["service"])
    async def health() -> dict[str, str]:
        """Whether the service classifies."""
        if not service.alive:
            raise Refused(503, "the model does not run; start the service again", 10)
        return {"status": "ok"}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={**_problems(), 200: {"content": {"text/plain": {}}}},
        tags=["service"],
    )
    async def counters() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    """The page with the viewer, and that of the REST interface."""

    def static(name: str) -> Response:
        content, kind = STATIC[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return static("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/static/{name}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        if name not in STATIC:
            raise Refused(404, "there is no such file")
        unchanged = (tag := _TAGS[name]) in request.headers.get("if-none-match", "")
        answer = Response(status_code=304) if unchanged else static(name)
        answer.headers["etag"] = tag
        return answer


def _describe(service: Service) -> Model:
    from foveal.explain.pictures import COLOURS

    model, limits = service.predictor.model, service.limits
    return Model(
        name=service.name,
        model=str(model.spec.get("name") or type(model).__name__),
        fingerprint=service.fingerprint,
        version=__version__,
        classes=list(model.class_names) or [str(i) for i in range(model.num_classes)],
        task=model.task.name,
        channels=model.channels,
        look_size=list(model.size),
        locations=list(model.locations),
        most_levels=model.most_levels,
        most_cells=model.most_cells,
        colours=list(COLOURS),
        budgets=[
            Budget(budget=until.budget, locations=list(until.locations), threshold=until.threshold)
            for until in service.budgets
        ],
        images=service.folder is not None,
        upload_bytes=limits.upload_bytes,
        upload_pixels=limits.upload_pixels,
        seconds=limits.seconds,
    )


def _good(row: dict[str, Any]) -> Any:
    """A row of an image that was classified.

    Raises:
        Refused: it failed.
    """
    if row["error"]:
        raise Refused(422, row["error"])
    return row


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        while part := upload.file.read(_COPIED):
            file.write(part)


def _parse_box(text: str) -> list[float]:
    try:
        box = [float(part) for part in text.split(",")]
        if len(box) != 4 or not all(abs(side) < 1e9 for side in box):
            raise ValueError
        if min(box[2] - box[0], box[3] - box[1]) < SMALLEST_BOX:
            raise ValueError
    except ValueError:
        raise Refused(
            422,
            "`box`: is not a box; give y0,x0,y1,x1 in pixels, the second corner after the first by at least "
            f"{SMALLEST_BOX:g}",
        ) from None
    return box

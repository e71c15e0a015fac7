"""A service: REST and a page with a deep zoom viewer. Needs the extra ``serve``.

    serve(run, *, images=None, host="127.0.0.1", port=8000, ...)       # the command `foveal serve`
    Service(model, *, images=None, limits=None, ...)               # batches of the requests of several clients
        .settings(locations, budget, stop_at), .find(name), .classify(source, settings, top_k) -> Future
    make_app(service, *, token=None) -> FastAPI                        # to mount it in another application

Example:
    >>> Limits().batch_size
    8
"""

from typing import TYPE_CHECKING, Any

from foveal.serve.limits import Limits, Refused
from foveal.serve.server import serve

if TYPE_CHECKING:
    from foveal.serve.app import make_app
    from foveal.serve.service import Service

__all__ = ["Limits", "Refused", "Service", "make_app", "serve"]


def __getattr__(name: str) -> Any:
    if name in ("make_app", "Service"):
        from importlib import import_module

        return getattr(import_module(f"foveal.serve.{'app' if name == 'make_app' else 'service'}"), name)
    raise AttributeError(name)

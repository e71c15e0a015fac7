"""Limits of the service, and the error of a request that is refused.

Example:
    >>> Limits(queue=2).queue
    2
    >>> raise Refused(404, "a.png: there is no such image below the folder; list them by GET /v1/images")
    Traceback (most recent call last):
    ...
    foveal.serve.limits.Refused: a.png: there is no such image below the folder; list them by GET /v1/images
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.errors import FovealError


@dataclass(frozen=True)
class Limits:
    """Limits of the service. A request beyond one of them is refused, see `foveal.serve.app`.

    Attributes:
        upload_bytes: most bytes of the body of a request: 413.
        upload_pixels: most pixels of an uploaded image: 413. Images below the folder may have any number.
        queue: most classifications that are accepted and not yet answered: 429.
        seconds: time from the first byte of a request to its answer: 503.
        batch_size: most images per batch.
        wait: seconds that an image waits for others of its batch; ten times as long while others are being opened.
        tiles: most requests for tiles and looks that are accepted and not yet answered: 429.
        tile_bytes: size of the cache of encoded tiles, in bytes.
        open_bytes: decoded pixels of the images that are open for classifications, in bytes; one image may have more.
    """

    upload_bytes: int = 64 << 20
    upload_pixels: int = 64_000_000
    queue: int = 64
    seconds: float = 60.0
    batch_size: int = 8
    wait: float = 0.005
    tiles: int = 512
    tile_bytes: int = 64 << 20
    open_bytes: int = 1 << 30


class Refused(FovealError):
    """A request that is not answered as asked.

    Args:
        status: HTTP status, 4xx or 503.
        message: one sentence.
        retry_after: seconds after which to try again, for 429 and 503.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

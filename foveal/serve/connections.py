"""HTTP connections with limits on clients that send or read too slowly.

uvicorn closes idle connections between requests, but waits without end for the header of a request, for the rest of a
body that nobody reads, and for a client that does not take its answer. `Connection` closes them. The parser is that of
h11, which every uvicorn has, because it limits the size of a header.

Example:
    >>> issubclass(Connection, H11Protocol), Connection.header_seconds
    (True, 10.0)
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection.

    Attributes:
        header_seconds: most seconds from the opening of a connection, or from the first byte of a further request, to
            the end of its header.
        rest_seconds: most seconds for the rest of the body of a request that is answered already.
        sending_seconds: most seconds without progress while a client takes its answer.
    """

    header_seconds = 10.0
    rest_seconds = 60.0
    sending_seconds = 30.0

    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._cancel()
        elif before is None or before.response_complete:
            self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sending is None:
            self._watch_sending()

    def resume_writing(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def _watch_sending(self, before: int | None = None) -> None:
        """Close the connection unless the client takes some of its answer from time to time."""
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()
        else:
            self._sending = self.loop.call_later(self.sending_seconds, self._watch_sending, left)

    def _expect(self) -> None:
        """Close the connection unless a header ends in time."""
        if self._receiving is None:
            rest = self.cycle is not None and self.cycle.more_body
            seconds = self.rest_seconds if rest else self.header_seconds
            self._receiving = self.loop.call_later(seconds, self._late, self.cycle)

    def _late(self, seen: object) -> None:
        # A header that came with the end of the last request is read after its answer.
        self._receiving = None
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()

    def _cancel(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

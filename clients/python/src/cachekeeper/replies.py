"""Replies to the writes of one cache: one list and one connection, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, AsyncIterator, Optional, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from .connection import LATE, PAUSES, is_elsewhere
from .errors import CachekeeperError, Unreachable
from .writes import BLOCK, BLOCK_SLACK, PAUSE_MAX, read_reply

TAKEN_AT_ONCE = 500
"""Replies that are taken by one command, beside the first."""

T = TypeVar("T")
Place = tuple[int, Any, Any]
"""How often the connection for replies was lost before, and the host and port of a connection made since then."""


class Replies:
    """Hands each reply to whoever waits for it. A task of its own listens, as long as anybody waits.

    What was sent to another place than where replies are waited for may be lost with a server, and is sent again.
    """

    def __init__(
        self, explain: Callable[[Exception], CachekeeperError], client: Any, prefix: str, timeout: float
    ) -> None:
        self.name = f"{prefix}{uuid4()}"
        self.place: Optional[Place] = None
        """Where replies are waited for now; none: nowhere."""
        self._explain, self._client = explain, client
        self._patience = BLOCK + max(BLOCK_SLACK, timeout)
        self._waiting: dict[str, list["asyncio.Future[dict[str, Any]]"]] = {}
        self._listener: Optional["asyncio.Task[None]"] = None
        self._losses, self._was_lost = 0, False
        self._made: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def is_lost(self, sent: Optional[Place]) -> bool:
        """Whether what was sent to this place will not be answered where replies are waited for."""
        return sent is None or (self.place is not None and self.place != sent)

    @asynccontextmanager
    async def sender(self) -> AsyncIterator[tuple[Any, Callable[[], Optional[Place]]]]:
        """A connection, as a client, that leads to where replies are waited for, as far as that is known; and what says where,
        once it is made."""
        held = self._client.client()
        try:
            await held.initialize()
            losses, connection = self._losses, held.connection
            is_old = self._made.get(connection, 0) != losses
            if is_old or (self.place is not None and self.place != _place(losses, connection)):
                # It may lead to a server that is no master any more, and does not know that.
                await connection.disconnect()
            self._made[connection] = losses
            try:
                yield held, lambda: _place(losses, connection) if connection.is_connected else None
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        finally:
            await held.aclose()

    @contextmanager
    def expect(self, id: str) -> Iterator["asyncio.Future[dict[str, Any]]"]:
        """The reply to the write of this id, when it comes."""
        reply: "asyncio.Future[dict[str, Any]]" = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(reply)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        try:
            yield reply
        finally:
            reply.cancel()
            self._waiting[id].remove(reply)
            if not self._waiting[id]:
                del self._waiting[id]

    async def close(self) -> None:
        """Ends the task; nobody is answered any more."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _listen(self) -> None:
        pause = PAUSES[0]
        while self._waiting:
            # One connection, so that its loss shows.
            held = self._client.client()
            try:
                await held.initialize()
                async with _strict(held.connection, self._patience):
                    await self._looking(held, held.ping())
                    self._losses += self._was_lost
                    self._was_lost, pause = False, PAUSES[0]
                    self.place = _place(self._losses, held.connection)
                    await self._take(held)
            except (RedisError, OSError, asyncio.TimeoutError) as error:
                self._was_lost, self.place = True, None
                explained = self._explain(error)
                if not isinstance(explained, Unreachable):
                    self._fail(explained)
                if held.connection is not None:
                    await held.connection.disconnect(nowait=True)
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX)
            finally:
                await held.aclose()

    async def _take(self, held: Any) -> None:
        while self._waiting:
            first = await self._looking(held, held.blpop([self.name], BLOCK))
            if first is None:
                await self._look(held)
            else:
                self._hand_over(first[1])
                for text in await held.lpop(self.name, TAKEN_AT_ONCE) or ():
                    self._hand_over(text)

    async def _looking(self, held: Any, call: Awaitable[T]) -> T:
        """What this answers; where it is late, and the sentinels name another master, it is given up."""
        answer = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({answer}, timeout=LATE))[0]:
                if held.connection.is_connected:
                    await self._look(held)
            return answer.result()
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)

    async def _look(self, held: Any) -> None:
        ask = getattr(self._client.connection_pool, "get_master_address", None)
        address = None
        # Sentinels that do not answer say nothing about the master.
        with suppress(RedisError, OSError, asyncio.TimeoutError):
            address = await ask() if ask is not None else None
        if address is not None and is_elsewhere(held.connection, address):
            raise RedisConnectionError("the sentinels name another master now")

    def _fail(self, error: CachekeeperError) -> None:
        # No attempt will end otherwise, so everybody is told.
        for replies in self._waiting.values():
            for reply in replies:
                if not reply.done():
                    reply.set_exception(error)

    def _hand_over(self, text: Any) -> None:
        reply = read_reply(text)
        for waiting in self._waiting.get(str(reply.get("id")), ()):
            if not waiting.done():
                waiting.set_result(reply)


def _place(losses: int, connection: Any) -> Place:
    return losses, getattr(connection, "host", None), getattr(connection, "port", None)


@asynccontextmanager
async def _strict(connection: Any, patience: float) -> AsyncIterator[None]:
    """A connection that waits for so long, and is not made anew by itself: what a client that was given would do."""
    own = connection.socket_timeout, connection.retry
    # Longer than Redis waits, so that no reply comes when nobody listens any more.
    connection.socket_timeout, connection.retry = patience, Retry(NoBackoff(), 0)
    try:
        yield
    finally:
        connection.socket_timeout, connection.retry = own

"""Replies to the writes of one cache: one list and one connection, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional
from uuid import uuid4

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from .connection import PAUSES, is_elsewhere
from .errors import CachekeeperError, Unreachable
from .writes import BLOCK, BLOCK_SLACK, PAUSE_MAX, read_reply

TAKEN_AT_ONCE = 500
"""Replies that are taken by one command, beside the first."""


class Replies:
    """Hands each reply to whoever waits for it. A task of its own listens, as long as anybody waits."""

    def __init__(
        self, explain: Callable[[Exception], CachekeeperError], client: Any, prefix: str, timeout: float
    ) -> None:
        self.name = f"{prefix}{uuid4()}"
        self.losses = 0
        """How often the connection was made anew: what was sent before that may be lost with a server, and is sent again."""
        self._explain, self._client = explain, client
        self._patience = BLOCK + max(BLOCK_SLACK, timeout)
        self._waiting: dict[str, list["asyncio.Future[dict[str, Any]]"]] = {}
        self._listener: Optional["asyncio.Task[None]"] = None

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
        pause, was_lost = PAUSES[0], False
        while self._waiting:
            # One connection, so that its loss shows.
            held = self._client.client()
            try:
                await held.ping()
                self.losses += was_lost
                pause = PAUSES[0]
                # Longer than Redis waits, so that no reply comes when nobody listens any more.
                own, held.connection.socket_timeout = held.connection.socket_timeout, self._patience
                try:
                    await self._take(held)
                finally:
                    if held.connection is not None:
                        held.connection.socket_timeout = own
            except (RedisError, OSError, asyncio.TimeoutError) as error:
                explained = self._explain(error)
                if not isinstance(explained, Unreachable):
                    self._fail(explained)
                was_lost = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX)
            finally:
                await held.aclose()

    async def _take(self, held: Any) -> None:
        ask = getattr(self._client.connection_pool, "get_master_address", None)
        while self._waiting:
            first = await held.blpop([self.name], BLOCK)
            if first is None and ask is not None and is_elsewhere(held, await ask()):
                await held.connection.disconnect()
                raise RedisConnectionError("the sentinels name another master now")
            if first is not None:
                self._hand_over(first[1])
                for text in await held.lpop(self.name, TAKEN_AT_ONCE) or ():
                    self._hand_over(text)

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

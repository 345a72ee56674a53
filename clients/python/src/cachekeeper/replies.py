"""Replies to the writes of one cache: one list and one connection, however many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional
from uuid import uuid4

from .connection import PAUSES
from .errors import CachekeeperError, Unreachable
from .writes import BLOCK, read_reply

TAKEN_AT_ONCE = 500
"""Replies that are taken by one command, beside the first."""


class Replies:
    """Hands each reply to whoever waits for it. A task of its own listens, as long as anybody waits."""

    def __init__(self, ask: Callable[..., Awaitable[Any]], client: Any, prefix: str) -> None:
        self.name = f"{prefix}{uuid4()}"
        self.losses = 0
        """How often replies may have been lost: what was sent before is sent again."""
        self._ask, self._client = ask, client
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
        pause = PAUSES[0]
        while self._waiting:
            try:
                first = await self._ask("wait for a reply", "writer", lambda: self._client.blpop([self.name], BLOCK))
                if first is not None:
                    self._hand_over(first[1])
                    more = await self._ask(
                        "wait for a reply", "writer", lambda: self._client.lpop(self.name, TAKEN_AT_ONCE)
                    )
                    for text in more or ():
                        self._hand_over(text)
                pause = PAUSES[0]
            except Unreachable:
                self.losses += 1
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
            except CachekeeperError as error:
                # No attempt will end otherwise, so everybody is told.
                for replies in self._waiting.values():
                    for reply in replies:
                        if not reply.done():
                            reply.set_exception(error)
                return

    def _hand_over(self, text: Any) -> None:
        reply = read_reply(text)
        for waiting in self._waiting.get(str(reply.get("id")), ()):
            if not waiting.done():
                waiting.set_result(reply)

"""The same as client.py by asyncio."""

import asyncio
import json
import sys

import cachekeeper
from cachekeeper import aio

from client import plain


async def main():
    url, namespace = sys.argv[1:]
    cache = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, arguments, options = json.loads(line)
        try:
            cache = cache or await aio.connect(url, namespace, timeout=20)
            told = {"value": plain(await getattr(cache, method)(*arguments, **options))}
        except cachekeeper.CachekeeperError as error:
            told = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(told), flush=True)
    if cache is not None:
        await cache.close()


asyncio.run(main())

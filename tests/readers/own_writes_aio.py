"""The same as own_writes.py by asyncio, as the README of clients/python says."""

import asyncio
import sys

import cachekeeper
from cachekeeper import aio


async def main():
    url, namespace, account, writes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    async with aio.connect(url, namespace) as cache:
        for number in range(1, writes + 1):
            id = f"asyncio/{account}/{number}"
            params = {"id": account, "producer": "asyncio", "number": number, "amount": 1}
            while True:
                try:
                    written = await cache.write("account", params, id=id)
                    break
                except (cachekeeper.Unreachable, cachekeeper.WriteUnknown) as error:
                    print(f"again: {error}", file=sys.stderr)
            while True:
                try:
                    value = await cache.get("account", account, token=written.token, wait=5)
                    if value is not None:
                        break
                    # Redis has lost the entry, and the worker has not stored it again yet; another program would ask the database.
                    print("again: no entry", file=sys.stderr)
                except (cachekeeper.NotFresh, cachekeeper.Unreachable) as error:
                    print(f"again: {error}", file=sys.stderr)
            if value["balance"] != number:
                sys.exit(f"write {number} was read back as {value}")
            print(number, flush=True)


asyncio.run(main())

"""Calls the package for Python: each line of standard input is a call, each line of standard output what came of it.

client.py URL NAMESPACE      a call is [method, [arguments], {options}], an answer {"value": …} or {"error": kind, "message": …}
"""

import dataclasses
import json
import sys

import cachekeeper


def plain(value):
    """As JSON can say it: bytes and whole numbers that Node has as BigInt are marked."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, int) and not isinstance(value, bool) and 2**53 <= abs(value):
        return {"int": str(value)}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, cachekeeper.Token):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, cachekeeper.Token) else value


def answer(call):
    """What came of a call, as a line."""
    try:
        return json.dumps({"value": plain(call())})
    except cachekeeper.CachekeeperError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error)})


def main():
    url, namespace = sys.argv[1:]
    cache = None
    for line in sys.stdin:
        method, arguments, options = json.loads(line)

        def call():
            nonlocal cache
            cache = cache or cachekeeper.connect(url, namespace, timeout=20)
            return getattr(cache, method)(*arguments, **options)

        print(answer(call), flush=True)


if __name__ == "__main__":
    main()

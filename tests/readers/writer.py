"""An application in Python that does not write to Postgres itself: it hands its writes over and learns what became of each.

writer.py URL NAME WRITES ACCOUNTS      pays into accounts 1 to ACCOUNTS in turn; ends with an error if one write went wrong

A write is an entry of the stream: the dataset, the parameters of its write statement, an id by which the worker knows it
again (so that a program that got no reply may send it once more), and the list on which it is answered.
"""

import json
import sys

import redis

BATCH = 500
PATIENCE = 60  # seconds without any reply


def hand_over(client, name, writes, accounts):
    """Sends everything, many entries a round trip, and waits for nothing. Answers the ids."""
    ids = []
    for begin in range(0, writes, BATCH):
        with client.pipeline(transaction=False) as pipeline:
            for at in range(begin, min(begin + BATCH, writes)):
                account, number = at % accounts + 1, at // accounts + 1
                params = {"id": account, "producer": name, "number": number, "amount": 1}
                ids.append(f"{name}/{account}/{number}")
                pipeline.xadd(
                    "cache:writes",
                    {"dataset": "account", "id": ids[-1], "params": json.dumps(params), "reply": f"cache:reply:{name}"},
                )
            pipeline.execute()
    return ids


def replies(client, name):
    """Yields replies as they come."""
    while True:
        first = client.blpop([f"cache:reply:{name}"], timeout=PATIENCE)
        if first is None:
            return
        for text in [first[1], *(client.lpop(f"cache:reply:{name}", BATCH) or [])]:
            yield json.loads(text)


def main():
    url, name, writes, accounts = sys.argv[1:]
    client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=2 * PATIENCE)
    waiting = set(hand_over(client, name, int(writes), int(accounts)))
    for reply in replies(client, name):
        if not reply["ok"] or reply["rows"] != 1 or not reply["token"]:
            sys.exit(f"not carried out: {reply}")
        if reply["id"] not in waiting:
            sys.exit(f"nobody waits for this reply, or it came twice: {reply}")
        waiting.remove(reply["id"])
        if not waiting:
            break
    if waiting:
        sys.exit(f"{len(waiting)} writes were not answered within {PATIENCE} seconds, such as {min(waiting)}")


main()

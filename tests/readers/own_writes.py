"""A program from the README of clients/python: it hands over writes, and reads each of them back, whatever becomes of Redis.

own_writes.py URL NAMESPACE ACCOUNT WRITES      prints the number of each write that was read back
"""

import sys

import cachekeeper


def main():
    url, namespace, account, writes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with cachekeeper.connect(url, namespace) as cache:
        for number in range(1, writes + 1):
            id = f"python/{account}/{number}"
            params = {"id": account, "producer": "python", "number": number, "amount": 1}
            while True:
                try:
                    written = cache.write("account", params, id=id)
                    break
                except (cachekeeper.Unreachable, cachekeeper.WriteUnknown) as error:
                    print(f"again: {error}", file=sys.stderr)
            while True:
                try:
                    value = cache.get("account", account, token=written.token, wait=5)
                    if value is not None:
                        break
                    # Redis has lost the entry, and the worker has not stored it again yet; another program would ask the database.
                    print("again: no entry", file=sys.stderr)
                except (cachekeeper.NotFresh, cachekeeper.Unreachable) as error:
                    print(f"again: {error}", file=sys.stderr)
            if value["balance"] != number:
                sys.exit(f"write {number} was read back as {value}")
            print(number, flush=True)


main()

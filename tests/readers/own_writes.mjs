// A program from the README of clients/node: it hands over writes, and reads each of them back, whatever becomes of Redis.
//
// own_writes.mjs URL NAMESPACE ACCOUNT WRITES      prints the number of each write that was read back

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.READERS}/`));
const { connect, NotFresh, Unreachable, WriteUnknown } = await import(pathToFileURL(require.resolve("cachekeeper")));

const [url, namespace, account, writes] = process.argv.slice(2);
const cache = await connect(url, namespace);

// Again and again, as long as it fails for one of these reasons.
async function untilDone(reasons, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!reasons.some((reason) => error instanceof reason)) throw error;
      console.error(`again: ${error.message}`);
    }
  }
}

for (let number = 1; number <= Number(writes); number += 1) {
  const id = `node/${account}/${number}`;
  const params = { id: Number(account), producer: "node", number, amount: 1 };
  const written = await untilDone([Unreachable, WriteUnknown], () => cache.write("account", params, { id }));
  let value;
  // Where Redis has lost the entry and the worker has not stored it again yet, another program would ask the database.
  while (value === undefined) {
    value = await untilDone([NotFresh, Unreachable], () =>
      cache.get("account", account, { token: written.token, waitMs: 5_000 }),
    );
  }
  if (value.balance !== number) throw new Error(`write ${number} was read back as ${JSON.stringify(value)}`);
  console.log(number);
}
await cache.close();

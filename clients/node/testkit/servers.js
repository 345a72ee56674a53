// Servers and sentinels that are played on sockets, for the tests.

import net from "node:net";

export const DIRECTORY = [
  "service",
  JSON.stringify({ version: 1, events: { channels: ["c"], stream: null }, writes: { stream: "w", reply_prefix: "r:" } }),
  "dataset:product",
  JSON.stringify({ key: "product:{id}", format: "json", rows: "one", compression: null, negative: false, write: true }),
];
export const bulk = (...texts) => `*${texts.length}\r\n${texts.map((one) => `$${Buffer.byteLength(one)}\r\n${one}\r\n`).join("")}`;
const ANSWERS = { hgetall: bulk(...DIRECTORY), mget: bulk('{"id":1}'), ping: "+PONG\r\n" };

// Ends the connection, as an answer.
export const CLOSE = Symbol("close");

// As much of a server as a test needs: answers by command; null is no answer, ever. Answers its port.
export const serve = async (context, answers) => (await play(context, answers)).port;

// The same, whose connections that are there now can be answered otherwise: `becomeOld`.
export async function play(context, answers = {}) {
  const told = { ...ANSWERS, ...answers };
  const sessions = [];
  const server = net.createServer((socket) => {
    const session = { old: {} };
    sessions.push(session);
    let [rest, isSilent] = ["", false];
    socket.on("error", () => {});
    socket.on("data", async (data) => {
      rest += data;
      for (let found; (found = commandOf(rest)) !== undefined && !isSilent; ) {
        rest = found.rest;
        const name = found.words[0].toLowerCase();
        const answer = session.old[name] !== undefined ? session.old[name] : name in told ? told[name] : "+OK\r\n";
        const text = typeof answer === "function" ? await answer(found.words) : answer;
        isSilent = text === null || text === CLOSE;
        if (text === CLOSE) socket.destroy();
        if (!isSilent) socket.write(text);
      }
    });
  });
  const becomeOld = (others) => sessions.forEach((one) => (one.old = others));
  return { port: await listen(context, server), becomeOld };
}

async function listen(context, server) {
  const sockets = new Set();
  server.on("connection", (socket) => sockets.add(socket));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return server.address().port;
}

// A server that takes connections and answers nothing.
export const hung = (context) => listen(context, net.createServer((socket) => socket.on("error", () => {}).resume()));

function commandOf(text) {
  const count = /^\*(\d+)\r\n/.exec(text);
  if (count === null) return undefined;
  let rest = text.slice(count[0].length);
  const words = [];
  for (let at = 0; at < Number(count[1]); at += 1) {
    const length = /^\$(\d+)\r\n/.exec(rest);
    if (length === null) return undefined;
    const end = length[0].length + Number(length[1]);
    if (rest.length < end + 2) return undefined;
    words.push(rest.slice(length[0].length, end));
    rest = rest.slice(end + 2);
  }
  return { words, rest };
}

// The answers of a server whose worker replies to writes as soon as it has them.
export function workerOf(ids = []) {
  return {
    xadd: (words) => {
      ids.push(words[words.indexOf("id") + 1]);
      return "$3\r\n1-0\r\n";
    },
    blpop: async (words) => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      return ids.length === 0 ? "*-1\r\n" : bulk(words[1], JSON.stringify({ id: ids[0], ok: true, rows: 1 }));
    },
    lpop: "*-1\r\n",
  };
}

export const urlOf = (port) => `redis://127.0.0.1:${port}/0`;

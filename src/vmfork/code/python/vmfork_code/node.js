// Reads requests from descriptor 8, a line of JSON each, and answers on descriptor 9.
'use strict';
const fs = require('fs');
const net = require('net');
const readline = require('readline');
const util = require('util');
const vm = require('vm');

const MOST_TEXT = 1000000;
globalThis.require = require;
globalThis.display = (...values) => values.forEach((value) => answer({ shown: describe(value) }));

function answer(data) {
  const bytes = Buffer.from(JSON.stringify(data) + '\n');
  for (let sent = 0; sent < bytes.length; ) sent += fs.writeSync(9, bytes, sent);
}

function describe(value) {
  return { 'text/plain': util.inspect(value).slice(0, MOST_TEXT) };
}

function describeError(error) {
  const known = error instanceof Error || (error && error.stack);
  const text = (value) => String(value).slice(0, MOST_TEXT);
  return known
    ? { type: text(error.name), message: text(error.message), traceback: text(error.stack) }
    : { type: 'Thrown', message: text(util.inspect(error)), traceback: '' };
}

async function run(asked) {
  for (const [key, value] of Object.entries(asked.env)) {
    if (value === null) delete process.env[key];
    else process.env[key] = value;
  }
  let value = null;
  let error = null;
  try {
    const found = await vm.runInThisContext(asked.code, { filename: 'code' });
    if (found !== undefined) {
      const shown = describe(found);
      answer({ shown });
      value = shown['text/plain'];
    }
  } catch (raised) {
    error = describeError(raised);
  }
  answer({ done: { value, error } });
}

let last = Promise.resolve();
// Not a file stream, whose read would keep the process from exiting.
readline.createInterface({ input: new net.Socket({ fd: 8, readable: true, writable: false }) }).on('line', (line) => {
  last = last.then(() => run(JSON.parse(line)));
});

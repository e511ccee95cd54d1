// node-postgres: every step over one route. See ../README.md for the parameters.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');

// The modules live in the folder that setup.sh made, not beside this file.
const modules = require('node:module').createRequire(`${process.env.PGT_NODE_MODULES}/package.json`);
const { Client } = modules('pg');
const copyStreams = modules('pg-copy-streams');

const CONNECTIONS = 8;
const EXECUTIONS = 20;
const COPY_ROWS = 10_000;
const CANCEL_WITHIN_MS = 5_000;

const env = process.env;
const hostaddr = env.PGT_HOSTADDR || '127.0.0.1';
const tenant = env.PGT_TENANT;
const table = `drv_node_${env.PGT_ROUTE}_${process.pid}`;
const route = {
  sni: { server: env.PGT_HOST, user: env.PGT_USER },
  options: {
    server: 'localhost',
    user: env.PGT_USER,
    options: `-c ${env.PGT_TENANT_OPTION || 'tenant'}=${tenant}`,
  },
  suffix: { server: 'localhost', user: `${env.PGT_USER}.${tenant}` },
}[env.PGT_ROUTE];
// The address is dialled, the name goes into SNI and is what the certificate is checked against.
const secure = { ca: fs.readFileSync(env.PGT_CA), servername: route.server, rejectUnauthorized: true };

async function connected(work) {
  const client = new Client({
    host: hostaddr,
    port: Number(env.PGT_PORT),
    user: route.user,
    password: env.PGT_PASSWORD,
    database: env.PGT_DATABASE,
    options: route.options,
    ssl: secure,
    enableChannelBinding: true,
    connectionTimeoutMillis: 10_000,
  });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

async function fails(client, statement, sqlstate) {
  await assert.rejects(client.query(statement), (error) => {
    assert.equal(error.code, sqlstate, `${statement}: ${error.message}`);
    return true;
  });
}

async function login() {
  await connected(async (client) => {
    assert.deepEqual((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
  });
}

async function marker() {
  await connected(async (client) => {
    assert.deepEqual((await client.query('SELECT tenant FROM marker')).rows, [{ tenant }]);
  });
}

async function prepared() {
  const one = (number) =>
    connected(async (client) => {
      for (let n = 0; n < EXECUTIONS; n++) {
        const value = number * 1000 + n;
        const { rows } = await client.query({
          name: 'by-name',
          text: 'SELECT tenant, $1::int4 + 1 AS next, $2::text AS echo FROM marker',
          values: [value, `c${number}-${n}`],
        });
        assert.deepEqual(rows, [{ tenant, next: value + 1, echo: `c${number}-${n}` }]);
      }
    });
  await Promise.all(Array.from({ length: CONNECTIONS }, (_, number) => one(number)));
}

// Rows in COPY's text format exactly as PostgreSQL writes it, so that what comes out can be compared as bytes.
function copyLines() {
  return Array.from({ length: COPY_ROWS }, (_, i) => {
    const text = i % 97 === 0 ? '\\N' : `row ${i} grüße\\ttab \\\\ backslash`;
    return Buffer.from(`${i}\t${text}\n`);
  });
}

async function copy() {
  const lines = copyLines();
  await connected(async (client) => {
    await client.query(`CREATE TABLE ${table} (id int PRIMARY KEY, text text)`);
    try {
      await pipeline(Readable.from(lines), client.query(copyStreams.from(`COPY ${table} FROM STDIN`)));
      const wanted = crypto.createHash('sha256').update(Buffer.concat(lines)).digest('hex');
      const got = crypto.createHash('sha256');
      const out = client.query(copyStreams.to(`COPY (SELECT * FROM ${table} ORDER BY id) TO STDOUT`));
      for await (const chunk of out) got.update(chunk);
      assert.equal(got.digest('hex'), wanted, 'checksum');
    } finally {
      await client.query(`DROP TABLE ${table}`);
    }
  });
}

// node-postgres has no public cancel: the protocol's own CancelRequest, encrypted as the session is.
function cancelRequest(client) {
  const integers = (...values) => Buffer.concat(values.map((v) => {
    const buffer = Buffer.alloc(4);
    buffer.writeInt32BE(v);
    return buffer;
  }));
  return new Promise((resolve, reject) => {
    const socket = net.connect(Number(env.PGT_PORT), hostaddr);
    socket.once('error', reject);
    socket.once('connect', () => socket.write(integers(8, 80877103)));
    socket.once('data', (answer) => {
      if (answer.toString() !== 'S') return reject(new Error(`SSLRequest answered with ${answer}`));
      const encrypted = tls.connect({ ...secure, socket }, () => {
        encrypted.end(integers(16, 80877102, client.processID, client.secretKey));
      });
      encrypted.once('error', reject);
      encrypted.once('close', resolve);
      encrypted.resume();
    });
  });
}

async function cancel() {
  await connected(async (client) => {
    const started = Date.now();
    const sleep = fails(client, 'SELECT pg_sleep(30)', '57014');
    await new Promise((resolve) => setTimeout(resolve, 500));
    await cancelRequest(client);
    await sleep;
    assert.ok(Date.now() - started < CANCEL_WITHIN_MS, 'cancel in time');
    assert.deepEqual((await client.query('SELECT 2 AS two')).rows, [{ two: 2 }]);
  });
}

async function transactionError() {
  await connected(async (client) => {
    await client.query('BEGIN');
    await fails(client, 'SELECT 1/0', '22012');
    await fails(client, 'SELECT 1', '25P02');
    await client.query('ROLLBACK');
    assert.deepEqual((await client.query('SELECT 3 AS three')).rows, [{ three: 3 }]);
  });
}

async function main() {
  const steps = { login, marker, prepared, copy, cancel, 'transaction-error': transactionError };
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step();
    } catch (error) {
      console.log(`not ok ${name}: ${error.stack}`);
      process.exit(1);
    }
    console.log(`ok ${name}`);
  }
}

main();

// The server and the clients in Node.js: `main.js server HOST:PORT`, `main.js client HOST:PORT < CASES` and
// `main.js greet TARGET...`. See ../__init__.py.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');

const options = Object.fromEntries(
  Object.entries(JSON.parse(process.env.FOREIGN_OPTIONS || '{}')).map(([name, value]) => [`grpc.${name}`, value]),
);
const raw = (value) => value;
const methods = Object.fromEntries(
  [
    ['Unary', false, false],
    ['ServerStream', false, true],
    ['ClientStream', true, false],
    ['Bidi', true, true],
  ].map(([name, requestStream, responseStream]) => [
    name,
    {
      path: `/foreign.Echo/${name}`,
      requestStream,
      responseStream,
      requestSerialize: raw,
      requestDeserialize: raw,
      responseSerialize: raw,
      responseDeserialize: raw,
    },
  ]),
);

function decoded(pairs) {
  const found = new grpc.Metadata();
  for (const [name, value] of pairs || []) {
    found.add(name, name.endsWith('-bin') ? Buffer.from(value, 'base64') : value);
  }
  return found;
}

function encoded(metadata) {
  return Object.keys(metadata.getMap())
    .sort()
    .flatMap((name) => metadata.get(name).map((value) => [name, Buffer.isBuffer(value) ? value.toString('base64') : value]));
}

const payload = (request) => request.payload ?? 'x'.repeat(request.size || 0);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const answer = (text, call, index = 0) =>
  Buffer.from(JSON.stringify({ payload: text, metadata: encoded(call.metadata), index }));

function failure(request) {
  const [code, details] = request.status || [0, ''];
  return code ? { code, details, metadata: decoded(request.trailing) } : null;
}

async function unary(call, reply) {
  const request = JSON.parse(call.request);
  call.sendMetadata(decoded(request.initial));
  await pause(request.pause_ms || 0);
  const failed = failure(request);
  reply(failed, failed ? null : answer(payload(request), call), decoded(request.trailing));
}

async function serverStream(call) {
  const request = JSON.parse(call.request);
  call.sendMetadata(decoded(request.initial));
  for (let index = 0; index < (request.count ?? 1) && !call.cancelled; index++) {
    await pause(request.pause_ms || 0);
    if (!call.write(answer(payload(request), call, index))) {
      await new Promise((done) => call.once('drain', done));
    }
  }
  finish(call, request);
}

function finish(call, request) {
  const failed = failure(request);
  if (failed) {
    call.emit('error', failed);
  } else {
    call.end(decoded(request.trailing));
  }
}

function clientStream(call, reply) {
  const requests = [];
  call.on('data', (message) => requests.push(JSON.parse(message)));
  call.on('end', () => {
    const first = requests[0] || {};
    call.sendMetadata(decoded(first.initial));
    const failed = failure(first);
    const joined = requests.map(payload).join('');
    reply(failed, failed ? null : answer(joined, call, requests.length), decoded(first.trailing));
  });
}

function bidi(call) {
  let first = {};
  let index = 0;
  let over = false;
  const end = () => {
    if (!over) {
      over = true;
      finish(call, first);
    }
  };
  call.on('data', (message) => {
    if (over) {
      return;
    }
    const request = JSON.parse(message);
    if (index === 0) {
      first = request;
      call.sendMetadata(decoded(request.initial));
    }
    call.write(answer(payload(request), call, index));
    index += 1;
    if (index === first.end_after) {
      end();
    }
  });
  call.on('end', end);
}

function serve(target) {
  const server = new grpc.Server();
  server.addService(methods, { Unary: unary, ServerStream: serverStream, ClientStream: clientStream, Bidi: bidi });
  server.bindAsync(target, grpc.ServerCredentials.createInsecure(), (error) => {
    if (error) {
      throw error;
    }
    console.log('serving');
  });
}

function carryOut(client, one) {
  return new Promise((done) => {
    const method = methods[one.method];
    const deadline = Date.now() + (one.timeout_ms || 30000);
    const metadata = decoded(one.metadata);
    if (one.gzip) {
      metadata.set('grpc-internal-encoding-request', 'gzip');
    }
    const requests = one.requests.map((request) => Buffer.from(JSON.stringify(request)));
    const call = client.makeBidiStreamRequest(method.path, raw, raw, metadata, { deadline });
    const found = { status: null, initial: [], trailing: [], answers: [] };
    call.on('metadata', (initial) => {
      found.initial = encoded(initial);
    });
    call.on('data', (message) => {
      const got = JSON.parse(message);
      if (got.payload.length > 1000) {
        got.payload = got.payload.length;
      }
      found.answers.push(got);
      if (found.answers.length === one.cancel_after) {
        call.cancel();
      }
    });
    call.on('error', () => {});
    call.on('status', ({ code, details, metadata: trailing }) => {
      found.status = [code, details];
      found.trailing = encoded(trailing);
      done(found);
    });
    requests.forEach((request) => call.write(request));
    call.end();
  });
}

// FOREIGN_TLS: a directory with callers-ca.pem and, of a caller with a certificate, tls.pem and tls-key.pem.
function security() {
  const directory = process.env.FOREIGN_TLS;
  if (!directory) {
    return grpc.credentials.createInsecure();
  }
  const read = (name) => fs.readFileSync(`${directory}/${name}`);
  const pair = fs.existsSync(`${directory}/tls.pem`) ? [read('tls-key.pem'), read('tls.pem')] : [];
  return grpc.credentials.createSsl(read('callers-ca.pem'), ...pair);
}

async function call(target) {
  const client = new grpc.Client(target, security(), { 'grpc.enable_http_proxy': 0, ...options });
  for (const one of JSON.parse(fs.readFileSync(0))) {
    const calls = Array.from({ length: one.at_once || 1 }, () => carryOut(client, one));
    for (const found of await Promise.all(calls)) {
      console.log(JSON.stringify(found));
    }
  }
  client.close();
}

function greetOnce(client) {
  return new Promise((done) => {
    const deadline = Date.now() + 30000;
    // A PingMessage: field 1 is the greeting.
    const question = Buffer.from('\x0a\x05hello');
    const call = client.makeUnaryRequest('/protos.Ping/SayHello', raw, raw, question, { deadline }, (error) =>
      done(error ? error.message : call.getPeer()),
    );
  });
}

async function greet(...targets) {
  // It takes half a second to load.
  const xds = require('@grpc/grpc-js-xds');
  xds.register();
  // With targets of xDS the control plane says which replicas speak TLS.
  const told = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
  const seen = Object.fromEntries(targets.map((target) => [target, {}]));
  const print = () => {
    console.log(JSON.stringify(seen));
    targets.forEach((target) => (seen[target] = {}));
  };
  let ended = false;
  const greetUntilTheEnd = async (target) => {
    const client = new grpc.Client(target, told);
    while (!ended) {
      const found = await greetOnce(client);
      seen[target][found] = (seen[target][found] || 0) + 1;
      await pause(20);
    }
    client.close();
  };
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', print);
  lines.on('close', () => (ended = true));
  await Promise.all(targets.map(greetUntilTheEnd));
  print();
  process.exit();
}

const [, , role, ...targets] = process.argv;
({ server: serve, client: call, greet })[role](...targets);

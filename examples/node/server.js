// A gRPC server in Node.js with health, reflection and a graceful stop, in which no call is lost.
'use strict';

const os = require('node:os');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const { ReflectionService } = require('@grpc/reflection');
const { HealthImplementation } = require('grpc-health-check');

const SERVICE = 'examples.words.v1.Words';
// Longer than a balancer takes to learn NOT_SERVING from the health service.
const QUIET_MS = 1000;
// A call with a larger message gets RESOURCE_EXHAUSTED.
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
// The grace of calls in flight; supervisord's stopwaitsecs is longer.
const GRACE_MS = 1000 * parseFloat(process.env.GRPC_GRACE_SECONDS || '20');

const answer = (text) => ({ text, replica: os.hostname() });

const words = {
  Reverse(call, reply) {
    reply(null, answer([...call.request.text].reverse().join('')));
  },
  Split(call) {
    for (const word of call.request.text.split(/\s+/).filter(Boolean)) {
      call.write(answer(word));
    }
    call.end();
  },
};

const definition = protoLoader.loadSync(path.join(__dirname, 'words.proto'));
const server = new grpc.Server({
  'grpc.max_receive_message_length': Number(process.env.GRPC_MAX_MESSAGE_BYTES || MAX_MESSAGE_BYTES),
});
server.addService(definition[SERVICE], words);
const health = new HealthImplementation({ '': 'SERVING', [SERVICE]: 'SERVING' });
health.addToServer(server);
// The registrar reads the server's services from reflection where GRPC_SERVICES is not set.
new ReflectionService(definition).addToServer(server);

function stop() {
  console.log('stopping');
  health.setStatus('', 'NOT_SERVING');
  health.setStatus(SERVICE, 'NOT_SERVING');
  setTimeout(() => server.tryShutdown(() => console.log('stopped')), QUIET_MS);
  setTimeout(() => server.forceShutdown(), QUIET_MS + GRACE_MS).unref();
}

server.bindAsync(`0.0.0.0:${process.env.APP_PORT}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) {
    throw error;
  }
  console.log(`serving port=${port}`);
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
});

// A server of @grpc/grpc-js as its documentation starts one: node server.js ADDRESS:PORT.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const INTERVAL_MS = 10;

// Answers with the request's greeting.
function sayHello(call, reply) {
  reply(null, call.request);
}

// Sends the time of CLOCK_MONOTONIC, in nanoseconds, until the client leaves.
function ticks(call) {
  const timer = setInterval(() => call.write({ value: process.hrtime.bigint().toString() }), INTERVAL_MS);
  call.on('cancelled', () => clearInterval(timer));
}

const files = [path.join(__dirname, '../../../protos/api.proto'), path.join(__dirname, '../stream.proto')];
const definition = protoLoader.loadSync(files);
const server = new grpc.Server();
server.addService(definition['protos.Ping'], { SayHello: sayHello });
server.addService(definition['bench.Stream'], { Ticks: ticks });
server.bindAsync(process.argv[2], grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) {
    throw error;
  }
});

"""The example gRPC server: answers Ping with its host name."""

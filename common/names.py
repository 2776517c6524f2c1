"""Names that several programs write or read: in Consul's catalogue, and the states of a replica."""

from __future__ import annotations

import re

# A DNS label (RFC 1123, and the underscore of Compose's names) that is also safe in a string of nginx and Lua.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
# A gRPC service name: a proto package and a name, as in https://protobuf.dev/reference/protobuf/proto3-spec.
GRPC_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
# Services with this tag are balanced.
BALANCED_TAG = "grpc_server"
# Services with this one are balancers.
BALANCER_TAG = "load_balancer"
# The check of every node: it passes while the cluster reaches the agent.
NODE_CHECK = "serfHealth"
# The metadata grpc_services has a list of names. It continues in the next of these keys when a value is full, because
# Consul takes 512 characters a value.
MAX_VALUE = 512
SERVICES_KEYS = ("grpc_services", *(f"grpc_services_{number}" for number in range(2, 9)))
# The metadata of a replica that speaks TLS: true.
GRPC_TLS = "grpc_tls"
# The metadata of a replica whose calls may be executed twice: true.
GRPC_IDEMPOTENT = "grpc_idempotent"
# The metadata grpc_since as the registrar writes it: text that sorts by time.
SINCE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", re.ASCII)

# The states of a replica at the balancer (docs/glossary.md).
SERVING = "serving"
HELD = "held"
EJECTED = "ejected: "
REFUSED, TIMEOUT, WRONG_SERVICE, NOT_SERVING = "refused", "timeout", "wrong service", "not serving"
CERTIFICATE = "certificate"

# The Consul client of a container. consul-start gives the rest as flags.

# SIGTERM and SIGINT: the agent leaves the cluster, and the catalogue forgets the container at once.
leave_on_terminate      = true
skip_leave_on_interrupt = false
# The servers forget a client that has failed after this time, not after 72 h.
advertise_reconnect_timeout = "15m"
performance {
  # The default of 5 s would prolong each stop of a container.
  leave_drain_time = "200ms"
}
disable_update_check = true
# Streams come from a follower, which lags 50 to 100 ms behind the leader.
use_streaming_backend = false
http_config {
  response_headers {
    # The agent does not compress an answer that has this header. Over loopback compression only costs processor time.
    "Content-Encoding" = "identity"
  }
}
# Nothing here uses the agent's gRPC (xDS).
ports {
  grpc     = -1
  grpc_tls = -1
}

# One of the three Consul servers, which hold the catalogue. consul-start gives the rest as flags.

server = true
# The first leader is elected when this many servers have found each other.
bootstrap_expect = 3
# A server that stops stays a member, because each server that leaves would lower the number that makes a majority.
leave_on_terminate      = false
skip_leave_on_interrupt = true
# A server that has left with `consul leave` joins again when it starts.
rejoin_after_leave   = true
disable_update_check = true
performance {
  # The shortest time-outs of Raft: a lost leader is replaced soonest. The default, 5, is for slow machines.
  raft_multiplier = 1
}
# Nothing here uses the agent's gRPC (xDS).
ports {
  grpc     = -1
  grpc_tls = -1
}

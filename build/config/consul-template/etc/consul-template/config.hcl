# consul-template reads the local agent (CONSUL_HTTP_ADDR). Paths are below the working directory: / in the container.
log_level = "info"
pid_file = ""
kill_signal = "SIGTERM"
reload_signal = "SIGHUP"

# Only the leader's answers: a stale one could bring a replica back that has gone. The agent has use_streaming_backend
# off for the same reason: a stream comes from any server, and one that is not the leader learns of a change 50 to
# 100 ms later (Raft's CommitTimeout).
# The agent compresses nothing: consul-template's HTTP client asks for gzip and can't be told not to, and Consul gzips no
# answer that has a Content-Encoding already. Over loopback it only costs processor time, 8 ms a change of 1,000 replicas.
max_stale = "0s"
# Servers that come back without their data answer a waiting query only when it ends.
block_query_wait = "10s"

consul {
  retry {
    enabled = true
    # No bound: a Consul that is away must not end the balancer's consul-template.
    attempts = 0
    backoff = "100ms"
    max_backoff = "1s"
  }
}

template {
  source = "etc/consul-templates/load-balancer.tpl"
  destination = "etc/nginx/conf.d/load-balancer.conf"
  perms = 0644
  # What can't be written is tried again by the next consul-template, which supervisord starts.
  error_fatal = true
  command = ["nginx-update", "structure"]
}

template {
  source = "etc/consul-templates/peers.tpl"
  destination = "run/peers"
  perms = 0644
  # What can't be written is tried again by the next consul-template, which supervisord starts.
  error_fatal = true
}

# consul-template reads the local agent (CONSUL_HTTP_ADDR). Paths are below the working directory: / in the container.
log_level = "info"
# balancer/consul_template.py reads it.
pid_file = "run/consul-template.pid"
kill_signal = "SIGTERM"
reload_signal = "SIGHUP"

# Only the leader answers, because a stale answer could bring back a replica that has left. The agent has
# use_streaming_backend off for the same reason: a stream comes from any server, and a follower learns of a change 50 to
# 100 ms after the leader (Raft's CommitTimeout). The agent does not compress: consul-template's HTTP client always asks
# for gzip, but Consul does not gzip an answer that has a Content-Encoding already. Over loopback gzip only costs
# processor time, 8 ms a change of 1,000 replicas.
max_stale = "0s"
# Servers that come back without their data answer a waiting query only when it ends.
block_query_wait = "10s"

consul {
  retry {
    enabled = true
    # Unbounded, because a Consul that does not answer must not end consul-template.
    attempts = 0
    backoff = "100ms"
    max_backoff = "1s"
  }
}

template {
  source = "etc/consul-templates/load-balancer.tpl"
  destination = "etc/nginx/conf.d/load-balancer.conf"
  perms = 0644
  # After a failed write supervisord starts consul-template again, which tries again.
  error_fatal = true
  command = ["nginx-update", "structure"]
}

template {
  source = "etc/consul-templates/peers.tpl"
  destination = "run/peers"
  perms = 0644
  error_fatal = true
}

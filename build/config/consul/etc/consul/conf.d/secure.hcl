# TLS, gossip encryption and ACLs, for servers and clients (CONSUL_SECURE=true). Paths are below the working directory: /
# in the container. secrets/agent.hcl has the gossip key and the agent's own tokens.

tls {
  defaults {
    ca_file         = "secrets/ca.pem"
    cert_file       = "secrets/consul.pem"
    key_file        = "secrets/consul-key.pem"
    verify_incoming = true
    verify_outgoing = true
  }
  internal_rpc {
    # Only a server's certificate has a server's name, so a client's can't be used to act as one.
    verify_server_hostname = true
  }
}
# Replicas with TLS are checked with the agent's certificate.
enable_agent_tls_for_checks = true

acl {
  enabled        = true
  default_policy = "deny"
  # While the servers can't be reached, agents use the rights that they know.
  down_policy = "extend-cache"
}

"""The balancer's control plane: decides which replicas get calls, and publishes that to nginx."""

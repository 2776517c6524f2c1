"""The replicas as the catalogue and the balancer have them, and why one gets no calls."""

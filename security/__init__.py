"""The secrets of the secure stack: certificates, the gossip key, and Consul's tokens with their policies."""

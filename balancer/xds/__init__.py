"""The control plane's decisions as xDS, for gRPC clients without a proxy and for Envoy."""

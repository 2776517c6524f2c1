"""The example service's protocol: api.proto and the modules generated from it."""

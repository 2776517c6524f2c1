# Stands in for hashicorp/consul-template where images can't be pulled: Dockerfile.lb only copies the binary.
FROM debian:trixie-slim
LABEL stand-in="consul-template built by Go, made by .ci/base-images"
COPY consul-template /bin/consul-template
# Fails where the binary needs a missing library.
RUN consul-template -version

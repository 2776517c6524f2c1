# Stands in for hashicorp/consul-template where images can't be pulled: the same
# user and place of the binary.
FROM debian:trixie-slim
LABEL stand-in="consul-template built by Go, made by .ci/base-images"
RUN groupadd --gid 1000 consul-template \
    && useradd --uid 100 --gid consul-template --no-create-home --shell /usr/sbin/nologin consul-template
COPY consul-template /bin/consul-template
# Fails where the binary needs a missing library.
RUN consul-template -version
USER consul-template:consul-template
ENTRYPOINT ["/bin/consul-template"]

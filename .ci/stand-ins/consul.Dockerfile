# Stands in for hashicorp/consul where images can't be pulled: the same user,
# directories, volume and place of the binary. The official entry point (it
# finds addresses and gives up root) is not copied: Compose overrides it.
FROM debian:trixie-slim
LABEL stand-in="consul built by Go, made by .ci/base-images"
RUN groupadd --gid 1000 consul \
    && useradd --uid 100 --gid consul --no-create-home --shell /usr/sbin/nologin consul \
    && install -d -o consul -g consul /consul /consul/data /consul/config
COPY consul /bin/consul
# Fails where the binary needs a missing library.
RUN consul version
VOLUME /consul/data
EXPOSE 8300 8301 8301/udp 8302 8302/udp 8500 8600 8600/udp
ENTRYPOINT ["/bin/consul"]
CMD ["agent", "-dev", "-client", "0.0.0.0"]

# The service in a small image: its program and the library's, no compiler, no root, nothing that it writes to.
# `docker build -t perto .`; docker-compose.yml runs three of it with all that belongs to it.

FROM rust:1.95.0-slim-bookworm AS build
# rust-toolchain.toml asks for lints and formatting, which an image needs no download for.
ENV RUSTUP_TOOLCHAIN=1.95.0
# jemalloc is built by it, whichever version the image's Debian has.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What is compiled lies in a cache, which is no part of the image: the program is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --package perto-chat --package perto-cli \
    && mkdir -p /out/run/postgres /out/run/redis && cp target/dist/perto-chat target/dist/perto /out/

FROM debian:12.13-slim
# For TLS to Redis and Postgres.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/perto-chat /out/perto /usr/local/bin/
# Where volumes with passwords may go: a new one takes over its owner and mode. Others may read what they know and may read there.
COPY --from=build --chown=65532:65532 --chmod=0711 /out/run /run/perto
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# Of an instance: commands that come and go say it by their end.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["perto-chat", "healthcheck"]
ENTRYPOINT ["perto-chat"]
CMD ["serve"]

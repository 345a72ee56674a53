# Two stages: the program is compiled on Debian, and runs beside nothing but the C library and the certificates of authorities. The
# image has no shell and no package manager, its user is 65532, and nothing in it is written to.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# With traces (`otlp`) and without symbols, as the Debian package.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_TERM_COLOR=never

# Dependencies first, with empty sources of our own: this layer is made again only where a manifest has changed.
COPY Cargo.toml Cargo.lock ./
COPY crates/client/Cargo.toml crates/client/
COPY crates/config/Cargo.toml crates/config/
COPY crates/engine/Cargo.toml crates/engine/
COPY crates/otlp/Cargo.toml crates/otlp/
COPY crates/protocol/Cargo.toml crates/protocol/
COPY crates/testkit/Cargo.toml crates/testkit/
COPY tests/model/Cargo.toml tests/model/
COPY deploy/docker/stubs deploy/docker/
RUN deploy/docker/stubs && cargo build --release --locked --features otlp --bin cachekeeper

COPY migrations migrations
COPY config config
COPY crates crates
COPY src src
# Newer than the empty ones, or cargo takes them for compiled.
RUN find src crates -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --features otlp --bin cachekeeper

# libc, libgcc, certificates, time zones, and a user `nonroot` (65532): made of Debian's packages, without a shell.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Cachekeeper" \
      org.opencontainers.image.description="Keeps Redis consistent with Postgres" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY --from=build /build/target/release/cachekeeper /usr/local/bin/cachekeeper
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/cachekeeper/
USER 65532:65532
EXPOSE 9464
STOPSIGNAL SIGTERM
# Whether it lives; `healthcheck --ready` asks whether it is ready.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["/usr/local/bin/cachekeeper", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/cachekeeper"]
CMD ["run"]

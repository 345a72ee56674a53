FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# The whole workspace: cargo reads the manifest of every member.
COPY . .
RUN cargo build --release --locked --features otlp --bin cachekeeper

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/target/release/cachekeeper /usr/local/bin/cachekeeper
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["cachekeeper", "healthcheck"]
ENTRYPOINT ["cachekeeper"]
CMD ["run"]

# Builds corecast and leaves one binary on a small Debian.
#
#   docker build -t corecast .
#   docker run --rm -p 8080:8080 --security-opt seccomp=deploy/seccomp-io_uring.json --ulimit nofile=1048576 corecast
#
# Docker's own seccomp profile forbids io_uring; the profile beside this file is that one plus its three calls.
# Without it corecast runs on epoll and says so.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY shards shards
COPY domains domains
COPY host host
COPY tuning tuning
COPY charts charts
COPY statistics statistics
COPY bench bench
COPY consumer consumer
COPY tls tls
COPY examples examples
COPY fuzz fuzz
# The caches outlive the build and stay out of the image, so the binary is copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release -p corecast \
    && cp target/release/corecast /usr/local/bin/corecast \
    && strip --strip-debug /usr/local/bin/corecast

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/corecast /usr/local/bin/corecast
# Whom rediss:// trusts unless --redis-ca-file says otherwise.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A number, not a name: Kubernetes' runAsNonRoot can't check names.
USER 65532:65532
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# Exec form: corecast is process 1 and gets the signal that begins its drain.
ENTRYPOINT ["/usr/local/bin/corecast"]
CMD ["serve", "--listen", "0.0.0.0:8080"]

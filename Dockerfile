# One image for every role. Build:  docker build -t rhizome .    Its bill of materials: scripts/sbom.py
#
# Run a daemon: root inside with one capability, so its files have to be readable without CAP_DAC_OVERRIDE (owned by root).
# /dev/net/tun is for kernels without WireGuard; /proc/sys is read-only in a container, so forwarding is switched on from here.
#   docker run --user 0 --cap-drop ALL --cap-add NET_ADMIN --device /dev/net/tun \
#     --sysctl net.ipv4.ip_forward=1 --sysctl net.ipv6.conf.all.forwarding=1 \
#     -v ./config:/etc/rhizome:ro rhizome rhizome-shoot-client --config /etc/rhizome/shoot-client.toml
#
# The default user is not root: tools (`rhizome-agent pki`, `--help`, `--print-config`) need nothing, and a daemon that lacks a
# capability ends with exit code 3 and says which. Docker and Kubernetes give added capabilities to root only.
#
# PID 1 is tini, its child is scripts/supervise, and only then comes the daemon: when it crashes it is started again in the same
# container, where its carrier, wireguard-go and device go on meanwhile (docs/adr/0003, 0005). When the container is stopped,
# all processes in it end; a kernel device stays as long as its network namespace does.

ARG DEBIAN=trixie
ARG GO=1.26
ARG PYTHON=3.13

FROM golang:${GO}-${DEBIAN} AS wireguard-go
COPY scripts/install-wireguard-go /src/
# The script pins the version. It may fall back to Debian's package; here that is a failed build.
RUN HOME=/out /src/install-wireguard-go && test -x /out/.cache/rhizome/bin/wireguard-go

FROM python:${PYTHON}-slim-${DEBIAN} AS wheel
WORKDIR /src
# Nothing that was not locked (scripts/lock) gets in. With the extra `kubernetes`, without `wgconf`: it would bring AGPL-3.0 code (docs/adr/0004).
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/rhizome && /opt/rhizome/bin/pip install --require-hashes -r requirements.lock \
 && python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY ipam ipam
COPY seed_server seed_server
COPY shoot_client shoot_client
# Byte code that is checked against no time stamp is the same in each build, and the root file system may be read-only. pip leaves some with stamps (-f).
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/rhizome/bin/pip install --no-deps --no-index --find-links /wheels rhizome \
 && /opt/rhizome/bin/pip uninstall --yes pip \
 && python -m compileall -qf --invalidation-mode unchecked-hash /opt/rhizome/lib

FROM python:${PYTHON}-slim-${DEBIAN}
# Lists, logs and a cache would make each build another one.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends iproute2 nftables tini \
 && rm -rf /var/lib/apt/lists/* /var/log/apt/* /var/log/dpkg.log /var/cache/ldconfig/aux-cache \
 && groupadd --gid 65532 rhizome && useradd --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin rhizome \
 && install -d -m 0700 /run/rhizome /var/lib/rhizome
COPY --from=wireguard-go /out/.cache/rhizome/bin/wireguard-go /usr/local/bin/
COPY --from=wheel /opt/rhizome /opt/rhizome
COPY scripts/supervise /usr/local/bin/
ENV PATH=/opt/rhizome/bin:$PATH
ENV PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="rhizome" org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["tini", "--", "supervise"]
CMD ["rhizome-agent", "--help"]

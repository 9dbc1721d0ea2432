# docker build -t kssm .                                     CPU
# docker build -t kssm:cuda --build-arg TORCH_INDEX= .       CUDA: the package index's own build of torch
#
# The secrets `pipconf` and `ca` are optional: a pip.conf and a certificate bundle for a private
# package index, which then replaces TORCH_INDEX. They never reach a layer.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY kssm kssm
COPY service service
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt,required=false \
    python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE} AS packages
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml docker/install /src/
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt,required=false \
    /src/install /opt/kssm "${TORCH}" "${TORCH_INDEX}"
COPY --from=wheel /wheels /wheels
RUN python -m pip --python /opt/kssm/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${BASE}
# Triton, which a CUDA build of torch brings, compiles its launchers where it runs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ -z "$TORCH_INDEX" ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
RUN groupadd --gid 10001 kssm \
 && useradd --uid 10001 --gid kssm --no-create-home --home-dir /tmp --shell /usr/sbin/nologin kssm \
 && install -d -o kssm -g kssm -m 0700 /var/lib/kssm
COPY --from=packages /opt/kssm /opt/kssm
COPY docker/entrypoint /usr/local/bin/kssm-entrypoint

# The root may be read-only: what is written goes to the volume or to /tmp.
ENV PATH=/opt/kssm/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    KSSM_HOST=0.0.0.0 \
    KSSM_PORT=8000 \
    KSSM_STORE=/var/lib/kssm

USER 10001:10001
VOLUME /var/lib/kssm
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/kssm-entrypoint", "healthy"]
ENTRYPOINT ["/usr/local/bin/kssm-entrypoint"]
CMD ["serve"]

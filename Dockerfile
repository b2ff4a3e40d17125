# Two images: `--target cpu`, which is the last stage and so the default, and `--target gpu`. See docs/container.md.
#
# Any Debian 12 with Python 3.11 will do as the base; builder and image share it, so that the environment fits.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
RUN python3 -c 'import sys; assert sys.version_info[:2] == (3, 11), f"Python 3.11 is needed, this is {sys.version}"'
RUN python3 -c 'import ensurepip' 2>/dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends python3-venv; }
WORKDIR /opt/polytone
RUN python3 -m venv venv
ENV PIP_NO_CACHE_DIR=1
# Of Polytone the name alone: its code changes more often than the packages, and comes last.
COPY pyproject.toml README.md LICENSE ./
COPY polytone/__init__.py polytone/
COPY tools/install.py tools/
COPY deploy/container/packages.sh deploy/container/

# The folder build/wheels, or nothing if there is none: then packages come from where the secret `pip`, a pip.conf, says.
FROM scratch AS wheels
COPY LICENSE build/wheel[s] /wheels/

FROM builder AS cpu-packages
ARG CLUSTER=0
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
COPY requirements/cpu.txt requirements/cluster.txt requirements/
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    deploy/container/packages.sh cpu "$CLUSTER"

FROM builder AS gpu-packages
ARG CLUSTER=0
COPY requirements/gpu.txt requirements/cluster.txt requirements/
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    deploy/container/packages.sh gpu "$CLUSTER"

FROM ${BASE_IMAGE} AS code
WORKDIR /opt/polytone
COPY pyproject.toml LICENSE ./
COPY examples examples
COPY deploy/*.py deploy/
COPY polytone polytone
RUN python3 -m compileall -q --invalidation-mode unchecked-hash polytone

# `polytone backup` and `restore` call these two; the package they come in would bring Perl along.
FROM ${BASE_IMAGE} AS postgresql
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client-15

FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 libpq5 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 polytone \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin polytone \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=postgresql /usr/lib/postgresql/15/bin/pg_dump /usr/lib/postgresql/15/bin/pg_restore /usr/lib/postgresql/15/bin/
# HOME holds the caches of every library, so that nothing but /data and /tmp is ever written.
# LOGNAME is for a server that runs under a user id which the image does not know.
ENV PATH=/opt/polytone/venv/bin:$PATH \
    HOME=/data \
    LOGNAME=polytone \
    PIP_NO_CACHE_DIR=1 \
    POLYTONE_HOME=/data \
    POLYTONE_HOST=0.0.0.0
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"POLYTONE_PORT\", 8000)}/healthz', timeout=4)"]
ENTRYPOINT ["polytone"]
CMD ["serve"]

FROM runtime AS gpu
# Triton compiles its launcher in C when the server starts, and this compiler is for nothing else.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && { test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')/Python.h" \
         || apt-get install --yes --no-install-recommends libpython3.11-dev; } \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# FlashInfer's sampler would be compiled by nvcc at the first request; vLLM's own needs no more than Triton.
ENV VLLM_USE_FLASHINFER_SAMPLER=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/polytone/venv /opt/polytone/venv
COPY --from=code /opt/polytone /opt/polytone
VOLUME ["/data"]
USER 10001:10001

FROM runtime AS cpu
COPY --from=cpu-packages /opt/polytone/venv /opt/polytone/venv
COPY --from=code /opt/polytone /opt/polytone
VOLUME ["/data"]
USER 10001:10001

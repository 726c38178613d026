# The gateway, and the worker: the same image. No torch, no compiler, no shell access needed; runs as user 10001 on a
# read-only root file system, with /data and /tmp as the only places to write.
#   docker build -f docker/gateway.Dockerfile -t localhost/tags-gateway:0.1.0 .
# PYTHON_IMAGE by digest: `scripts/images pin` looks it up in the registry and prints the build argument.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY docker/constraints.txt pyproject.toml README.md LICENSE ./
COPY contract contract
COPY service service
RUN python3 -m venv /opt/tags \
    && /opt/tags/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[postgres,s3]' \
    && /opt/tags/bin/pip uninstall --yes --quiet pip setuptools

FROM ${PYTHON_IMAGE}
# The bundle that is served; a site's own: --build-arg BUNDLE=bundles/vit_b-1.0.0 (and let .dockerignore pass it).
ARG BUNDLE=model_repository
RUN groupadd --gid 10001 tags \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin tags \
    && install --directory --owner=tags --group=tags --mode=0700 /data
COPY --from=build /opt/tags /opt/tags
# Whatever the umask of the checkout was: another user reads it here.
COPY --chmod=0755 ${BUNDLE} /bundle
ENV PATH=/opt/tags/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TAGS_HOST=0.0.0.0 \
    TAGS_BUNDLE_DIR=/bundle \
    TAGS_DATA_DIR=/data \
    TAGS_TEMPORARY_DIR=/tmp
USER 10001:10001
EXPOSE 8080 11112
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('TAGS_PORT', '8080') + '/health/live', timeout=4)"]
ENTRYPOINT ["tags"]
CMD ["serve"]

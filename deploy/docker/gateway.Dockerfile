# The gateway: no torch, no vLLM, no GPU. From the repository's root:
#   docker build -f deploy/docker/gateway.Dockerfile -t pixtral-gateway .
# checkov:skip=CKV_DOCKER_2:whoever runs the container probes its gRPC health
# checkov:skip=CKV_DOCKER_7:the base image is pinned where it is an argument
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pixtral
COPY requirements/build.txt requirements/gateway.txt /src/requirements/
# Each file is one whose hash the lock names, and none builds with what no lock names.
RUN python -m pip install --no-deps --require-hashes -r /src/requirements/build.txt \
 && /opt/pixtral/bin/python -m pip install --no-deps --require-hashes --only-binary :all: \
    -r /src/requirements/gateway.txt
COPY . /src
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src \
 && /opt/pixtral/bin/python -m pip install --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/pixtral /opt/pixtral
ENV PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001:10001
EXPOSE 50051 8000 8081 9090
ENTRYPOINT ["/opt/pixtral/bin/python", "-m", "gateway"]

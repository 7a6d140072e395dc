# The encoder: torch with CUDA, no vLLM. From the repository's root:
#   docker build -f deploy/docker/encoder.Dockerfile -t pixtral-encoder .
# checkov:skip=CKV_DOCKER_2:whoever runs the container probes its gRPC health
# checkov:skip=CKV_DOCKER_7:the base image is pinned where it is an argument
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pixtral
COPY requirements/build.txt requirements/encoder.txt requirements/torch.txt /src/requirements/
# Each file is one whose hash the lock names, and none builds with what no lock names; but torch has
# two builds, and each names the versions of the CUDA libraries that it needs.
RUN python -m pip install --no-deps --require-hashes -r /src/requirements/build.txt \
 && /opt/pixtral/bin/python -m pip install --no-deps --require-hashes --only-binary :all: \
    -r /src/requirements/encoder.txt \
 && /opt/pixtral/bin/python -m pip install --only-binary :all: -r /src/requirements/torch.txt
COPY . /src
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src \
 && /opt/pixtral/bin/python -m pip install --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
# The vision tower is compiled at start, for which Triton calls a C compiler.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pixtral /opt/pixtral
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=pixtral NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 50052 8081 9090
ENTRYPOINT ["/opt/pixtral/bin/python", "-m", "services.encoder"]

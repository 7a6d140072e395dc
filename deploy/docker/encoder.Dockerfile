# The encoder: torch with CUDA, no vLLM. From the repository's root:
#   docker build -f deploy/docker/encoder.Dockerfile -t pixtral-encoder .
# checkov:skip=CKV_DOCKER_2:whoever runs the container probes its gRPC health
# checkov:skip=CKV_DOCKER_7:the base image is pinned where it is an argument
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pixtral
COPY requirements/encoder.txt /src/requirements/
# torch names the versions of the CUDA libraries that it needs; all else is the lock's.
RUN torch=$(grep '^torch==' /src/requirements/encoder.txt) \
 && /opt/pixtral/bin/python -m pip install -c /src/requirements/encoder.txt "$torch" \
 && /opt/pixtral/bin/python -m pip install --no-deps -r /src/requirements/encoder.txt
COPY . /src
RUN /opt/pixtral/bin/python -m pip install --no-deps /src

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

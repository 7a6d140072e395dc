# The decoder, on vLLM's own image. From the repository's root:
#   docker build -f deploy/docker/decoder.Dockerfile -t pixtral-decoder .
# Without a GPU: --build-arg VLLM_IMAGE=<vLLM's image for CPUs, of the same version>
# checkov:skip=CKV_DOCKER_2:whoever runs the container probes its gRPC health
# checkov:skip=CKV_DOCKER_7:the base image is pinned where it is an argument
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE}
COPY requirements/decoder.txt /src/requirements/
# What vLLM's image lacks, over it, with vLLM, torch and all that they need left as they are.
RUN python3 -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    -r /src/requirements/decoder.txt
COPY . /src
# vLLM finds the plug-in by the installed project's entry point. vLLM's image has setuptools.
RUN python3 -m pip install --no-cache-dir --no-deps --no-build-isolation /src && rm -rf /src
ENV PYTHONUNBUFFERED=1 HOME=/tmp USER=pixtral VLLM_NO_USAGE_STATS=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 50053 8081 9090
ENTRYPOINT ["python3", "-m", "services.decoder"]

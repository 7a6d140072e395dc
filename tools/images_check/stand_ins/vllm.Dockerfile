# Stands in for vLLM's image: a C++ compiler, vLLM for CPUs and what it needs, and nothing else.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY vllm.txt torch.txt /tmp/
RUN python3 -m pip install --no-cache-dir --no-deps --require-hashes -r /tmp/vllm.txt \
 && python3 -m pip install --no-cache-dir -r /tmp/torch.txt
WORKDIR /vllm-workspace
ENTRYPOINT ["vllm", "serve"]

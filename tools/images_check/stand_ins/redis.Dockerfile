# Stands in for docker.io/library/redis: Debian's own Redis, without that image's entry point.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends redis-server \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /data
CMD ["redis-server"]

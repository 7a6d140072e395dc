# Stands in for docker.io/library/python: Debian's own Python. Each build mounts /stand-in, with the
# wheels and a pip.conf that takes no others.
FROM scratch
ADD debian.tar /
ENV PIP_CONFIG_FILE=/stand-in/pip.conf PIP_ROOT_USER_ACTION=ignore PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]

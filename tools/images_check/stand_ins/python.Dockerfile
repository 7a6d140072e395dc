# Stands in for docker.io/library/python: Debian's own Python, and pip that takes wheels from /wheels.
FROM scratch
ADD debian.tar /
RUN printf '[global]\nno-index = true\nfind-links = /wheels\nbreak-system-packages = true\n' >/etc/pip.conf
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]

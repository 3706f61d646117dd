# Gaussearch in a container: the service and the batch build, for machines without a GPU (target cpu, the default, so
# it is the last stage) and with one (target gpu).
#
#   docker build -t gaussearch:cpu .
#   docker run --rm -v gaussearch:/index -v "$PWD/sample/wordnet:/corpus:ro" gaussearch:cpu build /corpus/documents.parquet
#   docker run --rm -v gaussearch:/index:ro -p 127.0.0.1:8080:8080 -e GAUSSEARCH_ALLOW_ANONYMOUS=true gaussearch:cpu
#
# In a container the service listens on every address, and it cannot see whether -p publishes its port to this machine
# or to all. So it does not start without a search key (-e GAUSSEARCH_API_KEY, or GAUSSEARCH_API_KEY_FILE and a file)
# unless it is told, as above, that whoever reaches the port may search.
#
# It needs nothing writable but /tmp and, to build, /index: compose.yaml runs it with a read-only root file system. An
# index in object storage takes a folder for its cache instead (GAUSSEARCH_CACHE), and no /index. A cluster of Ray's
# takes the image with --build-arg EXTRAS=ray. deploy/kubernetes has both.
#
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS are pip's own settings. Where pip's default torch is a CUDA
# build of several GB, name a source of CPU builds with them: the pin in constraints.txt takes either.

ARG BASE=python:3.11-slim
# The wheels of torch and FAISS bring their CUDA runtime, and the driver comes from the host's container toolkit: a
# plain Python is enough. A base of your own needs python3, 3.11 or newer, with venv and pip.
ARG GPU_BASE=${BASE}

# The package as a wheel: only this stage needs the source and setuptools.
FROM ${BASE} AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY sample/wordnet/LICENSE sample/wordnet/
COPY index index
COPY service service
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What has to be installed first, one dependency a line. A stage of its own, so that the layers below are made anew
# when a dependency changes and not at every edit of pyproject.toml.
FROM ${BASE} AS requirements
# More of the package's extras: text, for models; ray, to build and serve on a Ray cluster; 'ray text' for both.
ARG EXTRAS=
COPY pyproject.toml .
RUN for extra in cpu gpu; do python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    more = p['optional-dependencies']; names = '$extra $EXTRAS'.split(); \
    print(*p['dependencies'], *[each for name in names for each in more[name]], sep='\n')" > /$extra.txt; done

FROM ${GPU_BASE} AS gpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN python3 -m venv /opt/gaussearch \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gaussearch \
    && install --directory --owner gaussearch --group gaussearch /index
COPY constraints.txt /opt/gaussearch/
COPY --from=requirements /gpu.txt /opt/gaussearch/requirements.txt
RUN /opt/gaussearch/bin/pip install --no-cache-dir \
    --constraint /opt/gaussearch/constraints.txt --requirement /opt/gaussearch/requirements.txt
COPY scripts/build_index.py /opt/gaussearch/scripts/
COPY --from=wheel /wheels /opt/gaussearch/wheels
RUN /opt/gaussearch/bin/pip install --no-cache-dir --no-index --no-deps /opt/gaussearch/wheels/*.whl
# The two NVIDIA settings ask the container toolkit for the devices and for what computing needs of the driver.
ENV PATH=/opt/gaussearch/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GAUSSEARCH_INDEX=/index GAUSSEARCH_HOST=0.0.0.0 GAUSSEARCH_PORT=8080 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME /index
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client, os, ssl, sys; \
at = ('127.0.0.1', int(os.environ['GAUSSEARCH_PORT'])); tls = 'GAUSSEARCH_TLS_CERTIFICATE' in os.environ; \
c = http.client.HTTPSConnection(*at, timeout=4, context=ssl._create_unverified_context()) if tls else \
http.client.HTTPConnection(*at, timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["gaussearch"]
CMD ["serve"]

# The same without a GPU. It repeats the stage above because a stage cannot choose its base by the target.
FROM ${BASE} AS cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# A fixed user id, so that an operator can give it a host folder: chown 10001 FOLDER.
RUN python3 -m venv /opt/gaussearch \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gaussearch \
    && install --directory --owner gaussearch --group gaussearch /index
COPY constraints.txt /opt/gaussearch/
COPY --from=requirements /cpu.txt /opt/gaussearch/requirements.txt
RUN /opt/gaussearch/bin/pip install --no-cache-dir \
    --constraint /opt/gaussearch/constraints.txt --requirement /opt/gaussearch/requirements.txt
# From here on layers are small, and made anew when the code changes.
COPY scripts/build_index.py /opt/gaussearch/scripts/
COPY --from=wheel /wheels /opt/gaussearch/wheels
RUN /opt/gaussearch/bin/pip install --no-cache-dir --no-index --no-deps /opt/gaussearch/wheels/*.whl
# pip has compiled all modules above; at run time nothing tries to, because the root file system may be read-only.
# HOME is where libraries look for their caches.
ENV PATH=/opt/gaussearch/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GAUSSEARCH_INDEX=/index GAUSSEARCH_HOST=0.0.0.0 GAUSSEARCH_PORT=8080
USER 10001:10001
VOLUME /index
EXPOSE 8080
# It asks the port of GAUSSEARCH_PORT, by HTTPS if there is a GAUSSEARCH_TLS_CERTIFICATE, so set these and not serve's
# options. http.client, because it takes no notice of proxy settings. Whose certificate it is does not matter: it asks
# itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client, os, ssl, sys; \
at = ('127.0.0.1', int(os.environ['GAUSSEARCH_PORT'])); tls = 'GAUSSEARCH_TLS_CERTIFICATE' in os.environ; \
c = http.client.HTTPSConnection(*at, timeout=4, context=ssl._create_unverified_context()) if tls else \
http.client.HTTPConnection(*at, timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["gaussearch"]
CMD ["serve"]

# One image for the API, the workers and the schema: `daguerre serve`, `daguerre worker`, `daguerre schema`.
# Debian, not Alpine: the tests and `./run up` use the same wheels, so there is one libvips to test.
FROM python:3.13-slim AS base

FROM base AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/daguerre
# Dependencies first: they change less often than the code.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" >requirements.txt && \
    python -m pip --python /opt/daguerre/bin/python install --no-cache-dir --compile -r requirements.txt
COPY . .
RUN python -m pip --python /opt/daguerre/bin/python install --no-cache-dir --compile --no-deps .

FROM base
LABEL org.opencontainers.image.title="Daguerre" \
      org.opencontainers.image.description="A self-hosted image host" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 daguerre && \
    useradd --uid 10001 --gid daguerre --home-dir /var/lib/daguerre --no-create-home --shell /usr/sbin/nologin daguerre && \
    install -d -o daguerre -g daguerre -m 0750 /var/lib/daguerre
COPY --from=build /opt/daguerre /opt/daguerre
ENV PATH=/opt/daguerre/bin:$PATH
# Checks that everything can be imported, including libvips, and compiles the standard library, unlike the base image.
RUN cd / && python -c "import service.http.server, service.cli.health, service.launcher.serve, worker.main, worker.imaging"
ENV PYTHONDONTWRITEBYTECODE=1 \
    DAGUERRE_DATA=/var/lib/daguerre \
    DAGUERRE_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/daguerre
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["daguerre"]
CMD ["serve"]

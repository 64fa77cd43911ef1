# Conductor as a container: docker build -t conductor .
#
# Run it beside your Postgres, with your settings and your tasks mounted:
#
#   docker run --stop-timeout 35 -v "$PWD/conductor.toml:/app/conductor.toml:ro" -v "$PWD/myapp:/app/myapp:ro" \
#     -e CONDUCTOR_DATABASE_URL=postgresql://user:password@host/db conductor
#
# or, when the tasks need packages of their own, make an image from it:
#
#   FROM conductor
#   USER root
#   RUN pip install --no-cache-dir 'httpx==0.28.*'
#   USER 10001:10001
#   COPY conductor.toml /app/
#   COPY myapp /app/myapp
#
# To stop: Docker waits 10 s unless told otherwise, less than coordinator.shutdown_timeout (25 s). Give it
# more (--stop-timeout 35; stop_grace_period in Compose; terminationGracePeriodSeconds in Kubernetes), or
# tasks are cut short and run again elsewhere instead of finishing.
#
# To reach health and metrics from outside: the server listens on the container's own loopback.
# Another address needs a token, without which it refuses to start:
#
#   -e CONDUCTOR_SERVER_HOST=0.0.0.0 -e CONDUCTOR_SERVER_TOKEN=... -p 127.0.0.1:8765:8765
#
# /healthz and /readyz never ask for it, so a cluster's probes work. With CONDUCTOR_SERVER_DASHBOARD=false
# only health and metrics are served, and no token is needed.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/conductor
COPY pyproject.toml README.md LICENSE ./
COPY conductor_cli conductor_cli
COPY migrations migrations
RUN pip wheel --no-deps --wheel-dir /wheels . && /opt/conductor/bin/pip install /wheels/*.whl

FROM python:3.12-slim
# No extra init: as the first process the command passes signals on and reaps orphans itself.
COPY --from=build /opt/conductor /opt/conductor
ENV PATH=/opt/conductor/bin:$PATH PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 conductor \
    && useradd --uid 10001 --gid conductor --home-dir /app --no-create-home --shell /usr/sbin/nologin conductor \
    && install -d -o conductor -g conductor /app
WORKDIR /app
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 10001:10001
EXPOSE 8765
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["conductor", "healthcheck"]
ENTRYPOINT ["conductor"]
CMD ["start-server"]

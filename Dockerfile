# Overnight in one container: `docker build -t overnight .`, then `docker run -p 127.0.0.1:8700:8700 -v overnight:/data overnight`.
# A role of a fleet: `docker run … overnight worker --jobs nightly.jobs` with DATABASE_URL.
FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements-build.lock requirements.lock pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m venv /opt/overnight \
    && /opt/overnight/bin/pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && /opt/overnight/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/overnight/bin/pip install --no-cache-dir --no-index --no-build-isolation --no-deps .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data overnight && chmod 700 /data
COPY --from=build /opt/overnight /opt/overnight
ENV PATH=/opt/overnight/bin:$PATH OVERNIGHT_HOME=/data/.overnight PYTHONUNBUFFERED=1
USER overnight
WORKDIR /data
VOLUME /data
EXPOSE 8700
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8700/healthz', timeout=2)"]
ENTRYPOINT ["overnight"]
CMD ["up", "--host", "0.0.0.0"]

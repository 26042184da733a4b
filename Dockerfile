# docker build -t slipstream .
# docker run -p 8080:8080 -e ENABLE_MOCK_PROVIDER=1 slipstream
# docker run -p 18000:18000 -v ./config.yaml:/app/config.yaml:ro slipstream
#
# Set MASTER_API_KEY (or server.master_api_key): the container listens on every address, and without a key anybody who
# reaches the published port may use it. slipstream says so when it starts.

FROM python:3.13-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in LICENSE README.md ./
COPY slipstream slipstream
# Extras to build in, such as --build-arg EXTRAS=redis,otel
ARG EXTRAS=""
RUN python -m venv --without-pip /opt/slipstream \
    && pip --python /opt/slipstream/bin/python install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin slipstream
COPY --from=build /opt/slipstream /opt/slipstream
ENV PATH=/opt/slipstream/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The configuration is looked for here: ./config.yaml and ./.env
WORKDIR /app
USER 10001:10001
EXPOSE 8080
# A configuration with another port also needs -e PORT=... for this check.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or '8080') + '/health', timeout=2)"]
ENTRYPOINT ["slipstream"]
CMD ["serve", "--host", "0.0.0.0"]

# One image for every room; the command chooses: python -m services.ledger
FROM python:3.11-slim-bookworm AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# requirements-traces.lock adds what OTEL_EXPORTER_OTLP_ENDPOINT needs.
ARG LOCK=requirements.lock
COPY ${LOCK} /requirements.lock
# Wheels only: nothing is compiled, so no compiler is ever installed.
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --require-hashes --only-binary :all: -r /requirements.lock

FROM python:3.11-slim-bookworm
# The base image's installer is of no use to a running room, only to an intruder.
RUN python -m pip uninstall --yes --quiet --root-user-action ignore setuptools wheel pip \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin billing \
 && install --directory --owner billing --mode 700 /backups
COPY --from=packages /venv /venv
WORKDIR /app
COPY . .
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app:/app/gen \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
CMD ["python", "-m", "services.ledger"]

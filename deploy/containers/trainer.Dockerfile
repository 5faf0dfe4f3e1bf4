# docker build -t instep-trainer:0.1.0 -f deploy/containers/trainer.Dockerfile .
# `instep run` and the bundled trainer, with PyTorch and its CUDA libraries. In an image of your own that has PyTorch already,
# `pip install .` in this repository adds what a watched job needs. Built from the repository's root.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/instep
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY agent/ agent/
COPY diagnosis/ diagnosis/
COPY collector/ collector/
COPY remediation/ remediation/
COPY trainer/ trainer/
COPY dashboards/ dashboards/
COPY cli/ cli/
RUN /opt/instep/bin/pip install --no-cache-dir --constraint constraints.txt '.[trainer]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/instep /opt/instep
ENV PATH=/opt/instep/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["instep"]
CMD ["run", "--standalone", "-m", "instep_trainer.train"]

# docker build -t instep-agent:0.1.0 -f deploy/containers/agent.Dockerfile .
# The agent of one node, with the base's few packages: no torch, numpy or web framework. Built from the repository's root.
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
RUN /opt/instep/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/instep /opt/instep
ENV PATH=/opt/instep/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Its user is said where it runs: root where records of other users are to be read, anybody where they are one's own.
ENTRYPOINT ["instep"]
CMD ["agent"]

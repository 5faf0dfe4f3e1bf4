# docker build -t instep-server:0.1.0 -f deploy/containers/server.Dockerfile .
# The server, with what PostgreSQL and the Kubernetes executor need. Built from the repository's root.
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
RUN /opt/instep/bin/pip install --no-cache-dir --constraint constraints.txt '.[server,postgresql,kubernetes]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/instep /opt/instep
ENV PATH=/opt/instep/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The owner of its state, the same number as in deploy/kubernetes/base/server.yaml.
RUN install -d -o 10001 -g 10001 /var/lib/instep
USER 10001:10001
WORKDIR /var/lib/instep
EXPOSE 7070
ENTRYPOINT ["instep"]
CMD ["server", "--listen", "0.0.0.0:7070", "--state-dir", "/var/lib/instep"]

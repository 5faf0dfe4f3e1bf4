"""The manifests are valid, are taken by an API server, and name only settings that the programs have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from instep_agent.cli import _parser as agent_parser
from instep_agent.cli import effective_config, load_config
from instep_remediation.policy import Policy
from instep_remediation.server.cli import parser as server_parser
from instep_remediation.server.cli import read_config
from instep_remediation.toml_file import read_toml

from tests.cluster.api_server import ApiServer
from tests.cluster.conftest import REAL, Kubectl, kubectl_with
from tests.deploy.manifests import FOLDERS, KUBERNETES, ROOT, container, manifests, one, pod, rendered
from tests.deploy.prometheus_rules import manifest

SCHEMAS = kubernetes_validate.latest_version()
Tokens = dict[str, dict[str, str]]
every_folder = pytest.mark.parametrize("folder", FOLDERS)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    if os.environ.get(REAL):
        pytest.skip(f"needs the stand-in: unset {REAL}")
    with ApiServer() as started:
        started.add_node("node-a")
        yield started


@pytest.fixture
def kubectl(server: ApiServer, tmp_path: Path) -> Kubectl:
    return kubectl_with(server.kubeconfig(tmp_path / "kubeconfig"), tmp_path)


def tokens(folder: str = "default") -> Tokens:
    """What the script of tokens prints, by the Secrets' names."""
    done = subprocess.run(["sh", str(KUBERNETES / "make-tokens"), folder], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    secrets = list(yaml.safe_load_all(done.stdout))
    return {f"{each['metadata']['namespace']}/{each['metadata']['name']}": each["stringData"] for each in secrets}


@every_folder
def test_every_object_is_valid_in_the_schemas_of_current_kubernetes(folder: str):
    for each in manifests(folder):
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):  # its schemas are not Kubernetes's
            kubernetes_validate.validate(each, SCHEMAS, strict=True)


def test_an_object_with_a_misspelled_field_is_not_valid():
    wrong = one("base", "DaemonSet", "instep-agent")
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, SCHEMAS, strict=True)


@every_folder
def test_a_server_side_apply_is_taken_and_a_second_one_changes_nothing(
    folder: str, kubectl: Kubectl, server: ApiServer
):
    first = kubectl("apply", "--server-side", "-k", str(KUBERNETES / folder))
    assert first.returncode == 0, first.stderr
    found = {
        (each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "")) for each in manifests(folder)
    }
    before = {key: server.get(*key)["metadata"]["resourceVersion"] for key in found}
    second = kubectl("apply", "--server-side", "-k", str(KUBERNETES / folder))
    assert second.returncode == 0, second.stderr
    assert {key: server.get(*key)["metadata"]["resourceVersion"] for key in found} == before


def test_the_tokens_are_taken_too(kubectl: Kubectl, server: ApiServer):
    assert kubectl("apply", "--server-side", "-k", str(KUBERNETES / "base")).returncode == 0
    made = subprocess.run(["sh", str(KUBERNETES / "make-tokens")], capture_output=True, text=True, timeout=30).stdout
    done = kubectl("apply", "--server-side", "-f", "-", stdin=made)
    assert done.returncode == 0, done.stderr
    assert {each["metadata"]["name"] for each in server.all("Secret", "instep")} >= {
        "instep-server",
        "instep-agent-token",
        "instep-view-token",
    }


def test_the_tokens_are_new_each_time_and_the_server_holds_only_hashes_of_the_others():
    first, second = tokens("ml"), tokens("ml")
    assert set(first) == {
        "instep/instep-server",
        "instep/instep-agent-token",
        "instep/instep-view-token",
        "ml/instep-job-token",
    }
    every = [each["token"] for each in (*first.values(), *second.values())]
    assert len(set(every)) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in every)
    held = first["instep/instep-server"]["90-tokens.toml"]
    assert not any(each in held for each in every)


# Settings -------------------------------------------------------------------------------------------------------------


HOLDERS = {
    "administrator": "instep/instep-server",
    "agent": "instep/instep-agent-token",
    "job": "default/instep-job-token",
    "prometheus": "instep/instep-view-token",
}
ASKED = ("/control/v1/node-orders?node=node-a&wait_seconds=0", "/metrics", "/api/v1/incidents")


def settings_of_server(
    folder: str, path: Path, extra: dict[str, str] | None = None, *, made: Tokens | None = None
) -> Path:
    """The file that the Deployment's first container writes, out of the parts that its volume holds, by its command."""
    parts, run = path / "parts", path / "run"
    parts.mkdir(), run.mkdir()
    secrets = {
        "instep-server": (made or tokens())["instep/instep-server"],
        **({"instep-database": extra} if extra else {}),
    }
    volume = next(each for each in pod(folder, "Deployment", "instep-server")["volumes"] if each["name"] == "parts")
    for source in volume["projected"]["sources"]:
        if "configMap" in source:
            config = next(each for each in manifests(folder) if each["metadata"]["name"] == source["configMap"]["name"])
            for key, text in config["data"].items():
                (parts / key).write_text(text)
        else:
            for item in source["secret"]["items"]:
                (parts / item["path"]).write_text(secrets[source["secret"]["name"]][item["key"]])
    command = container(folder, "Deployment", "instep-server", "settings")["command"]
    moved = [word.replace("/etc/instep/parts", str(parts)).replace("/run/instep", str(run)) for word in command]
    subprocess.run(moved, check=True, timeout=30)
    return run / "server.toml"


@pytest.mark.parametrize(
    ("folder", "executor", "database"),
    [
        ("base", "print", ""),
        ("overlays/approve", "kubernetes", ""),
        ("overlays/postgresql", "print", "postgresql+psycopg://instep@db/instep"),
        ("overlays/full", "kubernetes", "postgresql+psycopg://instep@db/instep"),
    ],
)
def test_the_server_takes_its_settings(folder: str, executor: str, database: str, tmp_path: Path):
    extra = {"20-database.toml": f'database = "{database}"\n'} if database else None
    path = settings_of_server(folder, tmp_path, extra)
    words = container(folder, "Deployment", "instep-server", "server")["args"]
    assert words[:1] == ["server"]
    options = server_parser().parse_args([word.replace("/run/instep/server.toml", str(path)) for word in words[1:]])
    config = read_config(options)
    assert (config.executor, config.database) == (executor, database)
    assert {token.name: sorted(token.scopes) for token in config.tokens} == {
        "agents": ["agent"],
        "jobs in default": ["agent"],
        "prometheus": ["view"],
    }
    mounts = container(folder, "Deployment", "instep-server", "server")["volumeMounts"]
    for file in (config.token_file, config.policy, config.state_dir / "journal"):
        assert file is not None and str(file.parent) in {mount["mountPath"] for mount in mounts}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[str, Tokens]]:
    """The server with the settings of the base, and the tokens that were made for it."""
    made = tokens()
    path = settings_of_server("base", tmp_path, made=made)
    (tmp_path / "token").write_text(made["instep/instep-server"]["token"])
    (tmp_path / "policy.toml").write_text(one("base", "ConfigMap", "instep-policy")["data"]["policy.toml"])
    places = ["--listen=127.0.0.1:0", f"--state-dir={tmp_path}/state", f"--token-file={tmp_path}/token"]
    command = [Path(sys.executable).parent / "instep", "server", f"--config={path}", *places]
    command += [f"--policy={tmp_path}/policy.toml", "--json-ready"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["url"], made
        finally:
            server.terminate()


def status(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_each_token_opens_what_it_was_made_for_and_nothing_else(running):
    url, made = running
    holder = {name: made[secret]["token"] for name, secret in HOLDERS.items()}
    assert [status(f"{url}{path}") for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 401]
    may = {name: [status(f"{url}{path}", token) for path in ASKED] for name, token in holder.items()}
    assert may == {
        "administrator": [200, 200, 200],
        "agent": [200, 403, 403],
        "job": [200, 403, 403],
        "prometheus": [403, 200, 200],
    }


def test_a_setting_that_the_server_does_not_know_would_be_refused(tmp_path: Path):
    path = settings_of_server("base", tmp_path)
    path.write_text("lissten = 1\n" + path.read_text())
    with pytest.raises(Exception, match="lissten"):
        read_config(server_parser().parse_args(["--config", str(path)]))


def test_the_policy_is_one_and_proposes_only(tmp_path: Path):
    path = tmp_path / "policy.toml"
    path.write_text(one("base", "ConfigMap", "instep-policy")["data"]["policy.toml"])
    assert read_toml(path, Policy).nodes.drain == "propose"


def test_the_agent_takes_its_settings_and_each_of_their_folders_is_mounted(tmp_path: Path):
    path = tmp_path / "agent.toml"
    path.write_text(one("base", "ConfigMap", "instep-agent")["data"]["agent.toml"])
    words = container("base", "DaemonSet", "instep-agent", "agent")["args"]
    assert words[:1] == ["agent"]
    options = agent_parser().parse_args([word.replace("/etc/instep/agent.toml", str(path)) for word in words[1:]])
    config = effective_config(options)
    mounts = {mount["mountPath"] for mount in container("base", "DaemonSet", "instep-agent", "agent")["volumeMounts"]}
    beneath = {f"{config.root}/{name}" for name in ("proc", "sys", "dev/kmsg")}
    assert {config.record_root, config.spool_folder, str(Path(config.token_file).parent), *beneath} <= mounts


def test_addresses_and_ports_agree():
    service = one("base", "Service", "instep-server")
    address = f"http://instep-server.{service['metadata']['namespace']}.svc:{service['spec']['ports'][0]['port']}"
    assert tomllib.loads(one("base", "ConfigMap", "instep-agent")["data"]["agent.toml"])["server_url"] == address
    assert {"name": "INSTEP_SERVER", "value": address} in container("examples/job", "Job", "example", "trainer")["env"]
    listens = tomllib.loads(one("base", "ConfigMap", "instep-server")["data"]["10-server.toml"])["listen"]
    ports = container("base", "Deployment", "instep-server", "server")["ports"]
    assert [f"0.0.0.0:{port['containerPort']}" for port in ports] == [listens]


@pytest.mark.parametrize("folder", ["base", "overlays/full", "examples/job"])
def test_every_variable_of_ours_is_read_by_the_code(folder: str):
    named = set(re.findall(r"name: (INSTEP_\w+)", rendered(folder)))
    assert named
    packages = ("agent", "trainer", "remediation")
    code = "".join(path.read_text() for part in packages for path in (ROOT / part).rglob("*.py"))
    assert {name for name in named if f'"{name}"' not in code} == set()


def test_instep_run_takes_the_arguments_and_variables_of_the_example(tmp_path: Path):
    trainer = container("examples/job", "Job", "example", "trainer")
    (tmp_path / "token").write_text(tokens()["default/instep-job-token"]["token"])
    folder = next(mount["mountPath"] for mount in trainer["volumeMounts"] if mount["name"] == "token")
    words = [word.replace("$(RUN)", "3c7e").replace(folder, str(tmp_path)) for word in trainer["args"]]
    assert words[0] == "run"
    variables = {each["name"]: each.get("value", "node-a") for each in trainer["env"]}  # else from the pod's own fields
    script = "import sys; from instep_trainer.run.options import read_options as r; o = r(sys.argv[1:]); "
    script += "print(o.job, o.run, o.node, o.server, o.max_restarts)"
    done = subprocess.run(
        [sys.executable, "-c", script, *words[1:]],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["example", "3c7e", "node-a", variables["INSTEP_SERVER"], "3"]
    job = one("examples/job", "Job", "example")
    assert f"--nnodes={job['spec']['completions']}" in trainer["args"]


def test_a_job_and_the_agent_share_the_folder_of_records():
    def records(folder: str, kind: str, name: str) -> dict[str, str]:
        volume = next(each for each in pod(folder, kind, name)["volumes"] if each["name"] == "records")
        found: dict[str, str] = volume["hostPath"]
        return found

    assert records("base", "DaemonSet", "instep-agent") == records("examples/job", "Job", "example")


def test_the_operators_rules_are_those_of_the_dashboards():
    made = (KUBERNETES / "components/monitoring/rules.yaml").read_text()
    assert made == manifest(), "write it anew: python -m tests.deploy.prometheus_rules"
    rules = yaml.safe_load((ROOT / "dashboards/generated/rules/instep.yaml").read_text())
    assert one("overlays/full", "PrometheusRule", "instep")["spec"] == rules


def test_the_settings_of_the_systemd_unit_load():
    config = load_config(ROOT / "deploy/systemd/agent.toml")
    assert config.spool_folder == "/var/lib/instep-agent"

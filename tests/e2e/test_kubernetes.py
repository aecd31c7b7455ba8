"""deploy/kubernetes: Kubernetes accepts it, and it agrees with the image, the settings and compose.yaml."""

from __future__ import annotations

import functools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import jsonschema_rs
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from service.api.app import create_app
from service.cli import cli
from service.config.settings import Settings
from service.config.values import parse_size
from tests.conftest import EmptyDatabase, skip_or_fail
from tests.support.custom_resources import SCHEMAS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# The oldest that the documentation promises, and the newest that the validator knows.
VERSIONS = ["1.30", "1.37"]
# The binary units of Kubernetes, and those of Daguerre.
QUANTITY = re.compile(r"(\d+)([MG])i")

Manifest = dict[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    return [document for document in YAML(typ="safe").load_all(path) if document]


KUSTOMIZATIONS = {path.parent: read_manifests(path)[0] for path in sorted(FOLDER.rglob("kustomization.yaml"))}
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
MANIFESTS = [manifest for path in FILES for manifest in read_manifests(path)]
SETTINGS_ENV = dict(
    line.split("=", 1) for line in (BASE / "settings.env").read_text().splitlines() if line and not line.startswith("#")
)


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def find(kind: str, name: str, manifests: list[Manifest] = MANIFESTS) -> Manifest:
    [manifest] = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return manifest


WORKLOADS = [manifest for manifest in MANIFESTS if manifest["kind"] in {"Deployment", "Job"}]
API, WORKER = find("Deployment", "daguerre-api"), find("Deployment", "daguerre-worker")
POLICIES = {one["metadata"]["name"]: one["spec"] for one in MANIFESTS if one["kind"] == "NetworkPolicy"}

every_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
every_workload = pytest.mark.parametrize("manifest", WORKLOADS, ids=name_of)
every_deployment = pytest.mark.parametrize("manifest", [API, WORKER], ids=name_of)
every_version = pytest.mark.parametrize("version", VERSIONS)


def pod_of(manifest: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def container_of(manifest: Manifest) -> dict[str, Any]:
    container: dict[str, Any]
    [container] = pod_of(manifest)["containers"]
    return container


def all_containers_of(manifest: Manifest) -> list[dict[str, Any]]:
    return [*pod_of(manifest).get("initContainers", []), *pod_of(manifest)["containers"]]


def variables_of(manifest: Manifest) -> dict[str, Any]:
    return {variable["name"]: variable for variable in container_of(manifest)["env"]}


def settings_of(manifest: Manifest) -> Settings:
    """Returns the settings of a pod, without its secrets."""
    values = dict(re.findall(r"\b(DAGUERRE_\w+)=(\S+)", DOCKERFILE)) | SETTINGS_ENV
    values |= {name: variable["value"] for name, variable in variables_of(manifest).items() if "value" in variable}
    ours = {
        name.removeprefix("DAGUERRE_").lower(): value for name, value in values.items() if name.startswith("DAGUERRE_")
    }
    return Settings.model_validate(ours)


def bytes_of(quantity: str) -> int:
    match = QUANTITY.fullmatch(quantity)
    assert match is not None, quantity
    return parse_size(f"{match[1]}{match[2]}B")


def volume_of(manifest: Manifest, folder: Path) -> dict[str, Any]:
    [name] = [mount["name"] for mount in container_of(manifest)["volumeMounts"] if mount["mountPath"] == str(folder)]
    volume: dict[str, Any]
    [volume] = [volume for volume in pod_of(manifest)["volumes"] if volume["name"] == name]
    return volume


def validate(manifest: Manifest, version: str) -> None:
    if manifest["kind"] in SCHEMAS:
        jsonschema_rs.validator_for(SCHEMAS[manifest["kind"]]).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@every_version
@every_manifest
def test_kubernetes_knows_every_field(manifest: Manifest, version: str) -> None:
    validate(manifest, version)


def test_validation_finds_a_misspelt_field() -> None:
    for kind, name in [("Deployment", "daguerre-api"), ("ScaledObject", "daguerre-worker")]:
        manifest = find(kind, name)
        spec = manifest["spec"] | {"replicaz": 2}
        with pytest.raises((kubernetes_validate.ValidationError, jsonschema_rs.ValidationError), match="replicaz"):
            validate(manifest | {"spec": spec}, VERSIONS[-1])


def test_documented_version_is_the_oldest_that_is_validated() -> None:
    assert f"Kubernetes {VERSIONS[0]} or newer" in OPERATIONS
    assert f"Kubernetes {VERSIONS[0]} or newer" in (BASE / "kustomization.yaml").read_text()
    assert VERSIONS[-1] == ".".join(kubernetes_validate.latest_version().split(".")[:2])


def test_kustomizations_list_every_file() -> None:
    for folder, kustomization in KUSTOMIZATIONS.items():
        listed = [
            *kustomization.get("resources", []),
            *kustomization.get("components", []),
            *(name for generator in kustomization.get("configMapGenerator", []) for name in generator.get("envs", [])),
        ]
        assert all((folder / name).exists() for name in listed)
        files = {path.name for path in folder.iterdir() if path.is_file()} - {"kustomization.yaml"}
        assert files == {name for name in listed if not name.startswith("../")}


def test_example_uses_every_component() -> None:
    components = {f"../components/{path.name}" for path in (FOLDER / "components").iterdir()}
    assert set(KUSTOMIZATIONS[FOLDER / "example"]["components"]) == components


def test_variables_are_settings() -> None:
    text = "".join(path.read_text() for path in FOLDER.rglob("*") if path.is_file())
    names = {name for name in re.findall(r"\bDAGUERRE_(\w+)", text) if not name.endswith("_")}
    assert names
    assert {name.lower() for name in names} - Settings.model_fields.keys() == set()


@every_deployment
def test_settings_can_be_parsed(manifest: Manifest) -> None:
    settings = settings_of(manifest)
    assert settings.object_store is not None  # hosts share nothing else
    assert settings.host == "0.0.0.0"


@every_workload
def test_image_and_user_are_those_of_the_image(manifest: Manifest) -> None:
    for container in all_containers_of(manifest):
        assert container["image"] == f"daguerre:{PROJECT['version']}"
    security = pod_of(manifest)["securityContext"]
    [user] = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == user


@every_workload
def test_pods_drop_privileges(manifest: Manifest) -> None:
    """As the standard `restricted` of Kubernetes requires, and with a read-only file system."""
    pod = pod_of(manifest)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in all_containers_of(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert pod["automountServiceAccountToken"] is False
    assert all("emptyDir" in volume for volume in pod.get("volumes", []))


@every_workload
def test_commands_exist_as_in_compose(manifest: Manifest) -> None:
    compose = YAML(typ="safe").load(ROOT / "compose.yaml")["services"]
    component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
    service = compose[{"api": "service"}.get(component, component)]
    container = container_of(manifest)
    assert container["args"] == service["command"]
    assert container["args"][0] in cli.commands
    for probe in (container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")):
        if "exec" in probe:
            assert ["CMD", *probe["exec"]["command"]] == service["healthcheck"]["test"]


def test_ports_are_those_of_the_settings() -> None:
    assert container_of(API)["ports"] == [{"name": "http", "containerPort": settings_of(API).port}]
    assert f"EXPOSE {settings_of(API).port}\n" in DOCKERFILE
    assert container_of(WORKER)["ports"] == [{"name": "metrics", "containerPort": settings_of(WORKER).metrics_port}]
    names = {port["name"] for manifest in (API, WORKER) for port in container_of(manifest)["ports"]}
    assert find("Service", "daguerre")["spec"]["ports"][0]["targetPort"] in names
    monitor = find("PodMonitor", "daguerre")["spec"]
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} == names


def test_probes_of_the_api_ask_existing_routes() -> None:
    routes = {route.resource.canonical for route in create_app(Settings()).router.routes() if route.resource}
    container = container_of(API)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/healthz", "liveness": "/healthz"}
    assert set(paths.values()) <= routes


def test_no_outage_of_redis_restarts_a_worker() -> None:
    assert "livenessProbe" not in container_of(WORKER)
    assert find("ScaledObject", "daguerre-worker")["spec"]["minReplicaCount"] > 0


@every_deployment
def test_termination_exceeds_the_drain(manifest: Manifest) -> None:
    pause_s = container_of(manifest).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    supervisor_s = 5
    assert pod_of(manifest)["terminationGracePeriodSeconds"] > pause_s + settings_of(manifest).drain_s + supervisor_s


@every_deployment
def test_volume_for_the_cache_is_large_enough(manifest: Manifest) -> None:
    """Otherwise Kubernetes would end the pod."""
    settings = settings_of(manifest)
    volume = volume_of(manifest, settings.cache_folder)
    received = settings.uploads_in_flight * settings.api_processes if manifest is API else 16  # downloads of a worker
    size = bytes_of(volume["emptyDir"]["sizeLimit"])
    assert size >= settings.cache_size * (1 + 2 / 32) + received * settings.max_upload
    assert bytes_of(container_of(manifest)["resources"]["requests"]["ephemeral-storage"]) >= size


@every_deployment
def test_every_folder_that_is_written_is_a_volume(manifest: Manifest) -> None:
    mounts = {mount["mountPath"] for mount in container_of(manifest)["volumeMounts"]}
    assert mounts == {"/tmp", str(settings_of(manifest).cache_folder)}  # metrics are in /dev/shm
    assert {volume["name"] for volume in pod_of(manifest)["volumes"]} == {
        mount["name"] for mount in container_of(manifest)["volumeMounts"]
    }


@every_workload
def test_secrets_are_references(manifest: Manifest) -> None:
    assert not [one for one in MANIFESTS if one["kind"] == "Secret"]
    for name, variable in variables_of(manifest).items():
        if name.endswith(("_URL", "_KEY", "_KEY_ID")):
            assert set(variable["valueFrom"]) == {"secretKeyRef"}
    keys = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for variable in variables_of(manifest).values()
        if "valueFrom" in variable
    }
    assert all(f"--from-literal={key}=" in OPERATIONS for key in keys)


def test_schema_job_is_one_for_each_version() -> None:
    """A Job cannot be changed, so its name changes with the image, and it does not use the generated ConfigMap."""
    [job] = [manifest for manifest in MANIFESTS if manifest["kind"] == "Job"]
    assert job["metadata"]["name"] == f"daguerre-schema-{PROJECT['version']}"
    assert "envFrom" not in container_of(job)
    assert f"job/{job['metadata']['name']}" in OPERATIONS


def test_workers_wait_for_the_tables_of_their_version() -> None:
    """`daguerre schema` fails while an upgrade is pending. The API is not ready until then."""
    [container] = pod_of(WORKER)["initContainers"]
    assert container["args"][0] == "schema"
    assert "upgrade" not in container["args"]
    assert container_of(API)["startupProbe"]["httpGet"]["path"] == "/readyz"
    for manifest in (API, WORKER):
        assert manifest["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_selectors_find_their_pods() -> None:
    for manifest in MANIFESTS:
        if manifest["kind"] in {"Deployment", "PodDisruptionBudget"}:
            workload = find("Deployment", manifest["metadata"]["name"])
            assert manifest["spec"]["selector"]["matchLabels"] == workload["spec"]["template"]["metadata"]["labels"]
    assert find("Service", "daguerre")["spec"]["selector"] == API["spec"]["template"]["metadata"]["labels"]
    for manifest in (API, WORKER):
        for constraint in pod_of(manifest)["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"] == manifest["spec"]["selector"]["matchLabels"]


def test_budgets_let_a_node_be_drained() -> None:
    for manifest in (API, WORKER):
        budget = find("PodDisruptionBudget", manifest["metadata"]["name"])["spec"]
        assert budget["maxUnavailable"] < manifest["spec"]["replicas"]


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in selector.get("matchExpressions", [])
    )


def policies_of(manifest: Manifest, direction: str) -> Iterator[str]:
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    for name, spec in POLICIES.items():
        if spec.get(direction) and matches(spec["podSelector"], labels):
            yield name


def test_workers_reach_only_what_they_need() -> None:
    servers = {"daguerre-dns", "daguerre-postgresql", "daguerre-redis", "daguerre-object-store"}
    assert set(policies_of(WORKER, "egress")) == servers
    assert set(policies_of(API, "egress")) == servers | {"daguerre-downloads"}
    [job] = [manifest for manifest in WORKLOADS if manifest["kind"] == "Job"]
    assert set(policies_of(job, "egress")) == {"daguerre-dns", "daguerre-postgresql"}
    assert list(policies_of(job, "ingress")) == []
    for manifest in WORKLOADS:
        assert matches(POLICIES["daguerre-deny"]["podSelector"], manifest["spec"]["template"]["metadata"]["labels"])
    for name in servers:
        for rule in POLICIES[name]["egress"]:
            assert all(rule["to"]), name  # an empty entry would be every address
            assert rule["ports"]


def test_connections_of_all_pods_are_documented() -> None:
    settings = settings_of(API)
    workers = find("ScaledObject", "daguerre-worker")["spec"]["maxReplicaCount"]
    pods = API["spec"]["replicas"] + API["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    connections = (pods * settings.api_processes + workers + 1) * settings.database_connections
    assert f"at most {connections} connections" in OPERATIONS


async def test_keda_counts_pending_images(empty_database: EmptyDatabase, tenant: Any) -> None:
    """With the rights of the documented role, and by the index of unfinished images."""
    [query] = [
        trigger["metadata"]["query"]
        for trigger in find("ScaledObject", "daguerre-worker")["spec"]["triggers"]
        if trigger["type"] == "postgresql"
    ]
    connection = empty_database.connection
    await connection.execute(
        "insert into images (id, account_id, state, size, sha256)"
        " select 'kind' || number, $1, case when number < 3 then 'pending' else 'ready' end, 1, ''"
        " from generate_series(1, 2000) as number",
        tenant.id,
    )
    await connection.execute("analyze images")
    grants = re.findall(r"^(grant .+);$", OPERATIONS, re.MULTILINE)
    assert grants
    await connection.execute("create role keda")
    try:
        for grant in grants:
            await connection.execute(grant)
        await connection.execute("set role keda")
        assert await connection.fetchval(query) == 2
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {query}"))
        assert "images_unfinished" in plan
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("select * from images")
    finally:
        await connection.execute("reset role")
        await connection.execute("drop owned by keda; drop role keda")


@functools.cache
def render(folder: Path) -> list[Manifest]:
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False).stdout
    if re.search(r"Kustomize Version: v[5-9]", version) is None:  # Debian 12 has kubectl 1.20, with kustomize 2
        skip_or_fail("kubectl is older than 1.27")
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return [document for document in YAML(typ="safe").load_all(result.stdout) if document]


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("folder", ["base", "example"])
@every_version
def test_rendered_manifests_are_valid(folder: str, version: str) -> None:
    manifests = render(FOLDER / folder)
    expected = {one["kind"] for one in MANIFESTS} if folder == "example" else {"Deployment", "Job", "Service"}
    assert expected <= {one["kind"] for one in manifests}
    for manifest in manifests:
        validate(manifest, version)


@pytest.mark.needs("kubectl")
def test_example_changes_what_it_says() -> None:
    manifests = render(FOLDER / "example")
    [settings] = [one for one in manifests if one["kind"] == "ConfigMap"]
    assert settings["data"].keys() > SETTINGS_ENV.keys()
    assert settings["data"]["DAGUERRE_STORAGE"] == "s3://pictures-of-example/daguerre"
    api, worker = find("Deployment", "daguerre-api", manifests), find("Deployment", "daguerre-worker", manifests)
    for manifest in (api, worker):
        assert container_of(manifest)["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        assert container_of(manifest)["image"] == f"registry.example.com/daguerre:{PROJECT['version']}"
    assert (api["spec"]["replicas"], "replicas" in worker["spec"]) == (2, False)  # KEDA decides
    [rule] = find("NetworkPolicy", "daguerre-object-store", manifests)["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "10.20.0.0/24"}}]
    assert {one["metadata"].get("namespace") for one in manifests} == {"daguerre"}

"""Templates for platforms that are not at hand here: a real Prefect server takes them, its real workers render them."""

import asyncio
import base64
import json
import os
import re
import sys
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from deployments.pools import PACKAGES, base_job_template, merge, stock_template
from deployments.processes import LOOPBACK, Children, quiet_environment, start_on_free_port
from deployments.servers import start_prefect
from tasks.errors import ConfigurationError

DEPLOYMENTS = Path(__file__).parents[1] / "deployments"
SECRET = "h0rse-battery-staple"


def manifests(name):
    return list(yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / name).read_text()))


@pytest.fixture(scope="module")
def blocks(prefect_api):
    """The Secret blocks that the Docker template refers to."""
    from prefect.blocks.system import Secret

    for name in ("mlflow-username", "mlflow-password"):
        Secret(value=SECRET).save(name, overwrite=True)


def render(configuration, platform, **job_variables):
    """What a worker makes of the template and a deployment's job variables, for a flow run."""
    from prefect.client.schemas.objects import Flow, FlowRun

    async def prepare():
        found = await configuration.from_template_and_values(base_job_template(platform), job_variables)
        flow = Flow(name="training", labels={})
        found.prepare_for_flow_run(FlowRun(id=uuid4(), name="a run", flow_id=flow.id), flow=flow)
        return found

    return asyncio.run(prepare())


@pytest.mark.parametrize("platform", PACKAGES)
def test_a_server_accepts_the_template(prefect_api, platform):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    async def create():
        async with get_client() as client:
            template = base_job_template(platform)
            await client.create_work_pool(
                WorkPoolCreate(name=f"a-{platform}", type=platform, base_job_template=template)
            )

    asyncio.run(create())


@pytest.mark.parametrize("platform", ["docker", "kubernetes", "ecs"])
def test_a_template_changes_only_variables_that_have_a_type(platform):
    variables = base_job_template(platform)["variables"]["properties"]
    assert not [name for name, each in variables.items() if not {"type", "anyOf", "allOf"} & set(each)]
    assert set(stock_template(platform)["variables"]["properties"]) <= set(variables)


def test_an_unknown_platform_is_refused():
    with pytest.raises(ConfigurationError, match=r"no work pool template for 'mainframe': there are process, docker"):
        base_job_template("mainframe")


def test_a_merge_patch_merges_objects_removes_nulls_and_replaces_the_rest():
    whole = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 3}
    assert merge(whole, {"a": {"b": None, "x": {}}, "d": [3]}) == {"a": {"c": 2, "x": {}}, "d": [3], "e": 3}


def test_a_container_of_docker_is_not_root_and_gets_secrets_from_blocks(blocks):
    from prefect_docker.worker import DockerWorkerJobConfiguration

    made = render(DockerWorkerJobConfiguration, "docker", env={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"})
    assert made.image == f"shardline:{version('shardline')}"
    assert made.env["SHARDLINE_ROOT"] == "/app" and made.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert made.env["MLFLOW_TRACKING_PASSWORD"] == SECRET
    assert SECRET not in json.dumps(base_job_template("docker"))
    assert made.mem_limit == "8g"
    assert made.container_create_kwargs["user"] == "10001:10001"
    assert made.container_create_kwargs["cap_drop"] == ["ALL"]


def test_a_kubernetes_job_is_not_root_and_asks_for_memory_and_gpus(prefect_api):
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    made = render(
        KubernetesWorkerJobConfiguration, "kubernetes", gpus=2, env={"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    )
    job = made.job_manifest
    assert (job["kind"], job["metadata"]["namespace"]) == ("Job", "shardline")
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["serviceAccountName"] == "shardline-run"
    assert "completions" not in pod and job["spec"]["completions"] == 1
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 2}
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "4Gi"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["envFrom"] == [{"secretRef": {"name": "shardline-run"}}]
    assert {"SHARDLINE_ROOT", "MLFLOW_TRACKING_URI", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"} <= {
        each["name"] for each in container["env"]
    }
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_an_ecs_task_is_not_root_and_gets_secrets_by_their_arns(prefect_api):
    from prefect_aws.workers.ecs_worker import ECSJobConfiguration

    made = render(ECSJobConfiguration, "ecs", memory=32768)
    task = made.task_definition
    assert (task["memory"], task["cpu"], task["networkMode"]) == (32768, 4096, "awsvpc")
    assert task["requiresCompatibilities"] == ["FARGATE"] and task["ephemeralStorage"] == {"sizeInGiB": 100}
    (container,) = task["containerDefinitions"]
    assert container["user"] == "10001:10001" and container["name"] == "shardline"
    assert {each["name"] for each in container["secrets"]} == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert all(each["valueFrom"].startswith("arn:aws:secretsmanager:") for each in container["secrets"])
    assert made.prefect_api_auth_string_secret_arn.startswith("arn:aws:secretsmanager:")
    assert made.task_run_request["overrides"]["taskRoleArn"] == "arn:aws:iam::123456789012:role/shardline-run"


def test_the_image_is_pinned_not_root_and_holds_nothing_but_code():
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases) and len(set(bases)) == 1
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any("-c constraints.txt" in line for line in lines)
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert copied == [["pyproject.toml", "constraints.txt"], ["flows"], ["tasks"], ["deployments"]]
    assert any(line.startswith("COPY --from=kernel ") and "/kernel.*.so " in line for line in lines)
    last = (DEPLOYMENTS / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.search(r"in \*,kernels,\*\).*gcc .*;;.*USER", last, re.S)  # Triton's launcher is compiled where it runs
    kept = (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines()
    assert kept[1] == "*"
    assert {line[1:].removesuffix("/**") for line in kept if line.startswith("!")} == {
        name for part in copied for name in part
    }


def test_a_ray_job_has_a_rank_a_pod_a_token_nobody_as_its_user_and_the_versions_that_are_pinned():
    from tasks.parameters import TrainingParameters

    (job,) = manifests("ray-job.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"], cluster["rayVersion"]) == ("ray.io/v1", "RayJob", version("ray"))
    assert cluster["authOptions"] == {"mode": "token"}
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "flows.training"]
    options = {word[2:].replace("-", "_"): value for word, value in zip(words[3::2], words[4::2], strict=True)}
    given = TrainingParameters(**options)
    groups = {each["groupName"]: each for each in cluster["workerGroupSpecs"]}
    assert {name: each["replicas"] for name, each in groups.items()} == {"cpu": given.ranks, "gpu": 0}
    assert all(each["maxReplicas"] == given.ranks for each in groups.values())
    assert all(each["rayStartParams"]["num-cpus"] == "1" for each in groups.values())
    for pod in (each["template"]["spec"] for each in (cluster["headGroupSpec"], *groups.values())):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["serviceAccountName"] == "shardline-run"
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["image"] == "registry.example.com/shardline-ranks:0.1.0"
    assert groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("name", ["prefect-server.yaml", "prefect-worker.yaml"])
def test_helm_values_pin_prefect_and_name_settings_that_it_has(name):
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    (values,) = manifests(name)
    texts = json.dumps(values)
    assert f'"prefectTag": "{version("prefect")}-python3.11' in texts
    own = re.findall(r'"name": "(PREFECT_[A-Z0-9_]+)"', texts)
    assert own and not [
        each for each in own if each not in _get_valid_setting_names(Settings) and "INTEGRATIONS" not in each
    ]


def test_helm_values_switch_authentication_cors_and_csrf_on():
    (values,) = manifests("prefect-server.yaml")
    assert values["server"]["basicAuth"] == {"enabled": True, "existingSecret": "prefect-auth"}
    environment = {each["name"]: each["value"] for each in values["server"]["env"]}
    assert environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "https://prefect.example.com"
    assert environment["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert values["secret"] == {"create": False, "name": "prefect-database"} and not values["postgresql"]["enabled"]
    (worker,) = manifests("prefect-worker.yaml")
    secrets = {each["name"]: each["valueFrom"] for each in worker["worker"]["extraEnvVars"] if "valueFrom" in each}
    assert secrets == {"PREFECT_API_AUTH_STRING": {"secretKeyRef": {"name": "prefect-auth", "key": "auth-string"}}}


def mlflow_container():
    deployment = next(each for each in manifests("mlflow.yaml") if each["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    return deployment["spec"]["template"]["spec"]["containers"][0]


def test_mlflow_on_kubernetes_takes_its_secrets_by_reference():
    literal = {each["name"] for each in mlflow_container()["env"] if "value" in each}
    referred = {each["name"] for each in mlflow_container()["env"] if "valueFrom" in each}
    assert referred == {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert literal == {
        "MLFLOW_AUTH_CONFIG_PATH",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
        "MLFLOW_DISABLE_TELEMETRY",
    }


def status(url, login=None, **headers):
    request = urllib.request.Request(url, headers=headers)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.long
def test_mlflow_with_the_templates_own_words_asks_for_a_login_and_refuses_foreign_hosts(tmp_path):
    words = [
        each for each in mlflow_container()["args"][2:] if not each.startswith(("--host", "--port", "--artifacts"))
    ]
    (tmp_path / "basic_auth.ini").write_text(
        "[mlflow]\ndefault_permission = EDIT\nadmin_username = admin\n"
        f"admin_password = {SECRET}\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
    )
    environment = quiet_environment(os.environ) | {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": tmp_path.as_uri(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRET,
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "basic_auth.ini"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = tmp_path / "log"
    with Children() as children:

        def start(port):
            allowed = [f"{word},127.0.0.1:{port}" if "--allowed-hosts" in word else word for word in words]
            command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), *allowed]
            return children.start_server(command, environment, log)

        url = f"http://{LOOPBACK}:{start_on_free_port(start, '/health', log, children)}"
        search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
        assert status(search) == 401
        assert status(search, "admin:wrong") == 401
        assert status(search, f"admin:{SECRET}") == 200
        assert status(search, f"admin:{SECRET}", Host="mlflow:5000") == 200
        assert status(search, f"admin:{SECRET}", Host="evil.example.org") == 403


@pytest.mark.long
def test_prefect_with_an_auth_string_asks_for_a_login(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", f"admin:{SECRET}")
    monkeypatch.setenv("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true")
    with Children() as children:
        api = start_prefect(children, tmp_path)
        assert status(f"{api}/admin/version") == 401
        assert status(f"{api}/admin/version", "admin:wrong") == 401
        assert status(f"{api}/admin/version", f"admin:{SECRET}") == 200

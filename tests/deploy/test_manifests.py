"""The manifests of a cluster: as published schemas want them, of one mind with each other and with what they run."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from fastapi.routing import APIRoute

from polytone.serve.api.health import health_routes
from polytone.serve.metrics import Metrics
from polytone.serve.server import SHUTDOWN_SECONDS
from polytone.serve.services import Services
from polytone.serve.settings import PREFIX, Settings, read_settings
from polytone.serve.supervisor import EngineSupervisor

ROOT = Path(__file__).parents[2]
KUBERNETES, KUBERAY = ROOT / "deploy" / "kubernetes", ROOT / "deploy" / "kuberay"
SCHEMAS = Path(__file__).parents[1] / "support" / "schemas"
VERSIONS = ("1.27", "1.37")  # the oldest that knows every field, and the newest of which there are schemas
APPLIED = (
    "kubernetes/prepare",
    "kubernetes/cpu",
    "kubernetes/gpu",
    "kubernetes/monitoring",
    "kuberay",
    "kuberay/monitoring",
)
PAGE = ROOT / "docs" / "kubernetes.md"

Document = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


def kustomizations() -> dict[Path, Document]:
    """Folder -> its kustomization."""
    return {
        path.parent: read(path)[0] for folder in (KUBERNETES, KUBERAY) for path in folder.rglob("kustomization.yaml")
    }


def read(path: Path) -> list[Document]:
    return parse(path.read_text())


def parse(text: str) -> list[Document]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def files() -> dict[str, Path]:
    """The files that hold whole documents: what kustomizations name as resources."""
    paths = [folder / name for folder, one in kustomizations().items() for name in one["resources"]]
    return {str(path.relative_to(ROOT / "deploy")): path for path in paths if path.suffix == ".yaml"}


def documents() -> list[Document]:
    return [document for path in files().values() for document in read(path)]


def find(kind: str, name: str = "polytone") -> Document:
    [found] = [one for one in documents() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> dict[str, Document]:
    """Every pod template, by what makes pods of it."""
    ray = find("RayService")["spec"]["rayClusterConfig"]
    found = {one["kind"]: one["spec"]["template"] for one in documents() if one["kind"] in ("Deployment", "Job")}
    found |= {"ray-head": ray["headGroupSpec"]["template"]}
    return found | {f"ray-{one['groupName']}": one["template"] for one in ray["workerGroupSpecs"]}


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def every_container() -> Iterator[tuple[str, Document]]:
    for name, pod in pods().items():
        for container in containers(pod):
            yield f"{name}, {container['name']}", container


def environment(container: Document) -> dict[str, Any]:
    """Name -> value, or where it comes from."""
    found: dict[str, Any] = {}
    for source in container.get("envFrom", []):
        assert source == {"configMapRef": {"name": "polytone-settings"}}
        found |= settings_file()
    return found | {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}


def settings_file() -> dict[str, str]:
    [generator] = kustomizations()[KUBERNETES / "shared"]["configMapGenerator"]
    assert generator["name"] == "polytone-settings"
    lines = [line for name in generator["envs"] for line in (KUBERNETES / "shared" / name).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def settings() -> Settings:
    return Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in settings_file().items()})  # type: ignore[arg-type]


def ports(container: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container["ports"]}


# As the published schemas want them


def check(document: Document, version: str) -> None:
    """Raises what speaks against a document; of a RayService, against the pods in it too."""
    if (schema := SCHEMAS / f"{document['kind'].lower()}.json").exists():
        jsonschema.validate(document, json.loads(schema.read_text()), jsonschema.Draft202012Validator)
    else:
        kubernetes_validate.validate(document, version, strict=True)
    if document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            check(as_template(group["template"]), version)
        options = {"resources", "securityContext", "env", "envFrom", "volumeMounts"} & set(cluster["autoscalerOptions"])
        autoscaler = {"name": "autoscaler", **{name: cluster["autoscalerOptions"][name] for name in options}}
        check(as_template({"spec": {"containers": [autoscaler]}}), version)


def as_template(template: Document) -> Document:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", files())
def test_documents_are_what_the_schemas_want(file: str, version: str) -> None:
    for document in read(files()[file]):
        check(document, version)


@needs_kubectl
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", APPLIED)
def test_what_kustomize_makes_of_them_is_too(folder: str, version: str) -> None:
    made = kustomize(folder)
    for document in made:
        check(document, version)
    names = [(document["kind"], document["metadata"]["name"]) for document in made]
    assert len(names) == len(set(names))


def kustomize(folder: str, root: Path = ROOT / "deploy") -> list[Document]:
    command = ["kubectl", "kustomize", str(root / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


@pytest.mark.parametrize("kind", sorted({document["kind"] for document in documents()}))
def test_a_field_that_is_not_there_is_noticed(kind: str) -> None:
    document = next(one for one in documents() if one["kind"] == kind)
    errors = (kubernetes_validate.ValidationError, jsonschema.ValidationError)
    for place in (document, document["metadata"], document.get("spec", document)):
        with_more = deepcopy(document)
        here = with_more if place is document else with_more[next(key for key, it in document.items() if it is place)]
        here["replica"] = 2
        with pytest.raises(errors, match="replica"):
            check(with_more, VERSIONS[-1])


def test_a_wrong_field_in_a_pod_of_ray_is_noticed() -> None:
    document = deepcopy(find("RayService"))
    document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        check(document, VERSIONS[-1])


def test_kustomizations_name_what_is_there_and_nothing_else() -> None:
    for folder, one in kustomizations().items():
        named = [
            *one["resources"],
            *one.get("configurations", []),
            *(patch["path"] for patch in one.get("patches", [])),
        ]
        named += [name for generator in one.get("configMapGenerator", []) for name in generator["envs"]]
        for name in named:
            path = (folder / name).resolve()
            assert path.is_file() or path in kustomizations(), f"{folder}: {name}"
        assert {path.name for path in folder.iterdir() if path.is_file()} == {
            "kustomization.yaml",
            *(name for name in named if (folder / name).is_file()),
        }
    assert {str(folder.relative_to(ROOT / "deploy")) for folder in kustomizations()} == {*APPLIED, "kubernetes/shared"}


def test_patches_are_of_something() -> None:
    for folder, one in kustomizations().items():
        for patch in one.get("patches", []):
            [document] = read(folder / patch["path"])
            patched = find(document["kind"], document["metadata"]["name"])
            names = [container["name"] for container in document["spec"]["template"]["spec"]["containers"]]
            assert set(names) <= {container["name"] for container in containers(patched["spec"]["template"])}


@needs_kubectl
def test_settings_that_changed_roll_the_pods_over() -> None:
    """The ConfigMap is named by what is in it, and whatever reads it names it so: in a RayService too."""
    for folder in ("kubernetes/cpu", "kubernetes/gpu", "kuberay"):
        made = kustomize(folder)
        [name] = [document["metadata"]["name"] for document in made if document["kind"] == "ConfigMap"]
        named = re.findall(r"polytone-settings[\w-]*", yaml.safe_dump_all(made))
        assert re.fullmatch(r"polytone-settings-\w{10}", name)
        assert set(named) == {name}
        assert len(named) > 2


@needs_kubectl
def test_every_image_is_the_one_that_the_kustomization_names() -> None:
    for folder in ("kubernetes/prepare", "kubernetes/cpu", "kubernetes/gpu", "kuberay"):
        [image] = kustomizations()[ROOT / "deploy" / folder]["images"]
        assert image["name"] == "polytone"
        found = set(re.findall(r"image: (\S+)", yaml.safe_dump_all(kustomize(folder))))
        assert found == {f"{image['newName']}:{image['newTag']}"}


@needs_kubectl
def test_the_gpu_overlay_changes_what_it_should() -> None:
    [pod] = [one["spec"]["template"]["spec"] for one in kustomize("kubernetes/gpu") if one["kind"] == "Deployment"]
    [server] = pod["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["tolerations"]
    assert pod["nodeSelector"]
    assert set(environment_names(server)) == {"HOME", "POLYTONE_DATABASE_URL"}  # a GPU's engine has no threads to set
    assert server["readinessProbe"] == find("Deployment")["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]


def environment_names(container: Document) -> list[str]:
    return [one["name"] for one in container["env"]]


# Of one mind with what they run


def test_every_setting_is_one_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    for name, container in every_container():
        given = {key: value for key, value in environment(container).items() if key.startswith(PREFIX)}
        assert {key.removeprefix(PREFIX).lower() for key in given} <= set(Settings.model_fields), name
        if "envFrom" not in container:
            continue
        with monkeypatch.context() as patch:
            for key, value in given.items():
                patch.setenv(
                    key, value if isinstance(value, str) else {"resourceFieldRef": "4"}.get(next(iter(value)), "x")
                )
            read_settings()  # refuses names and values as the server would
        seen += 1
    assert seen == 5


def test_pods_get_no_settings_from_services() -> None:
    """A service called polytone would put POLYTONE_PORT=tcp://... there, and more names that a server refuses."""
    for name, pod in pods().items():
        assert pod["spec"]["enableServiceLinks"] is False, name


def test_the_database_is_the_same_for_all_and_its_url_a_secret() -> None:
    secret = {"secretKeyRef": {"name": "polytone-database", "key": "url"}}
    for name, container in every_container():
        if "envFrom" in container:
            assert environment(container)["POLYTONE_DATABASE_URL"] == secret, name
    assert "Secret" not in {document["kind"] for document in documents()}


def test_the_home_is_the_volume() -> None:
    claim = find("PersistentVolumeClaim", "polytone-data")
    home = str(settings().home)
    for name, pod in pods().items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert environment(container)["HOME"] in mounts, name  # for the caches of libraries
            if name == "ray-head":
                continue  # no replica runs there
            assert environment(container)["POLYTONE_HOME"] == home
            assert mounts[home]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}, name
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_job_prepares_the_base_that_is_served() -> None:
    arguments = pods()["Job"]["spec"]["containers"][0]["args"]
    assert arguments[:2] == ["base", "prepare"]
    assert arguments[arguments.index("--id") + 1] == settings().base


def test_probes_ask_routes_that_exist_and_do_not_kill_for_the_engine() -> None:
    router = health_routes(cast(Services, None), cast(EngineSupervisor, None))
    routes = {route.path for route in router.routes if isinstance(route, APIRoute)}
    [server] = find("Deployment")["spec"]["template"]["spec"]["containers"]
    probes = {kind: server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["path"] for probe in probes.values()} < routes
    assert probes["startup"]["path"] == probes["liveness"]["path"] == "/healthz"
    assert probes["readiness"]["path"] == "/readyz"
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert ports(server)["http"] == settings().port


def test_there_is_time_to_stop() -> None:
    spec = find("Deployment")["spec"]
    pod = spec["template"]["spec"]
    command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert int(seconds) >= settings().drain_seconds
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + SHUTDOWN_SECONDS
    assert spec["progressDeadlineSeconds"] >= settings().start_seconds
    assert find("RayService")["spec"]["rayClusterDeletionDelaySeconds"] >= settings().answer_seconds


def test_the_autoscaler_asks_for_metrics_that_exist() -> None:
    gauges = {metric.name for metric in Metrics().registry.collect() if metric.type == "gauge"}
    metrics = {
        one["pods"]["metric"]["name"]: one["pods"]["target"]
        for one in find("HorizontalPodAutoscaler")["spec"]["metrics"]
    }
    assert "polytone_queue_depth" in metrics
    assert set(metrics) <= gauges
    assert int(metrics["polytone_in_flight"]["averageValue"]) < settings().max_streams  # from there on they queue
    [values] = read(KUBERNETES / "prometheus" / "adapter-values.yaml")
    assert {rule["name"]["as"] for rule in values["rules"]["custom"]} == set(metrics)
    for rule in values["rules"]["custom"]:
        assert rule["seriesQuery"].partition("{")[0] == rule["name"]["as"]


def test_the_alert_rules_become_a_resource() -> None:
    """By the command that the head of the rule names."""
    head = KUBERNETES / "prometheus" / "rule.yaml"
    command = re.findall(r"#   (sed .+) \| kubectl apply -f -", head.read_text())[0]
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    [document] = yaml.safe_load_all(done.stdout)
    check(document, VERSIONS[-1])
    assert document["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    assert len(document["spec"]["groups"]) > 2


def test_monitors_leave_out_what_prometheus_leaves_out_and_have_the_same_key() -> None:
    [plain] = read(ROOT / "deploy" / "prometheus" / "prometheus.yaml")
    dropped = plain["scrape_configs"][0]["metric_relabel_configs"]
    service, pod = find("ServiceMonitor")["spec"]["endpoints"], find("PodMonitor")["spec"]["podMetricsEndpoints"]
    for endpoint in (*service, *pod):
        assert [
            {"source_labels": rule["sourceLabels"], "regex": rule["regex"], "action": rule["action"]}
            for rule in endpoint["metricRelabelings"]
        ] == dropped
        assert endpoint["path"] == "/metrics"
        assert endpoint["authorization"] == service[0]["authorization"]


# Of one mind with each other


def matches(selector: Document, labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


def selected(selector: Document) -> set[str]:
    """Whose pods a selector means."""
    return {name for name, pod in pods().items() if matches(selector, pod["metadata"]["labels"])}


def test_selectors_mean_the_pods_they_should() -> None:
    deployment, service = find("Deployment"), find("Service")
    server, replicas = {"Deployment"}, {"ray-replicas"}
    assert selected(deployment["spec"]["selector"]) == server
    assert selected({"matchLabels": service["spec"]["selector"]}) == server
    assert selected(find("PodDisruptionBudget")["spec"]["selector"]) == server
    assert selected(find("NetworkPolicy")["spec"]["podSelector"]) == server
    [spread] = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert selected(spread["labelSelector"]) == server
    assert matches(find("ServiceMonitor")["spec"]["selector"], service["metadata"]["labels"])
    assert find("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert selected(find("PodDisruptionBudget", "polytone-ray")["spec"]["selector"]) == replicas
    assert selected(find("PodMonitor")["spec"]["selector"]) == replicas
    assert selected(find("NetworkPolicy", "polytone-ray")["spec"]["podSelector"]) == {"ray-head", *replicas}
    assert selected(find("NetworkPolicy", "polytone-ray-head")["spec"]["podSelector"]) == {"ray-head"}


def test_ports_are_the_same_everywhere() -> None:
    [server] = find("Deployment")["spec"]["template"]["spec"]["containers"]
    [port] = find("Service")["spec"]["ports"]
    assert port["port"] == ports(server)[port["targetPort"]]
    assert [endpoint["port"] for endpoint in find("ServiceMonitor")["spec"]["endpoints"]] == [port["name"]]
    assert allowed(find("NetworkPolicy")) == [{ports(server)["http"]}]
    [worker] = pods()["ray-replicas"]["spec"]["containers"]
    assert [endpoint["port"] for endpoint in find("PodMonitor")["spec"]["podMetricsEndpoints"]] == ["replica"]
    cluster, clients, operator = allowed(find("NetworkPolicy", "polytone-ray"))
    assert cluster == set()  # every one
    assert clients == {ports(worker)["serve"], ports(worker)["replica"]}
    head = pods()["ray-head"]["spec"]["containers"][0]
    assert operator == {ports(head)["dashboard"], ports(head)["serve"], head["livenessProbe"]["httpGet"]["port"]}


def allowed(policy: Document) -> list[set[int]]:
    """The ports of each rule for what comes in; every rule says from whom."""
    assert {"Egress"} <= set(policy["spec"]["policyTypes"])
    assert all(rule["from"] for rule in policy["spec"]["ingress"])
    return [{port["port"] for port in rule.get("ports", [])} for rule in policy["spec"]["ingress"]]


def test_nothing_but_names_and_the_database_is_asked() -> None:
    for name in ("polytone", "polytone-ray"):
        rules = find("NetworkPolicy", name)["spec"]["egress"]
        outside = [rule for rule in rules if "ports" in rule]
        assert [{port["port"] for port in rule["ports"]} for rule in outside] == [{53}, {5432}]
        assert [set(peer) for rule in rules if rule not in outside for peer in rule["to"]] in ([], [{"podSelector"}])


def test_every_pod_is_locked() -> None:
    user = int(re.findall(r"^USER (\d+):\1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0])
    for name, pod in pods().items():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == user, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        if name != "ray-head":  # its autoscaler asks Kubernetes for pods
            assert pod["spec"]["serviceAccountName"] == find("ServiceAccount")["metadata"]["name"], name
            assert pod["spec"]["automountServiceAccountToken"] is False, name
    autoscaler = find("RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    for name, container in (*every_container(), ("autoscaler", autoscaler)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
    for name, container in every_container():
        assert container["resources"]["requests"]["memory"], name
        assert container["resources"]["limits"]["memory"], name


def test_waiting_is_the_same_on_ray() -> None:
    [plain] = pods()["Deployment"]["spec"]["initContainers"]
    [ray] = pods()["ray-replicas"]["spec"]["initContainers"]
    assert {key: plain[key] for key in ("command", "args")} == {key: ray[key] for key in ("command", "args")}


# On Ray


def serve_config() -> Document:
    return cast(Document, yaml.safe_load(find("RayService")["spec"]["serveConfigV2"]))


def test_ray_finds_a_worker_for_every_replica() -> None:
    cluster = find("RayService")["spec"]["rayClusterConfig"]
    [application] = serve_config()["applications"]
    arguments = application["args"]
    [group] = cluster["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    assert (arguments["min_replicas"], arguments["max_replicas"]) == (group["minReplicas"], group["maxReplicas"])
    assert arguments["gpus"] == worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert arguments["cpus"] <= int(worker["resources"]["limits"]["cpu"]) < 2 * arguments["cpus"]  # one to a pod
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert arguments["port"] == ports(worker)["replica"]
    assert arguments["host"] == serve_config()["http_options"]["host"] == str(settings().host)
    assert serve_config()["http_options"]["port"] == ports(worker)["serve"]
    pins = [line.partition(" ")[0] for line in (ROOT / "requirements" / "cluster.txt").read_text().splitlines()]
    assert f"ray=={cluster['rayVersion']}" in pins
    assert find("PodDisruptionBudget", "polytone-ray")["spec"]["minAvailable"] < group["minReplicas"]


def test_ray_has_a_lock() -> None:
    """Ray's dashboard runs what it is given: only with a token, and for nobody but the operator."""
    assert find("RayService")["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    dashboard = ports(pods()["ray-head"]["spec"]["containers"][0])["dashboard"]
    rules = find("NetworkPolicy", "polytone-ray")["spec"]["ingress"]
    [rule] = [rule for rule in rules if dashboard in {port["port"] for port in rule.get("ports", [])}]
    [peer] = rule["from"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert peer["namespaceSelector"]["matchLabels"]


def test_rays_own_names_are_left_alone() -> None:
    """To KubeRay a port called metrics is where Ray itself exports, and probes of its own making need wget."""
    for name in ("ray-head", "ray-replicas"):
        container = pods()[name]["spec"]["containers"][0]
        assert "metrics" not in ports(container)
        assert {"httpGet"} < {*container["livenessProbe"], *container["readinessProbe"]}


def test_what_ray_imports_is_there() -> None:
    [application] = serve_config()["applications"]
    environments = [environment(pods()[name]["spec"]["containers"][0]) for name in ("ray-head", "ray-replicas")]
    for one in environments:
        assert one["RAY_SERVE_SESSION_ID_HEADER_KEY"] == "x-conversation-id"
        assert one["RAY_USAGE_STATS_ENABLED"] == "0"
        assert f"WORKDIR {one['PYTHONPATH']}" in (ROOT / "Dockerfile").read_text()
        for path in (application["import_path"], one["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]):
            module, _, function = path.partition(":")
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, path


def test_ray_takes_the_application() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="no Ray: make .venv/.cluster", exc_type=ImportError)
    from deploy.ray_app import ClusterArgs

    config = schema.ServeDeploySchema(**serve_config())
    arguments = ClusterArgs(**config.applications[0].args)
    assert arguments.max_replicas == 4
    assert config.http_options.port == settings().port


# The page about them


def test_the_page_names_what_is_there() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"deploy/ku[\w./-]*\w", text))
    for path in named:
        assert (ROOT / path).exists(), path
    for folder in (*APPLIED, "kubernetes/shared", "kubernetes/prometheus"):
        assert any(path.startswith(f"deploy/{folder}") for path in named), folder
    for secret in ("polytone-database", "polytone-metrics", "polytone-hub"):
        assert f"create secret generic {secret} " in text


def examples(kind: str) -> list[Document]:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = [document for block in blocks for document in parse(block)]
    return [one for one in found if isinstance(one, dict) and one["kind"] == kind]


def test_the_ingress_on_the_page_leads_to_the_service() -> None:
    [ingress] = examples("Ingress")
    check(ingress, VERSIONS[-1])
    [rule] = ingress["spec"]["rules"]
    service = find("Service")
    [port] = service["spec"]["ports"]
    backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
    assert backends == [{"name": service["metadata"]["name"], "port": {"name": port["name"]}}]


@needs_kubectl
def test_the_overlays_on_the_page_do_what_they_say(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    one_pod, store = (made_of(overlay, tmp_path) for overlay in examples("Kustomization"))
    assert one_pod["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert one_pod["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 1
    assert one_pod["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert store["ConfigMap"]["data"] == {**settings_file(), "POLYTONE_ADAPTER_STORE": "s3://polytone/adapters"}
    pod = store["Deployment"]["spec"]["template"]
    assert {tuple(sorted(volume)) for volume in pod["spec"]["volumes"]} == {
        ("name", "persistentVolumeClaim"),
        ("emptyDir", "name"),
    }
    for container in containers(pod):
        paths = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert set(paths) == {"/data", "/data/bases", "/tmp"}  # noqa: S108
        assert paths["/data/bases"]["readOnly"]


def made_of(overlay: Document, root: Path) -> dict[str, Document]:
    """What an overlay beside `cpu` makes, by kind."""
    folder = root / "kubernetes" / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = kustomize("kubernetes/mine", root)
    for document in made:
        check(document, VERSIONS[-1])
    return {document["kind"]: document for document in made}

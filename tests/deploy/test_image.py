"""The image and its compose file say what the code takes and name what is there; `tools/image.py` runs the image."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from sqlalchemy import make_url

from polytone.serve.settings import FILE_VARIABLE, PREFIX, Settings, read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with continued lines joined: (name, the rest)."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined if line)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """A stage's name -> its instructions, from FROM on."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            found[rest.rpartition(" AS ")[2]] = []
        if found:
            found[list(found)[-1]].append((name, rest))
    return found


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def services() -> dict[str, dict[str, Any]]:
    return {name: dict(service) for name, service in compose()["services"].items()}


def deploy_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def test_every_setting_that_is_set_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {FILE_VARIABLE}
    image = set(re.findall(r"\b(POLYTONE_[A-Z_]+)=", "\n".join(rest for name, rest in instructions() if name == "ENV")))
    assert {"POLYTONE_HOME", "POLYTONE_HOST"} <= image <= known
    for name in ("polytone", "polytone-gpu"):
        assert FILE_VARIABLE in services()[name]["environment"]
        assert set(services()[name]["environment"]) <= known


def test_both_images_serve_as_a_user_without_rights_and_are_asked_for_their_health() -> None:
    parents = {name: body[0][1].partition(" ")[0] for name, body in stages().items()}
    for target in ("cpu", "gpu"):
        own = dict(stages()[target])
        assert own["USER"] == "10001:10001"
        assert own["VOLUME"] == '["/data"]'
        inherited = dict(stages()[parents[target]])
        assert "/healthz" in inherited["HEALTHCHECK"]
        assert (inherited["ENTRYPOINT"], inherited["CMD"]) == ('["polytone"]', '["serve"]')
    assert list(stages())[-1] == "cpu"


def test_what_the_image_copies_is_there_and_is_not_ignored() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    sources = {source for source in copied if not source.startswith(("--", "/", "build/"))}
    assert {"polytone", "examples", "requirements/cpu.txt", "requirements/gpu.txt", "LICENSE"} <= sources
    for source in sources:
        assert list(ROOT.glob(source)), source
        assert any(source == one or fnmatch(source, f"{one}/*") for one in let_in), source


def test_every_image_is_pinned_and_ours_carry_this_version() -> None:
    images = {name: service["image"] for name, service in services().items()}
    assert images["polytone"] == f"polytone:{VERSION}"
    assert images["polytone-gpu"] == f"polytone:{VERSION}-gpu"
    (base,) = [rest.partition("=")[2] for name, rest in instructions() if (name, rest[:10]) == ("ARG", "BASE_IMAGE")]
    for image in (*images.values(), base):
        assert re.search(r":v?\d+\.\d+[\w.-]*$", image), image
    for name in ("polytone", "polytone-gpu"):
        assert services()[name]["build"]["target"] in stages()


@pytest.mark.parametrize("name", list(services()))
def test_every_service_is_confined_and_served_to_this_machine_only(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_mount_secret_and_network_exists() -> None:
    whole = compose()
    bound = 0
    for service in services().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert mount.endswith(":ro")
                bound += 1
            else:
                assert source in whole["volumes"]
        assert set(service.get("secrets", [])) <= set(whole["secrets"])
        assert set(service["networks"]) <= set(whole["networks"])
    assert bound == 4


def test_services_find_each_other_by_their_names() -> None:
    (source,) = deploy_file("grafana/provisioning/datasources/polytone.yaml")["datasources"]
    assert meet("grafana", str(urlsplit(source["url"]).hostname))
    scraped = deploy_file("prometheus/prometheus.yaml")["scrape_configs"]
    (target,) = [target for job in scraped for config in job["static_configs"] for target in config["targets"]]
    name, port = target.split(":")
    assert meet("prometheus", name)
    assert services()["polytone-gpu"]["networks"]["front"]["aliases"] == [name]
    for service in ("polytone", "polytone-gpu"):
        assert services()[service]["ports"] == [f"127.0.0.1:{port}:{Settings.model_fields['port'].default}"]


def meet(one: str, other: str) -> bool:
    return bool(set(services()[one]["networks"]) & set(services()[other]["networks"]))


def test_what_prometheus_and_grafana_read_is_where_it_is_mounted() -> None:
    prometheus, grafana = services()["prometheus"], services()["grafana"]
    (key,) = {
        job["authorization"]["credentials_file"] for job in deploy_file("prometheus/prometheus.yaml")["scrape_configs"]
    }
    assert key in {f"/run/secrets/{name}" for name in prometheus["secrets"]}
    inside = {mount.split(":")[1] for mount in prometheus["volumes"]}
    (config,) = [word.partition("=")[2] for word in prometheus["command"] if word.startswith("--config.file=")]
    rules = deploy_file("prometheus/prometheus.yaml")["rule_files"]
    assert {config, *(str(Path(config).parent / name) for name in rules)} <= inside
    (provider,) = deploy_file("grafana/provisioning/dashboards/polytone.yaml")["providers"]
    assert provider["options"]["path"] in {mount.split(":")[1] for mount in grafana["volumes"]}


def test_the_first_days_secrets_are_those_that_are_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the block of docs/container.md that writes them, and reads the settings as the server does."""
    (block,) = [
        one
        for one in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/container.md").read_text(), re.DOTALL)
        if "settings.yaml" in one
    ]
    subprocess.run(["bash", "-euc", block], cwd=tmp_path, check=True)
    folder = tmp_path / "deploy"
    assert {(folder / secret["file"]).resolve() for secret in compose()["secrets"].values()} == {
        path.resolve() for path in (folder / "secrets").iterdir()
    }
    monkeypatch.setenv(FILE_VARIABLE, str(folder / compose()["secrets"]["polytone_settings"]["file"]))
    url = make_url(read_settings().database())
    database = services()["postgres"]["environment"]
    assert meet("polytone", str(url.host))
    assert (url.username, url.database) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
    password = (folder / compose()["secrets"]["postgres_password"]["file"]).read_text().strip()
    assert len(password) >= 32
    assert url.password == password
    assert url.get_driver_name() == "psycopg"

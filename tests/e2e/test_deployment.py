"""The files of deploy/: taken by the programs they are for, or by their checkers, and what they say held to the server.

What runs in the image is rehearsed without an engine for it: the files that the Dockerfile takes, installed, as its
user, on a root that is read-only.
"""

import io
import os
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from core import settings as known_settings
from core.settings import Settings
from tests.process import ROOT, free_port, server_environment, wait_until

DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
MANIFESTS = DEPLOY / "kubernetes" / "tallywire.yaml"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
IMAGE_USER = 10001

MOST_EXPOSURE = 20
"""Of 100, as `systemd-analyze security` counts what a service could do."""

AFTER_THE_DRAIN_SECONDS = 15
"""What docs/operations.md asks a supervisor to wait beyond `shutdown_delay_seconds` and `drain_seconds`."""


def need(program: str) -> str:
    """Where it is; skips without it."""
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*command: str) -> None:
    """Run, and show what it says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


# ---- systemd


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The shipped units, with a program that is there."""
    copies = []
    for unit in UNITS.iterdir():
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/tallywire/.venv/bin/tallywire", sys.executable))
        copies.append(str(copy))
    return copies


def test_systemd_takes_the_units(units: list[str]) -> None:
    run(need("systemd-analyze"), "verify", *units)


def test_the_service_may_do_little_beyond_its_work(units: list[str]) -> None:
    (service,) = (unit for unit in units if unit.endswith(".service"))
    run(need("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", service)


def test_systemd_gives_the_service_the_time_that_a_shutdown_may_take() -> None:
    unit = _options(UNITS / "tallywire.service")
    defaults = Settings()
    least = defaults.shutdown_delay_seconds + defaults.drain_seconds + AFTER_THE_DRAIN_SECONDS
    assert int(unit["TimeoutStopSec"]) >= least
    assert int(unit["LimitNOFILE"]) > defaults.max_connections


def test_the_server_serves_on_sockets_that_systemd_opens(tmp_path: Path) -> None:
    public, internal = free_port(), free_port()
    names = [_options(UNITS / f"tallywire-{name}.socket")["FileDescriptorName"] for name in ("public", "internal")]
    listens = [f"--listen=127.0.0.1:{public}", f"--listen=127.0.0.1:{internal}", f"--fdname={':'.join(names)}"]
    command = [sys.executable, str(ROOT / "server.py"), "serve", f"--journal={tmp_path / 'journal.db'}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([need("systemd-socket-activate"), *listens, *command], stderr=log, cwd=tmp_path)
    try:
        # The first connection starts it, and is served by it.
        wait_until(lambda: "Listening on" in (tmp_path / "log").read_text(), "systemd listens")
        assert b"ok" in _body(f"http://127.0.0.1:{internal}/healthz/ready")
        assert b"ok" in _body(f"http://127.0.0.1:{public}/healthz/ready")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


# ---- containers


def test_the_dockerfile_passes_its_linter() -> None:
    run(need("hadolint"), str(DOCKERFILE))


def test_nothing_is_copied_into_the_image_that_is_kept_out_of_its_context() -> None:
    lets_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in _copied():
        assert any(source == each or source.startswith(f"{each}/") for each in lets_in), source
        assert (ROOT / source).exists()


def test_what_compose_sets_is_known_and_its_secrets_are_named() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    service = compose["services"]["tallywire"]
    variables = {field.variable for field in known_settings.fields()}
    assert set(service["environment"]) <= variables
    assert set(service["secrets"]) == set(compose["secrets"])
    told = " ".join(service["environment"].values())
    assert all(f"/run/secrets/{name}" in told for name in compose["secrets"])
    assert service["stop_grace_period"] == "40s"
    assert service["read_only"] is True
    _load(Path(), {name: str(value) for name, value in service["environment"].items()})


def test_the_image_serves_as_an_ordinary_user_on_a_root_that_is_read_only(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make a root read-only and become another user")
    need("unshare")
    need("setpriv")
    image, state, log = tmp_path / "image", tmp_path / "state", tmp_path / "log"
    _install(image, tmp_path / "context")
    state.mkdir()
    os.chown(state, IMAGE_USER, IMAGE_USER)
    internal = free_port()
    script = f"""
        mount --bind {state} {state} && mount -o remount,bind,ro / && ! touch {tmp_path}/may-not-be 2>/dev/null &&
        cd {state} && exec setpriv --reuid {IMAGE_USER} --regid {IMAGE_USER} --clear-groups --no-new-privs \
            {sys.executable} -m server serve --public-listen=127.0.0.1:0 --internal-listen=127.0.0.1:{internal}
    """
    environment = server_environment() | _image_variables() | {"STATE_DIRECTORY": str(state), "PYTHONPATH": str(image)}
    _let_others_read(tmp_path)
    with log.open("w") as stderr:
        process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env=environment, stderr=stderr)
    try:
        wait_until(lambda: '"Ready"' in log.read_text() or process.poll() is not None, "the image is ready")
        assert process.poll() is None, log.read_text()
        assert b"ok" in _body(f"http://127.0.0.1:{internal}/healthz/ready?for=emit")
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
        assert (state / "tallywire.db").exists()
    finally:
        process.kill()
        process.wait()


# ---- Kubernetes


@pytest.fixture
def manifests() -> dict[str, Any]:
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(MANIFESTS.read_text())}


def test_the_manifests_are_what_kubernetes_takes(manifests: dict[str, Any]) -> None:
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_one_pod_at_a_time_has_the_journal_and_may_take_its_time_to_leave(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    deployment = manifests["Deployment/tallywire"]["spec"]
    pod = deployment["template"]["spec"]
    text = manifests["ConfigMap/tallywire"]["data"]["tallywire.toml"]
    (tmp_path / "tallywire.toml").write_text(text)
    settings = _load(tmp_path / "tallywire.toml", {})

    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    assert manifests["PersistentVolumeClaim/tallywire"]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    least = settings.shutdown_delay_seconds + settings.drain_seconds + AFTER_THE_DRAIN_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= least
    assert settings.shutdown_delay_seconds > 0


def test_what_the_manifests_ask_and_mount_is_there(manifests: dict[str, Any]) -> None:
    (container,) = manifests["Deployment/tallywire"]["spec"]["template"]["spec"]["containers"]
    volumes = {each["name"] for each in manifests["Deployment/tallywire"]["spec"]["template"]["spec"]["volumes"]}
    toml = tomllib.load(io.BytesIO(manifests["ConfigMap/tallywire"]["data"]["tallywire.toml"].encode()))

    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for file in (toml["internal_keys"], toml["jwt_keys"][0].partition("=")[2]):
        assert any(file.startswith(place) for place in mounted)
    ports = {str(port["containerPort"]) for port in container["ports"]}
    assert ports == {toml[name].rpartition(":")[2] for name in ("public_listen", "internal_listen")}


# ---- helpers


def _options(unit: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in unit.read_text().splitlines() if not line.startswith("#"))
    return {name: value for name, equals, value in lines if equals}


def _body(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        body: bytes = answer.read()
        return body


def _load(file: Path, environment: dict[str, str]) -> Settings:
    return known_settings.load(known_settings.read_file(file if file.name else None), environment, {})


def _copied() -> list[str]:
    """What the Dockerfile takes out of the repository."""
    copies = [line.split()[1:-1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ")]
    return [source for copy in copies for source in copy if not source.startswith("--") and not source.startswith("/")]


def _image_variables() -> dict[str, str]:
    """What its ENV says."""
    _, _, said = DOCKERFILE.read_text().replace("\\\n", "").partition("\nENV ")
    return dict(pair.split("=", 1) for pair in said.partition("\n")[0].split())


def _install(image: Path, context: Path) -> None:
    """As the Dockerfile does, without what it depends on: that is installed here."""
    context.mkdir()
    for source in _copied():
        target = context / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    run(*pip, "--no-deps", "--no-build-isolation", "--target", str(image), str(context))


def _let_others_read(directory: Path) -> None:
    """The ordinary user comes through pytest's own directories, which only root may read otherwise."""
    for each in (directory, *directory.parents):
        if each == Path("/tmp"):
            break
        each.chmod(each.stat().st_mode | 0o055)

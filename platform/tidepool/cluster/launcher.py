"""A strict look at a cluster.yaml before `ray up`: offline, without cloud libraries, each problem with its line.

Ray's own schema comes first. It lets through what costs money or opens a door: a nightly Ray where setup_commands are
missing, an old image where ImageId is, port 22 open to the world in every security group that Ray makes itself, and a
cluster without a token.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidepool.errors import ClusterError

Where = tuple[Hashable, ...]
"""Keys and indices that lead to a place in the file."""

ROOT: Where = ()

Finding = tuple[Where, str, object, str | None, str]
"""Where, and the parts of the message: what, seen, allowed, remedy."""

REQUIRED = ("cluster_name", "max_workers", "available_node_types", "head_node_type")
"""Keys that Ray would fill in with machines of its own choice."""

PROVIDER_KEYS = {"aws_credentials", "key_pair", "use_external_head_ip"}
"""Keys that Ray's AWS provider reads and its schema doesn't name."""


@dataclass(frozen=True)
class Problem:
    """Something in the file that must not go to the cloud."""

    line: int
    what: str
    seen: object
    allowed: str | None
    remedy: str


def validate(path: Path) -> None:
    """Check a cluster.yaml offline.

    Raises:
        ClusterError: it has a problem; names the file, the line, and how many more there are.
    """
    found = problems(path)
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ClusterError(
            f"{path}:{first.line}: {first.what}{more}", seen=first.seen, allowed=first.allowed, remedy=first.remedy
        )


def problems(path: Path) -> list[Problem]:
    """Everything that is wrong with a cluster.yaml, by line.

    Raises:
        ClusterError: there is no such file, or it isn't a YAML mapping.
    """
    config, lines, repeated = _read(path)

    def problem(where: Where, what: str, seen: object, allowed: str | None, remedy: str) -> Problem:
        while where not in lines:
            where = where[:-1]  # a missing key is reported where it should stand
        return Problem(lines[where], what, seen, allowed, remedy)

    found = [problem(where, f"{where[-1]} stands twice", where[-1], "once", "remove one") for where in repeated]
    findings = list(_ours(config))
    try:
        findings = [*_schema(config), *findings]
    except Exception as error:  # Ray has no exception of its own, and stops at the first fault
        if not findings:
            seen = f"{type(error).__name__}: {error}"
            findings = [(ROOT, "Ray can't make sense of the file", seen, None, "see docs/cluster.md")]
    found += [problem(*finding) for finding in findings]
    return sorted(found, key=lambda each: each.line)


def placeholders(path: Path) -> list[tuple[int, str]]:
    """Line number and text of what is to be filled in before `ray up`."""
    lines = enumerate(path.read_text().splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if "REPLACE" in line.partition("#")[0]]


def _schema(config: dict[str, Any]) -> Iterator[Finding]:
    """What Ray itself refuses, and unknown keys that it would pass over."""
    import jsonschema  # type: ignore[import-untyped]
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config

    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    provider = schema["properties"]["provider"]
    provider["additionalProperties"] = False
    provider["properties"].update({key: {} for key in PROVIDER_KEYS})
    prepared = prepare_config(copy.deepcopy(config))  # fills in Ray's defaults, as `ray up` does
    for fault in jsonschema.Draft7Validator(schema).iter_errors(prepared):
        where = tuple(fault.absolute_path)
        if fault.validator == "additionalProperties":
            allowed = sorted(fault.schema["properties"])
            for key in set(fault.instance) - set(allowed):
                yield (*where, key), f"unknown key {key}", key, ", ".join(allowed), "correct or remove it"
        else:
            seen = None if isinstance(fault.instance, dict) else fault.instance
            yield where, f"{'.'.join(map(str, where))} is not valid", seen, fault.message, "correct it"


def _ours(config: dict[str, Any]) -> Iterator[Finding]:
    """What Ray lets through."""
    provider = config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    rules = [_setup, _start]
    if kind != "local":  # machines that stand there already have no node types
        rules += [_required, _sizes, _head, _image]
    if kind == "aws":
        rules += [_machines, _network]
    for rule in rules:
        try:
            yield from rule(config)
        except (AttributeError, TypeError, KeyError):
            continue  # of the wrong shape, or missing: said already


def _required(config: dict[str, Any]) -> Iterator[Finding]:
    for key in REQUIRED:
        if key not in config:
            yield (key,), f"{key} is missing", None, ", ".join(REQUIRED), "write it: Ray's default is not what you want"


def _sizes(config: dict[str, Any]) -> Iterator[Finding]:
    least = sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values())
    if least > config["max_workers"]:
        yield (
            ("max_workers",),
            "the node types' min_workers add up to more than max_workers",
            f"{least} > {config['max_workers']}",
            "a sum of at most max_workers",
            "raise max_workers or lower a min_workers",
        )
    for name, kind in config["available_node_types"].items():
        if kind.get("min_workers", 0) > kind.get("max_workers", config["max_workers"]):
            where = ("available_node_types", name, "min_workers")
            yield where, f"{name} has min_workers > max_workers", kind["min_workers"], "at most max_workers", "lower it"


def _head(config: dict[str, Any]) -> Iterator[Finding]:
    name = config["head_node_type"]
    if name not in config["available_node_types"]:
        types = ", ".join(config["available_node_types"])
        yield ("head_node_type",), "there is no such node type", name, types, "name one of available_node_types"
        return
    cpus = config["available_node_types"][name].get("resources", {}).get("CPU")
    if cpus != 0:
        yield (
            ("available_node_types", name, "resources", "CPU"),
            "the head would run work, and take the cluster with it when it runs out of memory",
            "all its CPUs" if cpus is None else f"CPU: {cpus}",
            "CPU: 0",
            f"give {name} resources: {{CPU: 0}}",
        )


def _setup(config: dict[str, Any]) -> Iterator[Finding]:
    for key in ("setup_commands", "head_setup_commands"):
        if key not in config:
            remedy = f"write {key}: [] if the image has all that is needed"
            yield (key,), f"{key} is missing: Ray's default installs something of its own", None, "a list", remedy
        for index, command in enumerate(config.get(key) or []):
            if "ray-wheels" in command:
                yield (key, index), "a nightly Ray would be installed", command, "the image's Ray", "remove it"


def _start(config: dict[str, Any]) -> Iterator[Finding]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(key, [])
        starts = [index for index, command in enumerate(commands) if "ray start" in command]
        if not starts:
            yield (key,), f"{key} doesn't start Ray with a token", None, "a `ray start`", "see docs/cluster.md"
        for index in starts:
            if not re.search(r"RAY_AUTH_MODE=token\b", commands[index]):
                yield (
                    (key, index),
                    "Ray would run without token authentication",
                    commands[index],
                    "export RAY_AUTH_MODE=token; ray start ...",
                    "put the export into this command",
                )
            if re.search(r"--dashboard-host[= ](?!127\.0\.0\.1|localhost)", commands[index]):
                remedy = "use --dashboard-host=127.0.0.1, and `ray dashboard cluster.yaml` for a tunnel"
                yield (key, index), "the dashboard would listen to the network", commands[index], "127.0.0.1", remedy


def _image(config: dict[str, Any]) -> Iterator[Finding]:
    docker = config.get("docker", {})
    images: dict[Where, str] = {("docker", key): docker[key] for key in docker if key.endswith("image")}
    for name, kind in config["available_node_types"].items():
        if "worker_image" in kind.get("docker", {}):
            images["available_node_types", name, "docker", "worker_image"] = kind["docker"]["worker_image"]
    if "image" not in docker and not config.get("setup_commands"):
        remedy = "build one from deployments/Dockerfile"
        yield ("docker", "image"), "nothing brings tidepool to the machines", None, "docker.image", remedy
    for where, image in images.items():
        _, _, tag = image.rpartition("/")[2].partition(":")
        if "@sha256:" not in image and tag in ("", "latest", "nightly"):
            remedy = "name the version that the submitting machine has"
            yield where, "an image without a version changes under your feet", image, "name:version", remedy


def _machines(config: dict[str, Any]) -> Iterator[Finding]:
    for name, kind in config["available_node_types"].items():
        where = ("available_node_types", name, "node_config")
        node = kind["node_config"]
        if not str(node.get("ImageId", "")).startswith("ami-"):
            seen = node.get("ImageId")
            remedy = "name an AMI: Ray's default is one of Ubuntu 18.04"
            yield (*where, "ImageId"), f"{name} has no ImageId", seen, "ami-...", remedy
        groups = [*node.get("SecurityGroupIds", [])]
        for interface in node.get("NetworkInterfaces", []):
            groups += interface.get("Groups", [])
        if not groups:
            yield (
                (*where, "SecurityGroupIds"),
                f"{name} has no security group: Ray makes one and opens 22/tcp to the world, security_group or not",
                None,
                "SecurityGroupIds: [sg-...]",
                "make a group once, see docs/cluster.md",
            )


def _network(config: dict[str, Any]) -> Iterator[Finding]:
    rules = config["provider"].get("security_group", {}).get("IpPermissions", [])
    for index, rule in enumerate(rules):
        for ranges, key in (("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")):
            for place, entry in enumerate(rule.get(ranges, [])):
                if str(entry.get(key)).endswith("/0"):
                    where = ("provider", "security_group", "IpPermissions", index, ranges, place, key)
                    seen = f"{rule.get('FromPort', 'all ports')} from {entry[key]}"
                    yield where, "a port would be open to the world", seen, "your own addresses", "narrow the range"


def _read(path: Path) -> tuple[dict[str, Any], dict[Where, int], list[Where]]:
    """The file's content, the line of every place in it, and keys that stand twice."""
    try:
        text = path.read_text()
        config, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        seen, remedy = f"{path}: {error.strerror}", "give its path: tidepool cluster validate FILE"
        raise ClusterError("the cluster file can't be read", seen=seen, remedy=remedy) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ClusterError(f"{path}:{line} is not YAML", seen=error.problem, remedy="correct it") from None
    if not isinstance(node, yaml.MappingNode):
        raise ClusterError(f"{path} is not a mapping", allowed="keys and values", remedy="start from cluster.yaml")
    lines: dict[Where, int] = {}
    repeated: list[Where] = []
    _mark(node, ROOT, lines, repeated)
    return config, lines, repeated


def _mark(node: yaml.Node, where: Where, lines: dict[Where, int], repeated: list[Where]) -> None:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*where, key.value)
            if place in lines:
                repeated.append(place)
            lines[place] = key.start_mark.line + 1
            _mark(value, place, lines, repeated)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _mark(item, (*where, index), lines, repeated)

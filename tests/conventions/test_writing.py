"""How code and tests are written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

LATER = re.compile("|".join((r"\bTO" r"DO\b", r"\bFIX" r"ME\b", r"\bX" r"XX\b")))
WRITTEN = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".css", ".proto", ".sh", ".tpl"}
PORT_IN_TEXT = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\]):\d\d+")
WAITERS = ("wait", "slow")
"""Functions whose names begin so may sleep: those that poll with a deadline, and stand-ins that are slow on purpose."""

ADVISERS = tuple(
    f"platform/tidepool/{part}"
    for part in ("cli/", "cluster/", "registry/", "document.py", "settings.py", "spec.py", "storage.py")
)
ADVISED = {
    "SpecError",
    "StorageError",
    "RegistryError",
    "ModelNotFound",
    "NothingToRollBack",
    "ClusterError",
    "NoCluster",
    "PortInUse",
}
"""What a person at a terminal meets; errors of requests have the server's own words."""


def test_nothing_is_left_for_later(root: Path) -> None:
    folders = ("platform", "jobs", "deployments", "tests", "benchmarks", "docs", ".ci")
    files = [file for folder in folders for file in (root / folder).rglob("*") if file.is_file()]
    files += [file for file in root.iterdir() if file.is_file()]
    wrong = [
        f"{file.relative_to(root)}:{number}: {line.strip()}"
        for file in files
        if file.suffix in WRITTEN or file.name in ("Makefile", "Dockerfile", "run")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if LATER.search(line)
    ]
    assert not wrong, "do it now, or say in docs what is missing:\n" + "\n".join(wrong)


def test_tests_wait_for_conditions_and_never_just_sleep(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{node.lineno}: in {' > '.join(scopes) or 'the module'}"
        for path, tree in modules.items()
        if path.startswith("tests")
        for scopes, node in scoped(tree)
        if is_sleep(node) and not any(scope.lower().lstrip("_").startswith(WAITERS) for scope in scopes)
    ]
    hint = f"sleep only in a function called {' or '.join(f'{name}...' for name in WAITERS)}, with a deadline:\n"
    assert not wrong, hint + "\n".join(wrong)


def test_tests_name_no_port(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{line}: {what}"
        for path, tree in modules.items()
        if path.startswith("tests")
        for line, what in fixed_ports(tree)
    ]
    assert not wrong, "another process may have it: bind port 0, and ask which it became:\n" + "\n".join(wrong)


def test_no_failure_is_swallowed(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if swallows(node)
    ]
    assert not wrong, "name the exceptions that are meant, and say why they may pass:\n" + "\n".join(wrong)


def test_errors_of_the_command_line_say_what_is_allowed_or_what_to_do(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in modules.items()
        if path.startswith(ADVISERS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ADVISED
        if not {"allowed", "remedy"} & {keyword.arg for keyword in node.exc.keywords}
    ]
    assert not wrong, "give allowed=... or remedy=...:\n" + "\n".join(wrong)


def scoped(node: ast.AST, scopes: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    """Every node below `node`, with the names of the functions and classes around it."""
    for child in ast.iter_child_nodes(node):
        yield scopes, child
        inside = (child.name,) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ()
        yield from scoped(child, scopes + inside)


def is_sleep(node: ast.AST) -> bool:
    """Whether a node is a call of `time.sleep`, or of `asyncio.sleep` for longer than nothing."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    yields = bool(node.args) and ast.unparse(node.args[0]) == "0"
    return called in ("time.sleep", "sleep") or (called == "asyncio.sleep" and not yields)


def fixed_ports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, code) of each number given to something called port, and of each address with a port in a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and PORT_IN_TEXT.search(node.value):
            yield node.lineno, repr(PORT_IN_TEXT.search(node.value)[0])  # type: ignore[index]
        elif isinstance(node, ast.keyword) and _is_port(node.arg, node.value):
            yield node.value.lineno, ast.unparse(node)
        elif isinstance(node, ast.arguments):
            defaults = zip(reversed([*node.posonlyargs, *node.args]), reversed(node.defaults), strict=False)
            for argument, value in [*defaults, *zip(node.kwonlyargs, node.kw_defaults, strict=True)]:
                if value is not None and _is_port(argument.arg, value):
                    yield value.lineno, f"{argument.arg}={ast.unparse(value)}"
        elif isinstance(node, ast.Assign) and any(_is_port(ast.unparse(name), node.value) for name in node.targets):
            yield node.lineno, ast.unparse(node)


def _is_port(name: str | None, value: ast.expr) -> bool:
    number = isinstance(value, ast.Constant) and type(value.value) is int and value.value > 0
    return number and (name or "").lower().endswith("port")


def swallows(node: ast.AST) -> bool:
    """Whether a node catches everything, or any Exception to do nothing about it."""
    if isinstance(node, ast.Call):
        names = {ast.unparse(argument) for argument in node.args}
        return ast.unparse(node.func).endswith("suppress") and bool(names & {"Exception", "BaseException"})
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = "" if node.type is None else ast.unparse(node.type)
    idle = all(isinstance(line, ast.Pass) or ast.unparse(line) == "..." for line in node.body)
    return not caught or (idle and bool(re.search(r"\b(Base)?Exception\b", caught)))

"""What the pages say exists, and what exists is on the pages."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup

from tidepool import errors
from tidepool.cli.exits import exit_code
from tidepool.spec import Section, Spec

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(tidepool|make) (.*)")
PATH = re.compile(r"(?:platform|deployments|jobs|tests|docs|benchmarks|\.ci)/[\w./-]*\w")
EXAMPLES = ("deployments/churn/", "deployments/flowers/")
"""Folders of models that a reader is to imagine."""

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@pytest.fixture(scope="session")
def pages(root: Path) -> dict[str, str]:
    """Path below the root to text, of every page that describes the present (the changelog describes the past)."""
    names = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
    names += [str(file.relative_to(root)) for file in sorted((root / "docs").rglob("*.md"))]
    return {name: (root / name).read_text() for name in names}


@pytest.fixture(scope="session")
def command_line() -> TyperGroup:
    """The `tidepool` command with its verbs."""
    from tidepool.cli.main import app

    return typer.main.get_group(app)


def test_every_command_on_a_page_exists(pages: dict[str, str], command_line: TyperGroup) -> None:
    wrong = [
        f"{page}: `tidepool {rest}`: {problem}"
        for page, text in pages.items()
        for program, rest in commands(text)
        if program == "tidepool" and (problem := unknown_part(command_line, rest.split()))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_verb_is_on_a_page(pages: dict[str, str], command_line: TyperGroup) -> None:
    named = {rest.split()[0] for text in pages.values() for program, rest in commands(text) if program == "tidepool"}
    missing = sorted(set(command_line.commands) - named)
    assert not missing, f"no page shows `tidepool <verb>` for {missing}"


def test_every_make_target_on_a_page_exists(root: Path, pages: dict[str, str]) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    wrong = [
        f"{page}: `make {target}`"
        for page, text in pages.items()
        for program, rest in commands(text)
        if program == "make"
        for target in rest.split()
        if "=" not in target and target not in targets
    ]
    assert not wrong, f"targets are {sorted(targets)}; these are not:\n" + "\n".join(wrong)


def test_ci_calls_make_check_and_make_test_and_nothing_else(root: Path) -> None:
    called = re.findall(r"^make (.+)$", (root / ".ci" / "run").read_text(), re.MULTILINE)
    assert called == ["check", "test"]


def test_the_tree_in_errors_is_the_tree_of_classes() -> None:
    drawn: list[tuple[int, str]] = [
        (match.start(1), match[1]) for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"[\s│├└─]*([A-Z]\w+)(?:\s|$)", line)) and match[1] in vars(errors)
    ]  # fmt: skip
    parents = {
        name: next((above for depth, above in reversed(drawn[:index]) if depth < own), None)
        for index, (own, name) in enumerate(drawn)
    }
    assert parents.pop("TidepoolError") is None
    assert parents == {n: kind.__bases__[0].__name__ for n, kind in exceptions().items() if n != "TidepoolError"}


def test_every_exception_is_on_its_page_with_its_exit_code_and_status(pages: dict[str, str]) -> None:
    from tidepool.serve.rest import STATUS

    rows = dict(table(pages["docs/errors.md"], "exception"))
    expected = {
        name: [str(exit_code(kind("what"))), str(next(STATUS[each] for each in kind.__mro__ if each in STATUS))]
        for name, kind in exceptions().items()
    }
    assert {name: columns[-2:] for name, columns in rows.items()} == expected


def test_every_spec_field_is_described_and_on_its_page_with_its_default(pages: dict[str, str]) -> None:
    rows = dict(table(pages["docs/spec.md"], "field"))
    fields = dict(spec_fields(Spec))
    undescribed = [path for path, (description, _) in fields.items() if not description]
    assert not undescribed, f"give them a Field(description=...): {undescribed}"
    assert {path: columns[0].strip("`") for path, columns in rows.items()} == {
        path: default for path, (_, default) in fields.items()
    }


def test_every_spec_on_a_page_is_valid(pages: dict[str, str]) -> None:
    specs = [
        (page, document)
        for page, text in pages.items()
        for language, block in FENCE.findall(text)
        if language == "yaml" and isinstance(document := yaml.safe_load(block), dict) and "recipe" in document
    ]
    assert specs
    for page, document in specs:
        assert Spec.model_validate(document).name, page


def test_every_python_example_on_a_page_parses_and_imports_what_exists(pages: dict[str, str]) -> None:
    for page, text in pages.items():
        for language, block in FENCE.findall(text):
            if language == "python":
                tree = ast.parse(block, page)
                lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
                exec(compile(ast.Module(lines, []), page, "exec"), {})


def test_everything_public_has_a_docstring(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path, tree in modules.items()
        if path.startswith(("platform", "jobs", "deployments"))
        for line, name in undocumented(tree)
    ]
    assert not wrong, "say what it gives, in which shapes and units, and what it raises:\n" + "\n".join(wrong)


def test_every_link_between_pages_resolves(root: Path, pages: dict[str, str]) -> None:
    wrong = [
        f"{page}: {link}"
        for page, text in pages.items()
        for link in LINK.findall(FENCE.sub("", text))
        if "://" not in link and not link.startswith("mailto:") and not resolves(root, page, link)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_path_on_a_page_exists(root: Path, pages: dict[str, str]) -> None:
    wrong = [
        f"{page}: {path}"
        for page, text in pages.items()
        for code in [*CODE.findall(FENCE.sub("", text)), *(block for _, block in FENCE.findall(text))]
        for path in re.findall(rf"(?<![\w./<>~-]){PATH.pattern}(?![\w/<*{{])", code)
        if not path.startswith(EXAMPLES) and not (root / path).exists()
    ]
    assert not wrong, "\n".join(wrong)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(tidepool or make, the rest) of each command in a page's code."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += CODE.findall(FENCE.sub("", text))
    for line in lines:
        for part in re.split(r"&&|\|\||;|·|\|", re.sub(r"(^|\s)#.*", "", line)):
            if match := COMMAND.match(part.strip()):
                yield match[1], match[2]


def unknown_part(command: TyperGroup | TyperCommand, words: list[str]) -> str | None:
    """What is wrong with the words after `tidepool`, if something is."""
    while words and isinstance(command, TyperGroup) and not words[0].startswith(("-", "<")):
        if words[0] not in command.commands:
            return f"no {words[0]} among {', '.join(sorted(command.commands))}"
        command, words = command.commands[words[0]], words[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    return f"no {' '.join(unknown)} among {', '.join(sorted(known))}" if unknown else None


def table(page: str, first: str) -> Iterator[tuple[str, list[str]]]:
    """(first cell without its backticks, the other cells) of each row of the tables whose first heading is `first`."""
    inside = False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and set(cells[0]) - {"-", " ", ":"}:
            yield cells[0].strip("`"), cells[1:]


def spec_fields(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, tuple[str | None, str]]]:
    """(dotted path, (description, default as the page writes it)) of each field, section by section."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert field.annotation.__doc__
            yield from spec_fields(field.annotation, f"{path}{name}.")
        else:
            value: Any = "required" if field.is_required() else field.get_default(call_default_factory=True)
            yield f"{path}{name}", (field.description, value if isinstance(value, str) else json.dumps(value))


def exceptions() -> dict[str, type[errors.TidepoolError]]:
    """Name to class of everything in `tidepool.errors` that can be raised."""
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in classes if issubclass(kind, errors.TidepoolError)}


def undocumented(node: ast.AST, path: str = "") -> Iterator[tuple[int, str]]:
    """(line, name) of each public module, class, function and method without a docstring."""
    if isinstance(node, ast.Module) and not ast.get_docstring(node):
        yield 1, "the module"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Documented) and not child.name.startswith("_"):
            if not (ast.get_docstring(child) or _told_by_decorator(child) or _is_stub(child)):
                yield child.lineno, f"{path}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{path}{child.name}.")


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether it is `...` alone: a method of a Protocol, whose class says what is asked of it."""
    body = node.body[0]
    return isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant) and body.value.value is Ellipsis


def _told_by_decorator(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator is given a sentence, as `@rule(..., "a model's name is the one that was asked for")` is."""
    arguments = [each for call in node.decorator_list if isinstance(call, ast.Call) for each in call.args]
    texts = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return any(len(text.split()) > 3 for text in texts)


def resolves(root: Path, page: str, link: str) -> bool:
    """Whether a relative link leads to a file, and to a heading if it has a #fragment."""
    target, _, fragment = link.partition("#")
    file = (root / page).parent / target if target else root / page
    if not file.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []
    return not fragment or fragment in {slug(heading) for heading in headings}


def slug(heading: str) -> str:
    """The fragment by which a heading is linked to."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

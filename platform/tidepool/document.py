"""What a YAML file says, as keys and values, and `a.b=c` overrides of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tidepool.errors import SpecError


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 and JSON do; YAML 1.1 takes it for text."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        SpecError: no such file, not YAML, or no mapping.
    """
    try:
        document = yaml.load(path.read_text(), _Loader)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise SpecError("no such spec file", seen=path, remedy="give the path of a spec.yaml") from None
    except OSError as error:
        raise SpecError(f"{path} can't be read", seen=error.strerror, remedy="check its permissions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        seen, remedy = str(error).replace("\n", " "), "correct it there; text with a colon or a brace needs quotes"
        raise SpecError(f"{path} is not YAML", seen=seen, remedy=remedy) from None
    if not isinstance(document, dict):
        raise SpecError(f"{path} is not a mapping", seen=type(document).__name__, allowed="keys and values")
    return document


def override(document: dict[str, Any], text: str) -> None:
    """Set what `a.b=c` says, where c is YAML; sections that aren't there are made.

    Raises:
        SpecError: another form, a value that isn't YAML, or a parent that is no section.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise SpecError("an override needs the form a.b=c", seen=text, remedy="e.g. --set train.epochs=5")
    *parents, leaf = key.split(".")
    section = document
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            remedy = f"set {parent} itself, or see `tidepool schema`"
            raise SpecError(f"{key} can't be set: {parent} is not a section", seen=text, remedy=remedy)
    try:
        section[leaf] = yaml.load(value, _Loader)
    except yaml.YAMLError:
        remedy = f"quote text twice, as in --set '{key}=\"...\"'"
        raise SpecError(f"the value of {key} is not YAML", seen=value, remedy=remedy) from None

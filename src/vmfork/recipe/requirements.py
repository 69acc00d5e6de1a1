"""What a `pip` step asks for, looked at before pip is: it builds what is no wheel, and that runs strangers' code here.

A name or line is taken when it names a package (`flask==3.1.*`), or the address of a wheel (`name @ https://…/x.whl`).
Lines are read as pip reads them ("Requirements File Format"): joined, without comments, `${NAME}` replaced, options
told from what stands before them. What pip might take in another way than this is refused.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from optparse import OptionParser
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILES_OF_REQUIREMENTS = (".txt", ".in", ".lock")
WHEEL = ".whl"

# pip takes a name that ends so for a file, also where nothing else looks like a path.
_ARCHIVES = (WHEEL, ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".xz", ".txz", ".tlz", ".lz", ".lzma")
_VERSIONS = r"(?:[<>]=?|[~!]=|===?)[\w\s.*+!,<>=~-]+"
_PACKAGE = re.compile(rf"[a-z0-9][\w.-]*\s*(?:\[[\w\s.,-]*\])?\s*(?:{_VERSIONS}|\({_VERSIONS}\))?", re.IGNORECASE)
# Of an address pip takes only "; " for the begin of a marker, in some versions.
_ADDRESS = re.compile(
    r"(?:[a-z0-9][\w.-]*\s*(?:\[[\w\s.,-]*\])?\s*@\s*)?(https?://[^\s;]+)(?:\s+;\s.*)?", re.IGNORECASE
)
_HAS_SCHEME = re.compile(r"(?:^|[\s@])(?:[a-z][a-z0-9.+-]*://|file:|(?:git|hg|bzr|svn)\+)", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_EXPORT_BY_UV = "uv export --format requirements-txt --no-emit-project > requirements.txt"
# Files of other tools, by what makes a file of requirements of them.
_FOREIGN = {
    "uv.lock": _EXPORT_BY_UV,
    "poetry.lock": "poetry export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements > requirements.txt",
    "Pipfile": "pipenv requirements > requirements.txt",
    "pdm.lock": "pdm export --output requirements.txt",
    "pyproject.toml": "uv pip compile pyproject.toml --output-file requirements.txt",
}
_PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")
_BUILD_HINT = (
    "only wheels are taken: make one of it (pip wheel --no-deps) and name that in the step, "
    "or {copy = ...} its modules to where the guest's Python finds them"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a file of requirements says: the files that it goes on with, and whether it wants a package in any case."""

    required: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    wants: bool = False


def is_file(wanted: str) -> bool:
    """Whether what `pip` is to install is a file of the recipe's folder, by its ending; else it is a requirement."""
    return wanted.endswith((*FILES_OF_REQUIREMENTS, WHEEL)) and " @ " not in wanted and "://" not in wanted


def check_wanted(wanted: str) -> None:
    """Raises `ConfigError` unless it is a file of the recipe by its ending, or what pip gets as a wheel."""
    _check_not_foreign(wanted, "")
    if not is_file(wanted):
        _check_requirement(wanted, wanted, "")


def is_unconditional(requirement: str) -> bool:
    """Whether it has no marker (`; python_version < "3.13"`), by which pip may leave it out."""
    return ";" not in requirement


def read_listed(text: str, name: str) -> Listed:
    """What the file of that name says. Raises `ConfigError` for what pip would build, or what leads elsewhere."""
    parser = _make_parser()
    required: list[str] = []
    limits: list[str] = []
    wants = False
    for written in _list_lines(text):
        line = _VARIABLE.sub(lambda found: os.environ.get(found[1]) or found[0], written)
        tokens = line.split(" ")
        at = next((at for at, token in enumerate(tokens) if token.startswith("-")), len(tokens))
        requirement, options = " ".join(tokens[:at]).strip(), " ".join(tokens[at:])
        try:
            said, rest = parser.parse_args(shlex.split(options))
        except ValueError as error:
            hint = "leave the option out, or give it to pip by its own settings (pip.conf)"
            _refuse(written, f"is not understood: {error}", name, hint)
        given = {key: value or [] for key, value in vars(said).items()}
        _check_options(given, rest, written, name)
        required += given["required"]
        limits += given["limits"]
        if requirement:
            _check_requirement(requirement, written, name)
            wants = wants or is_unconditional(requirement)
    return Listed(tuple(required), tuple(limits), wants)


def _list_lines(text: str) -> Iterator[str]:
    """Its lines without comments, joined where one ends with a backslash."""
    before = ""
    for line in [*text.removeprefix("\ufeff").splitlines(), ""]:
        is_comment = _COMMENT.match(line) is not None
        if line.endswith("\\") and not is_comment:
            before += line.strip("\\")
            continue
        whole, before = before + (" " if is_comment else "") + line, ""
        if found := _COMMENT.sub("", whole).strip():
            yield found


class _Parser(OptionParser):
    def error(self, msg: str) -> NoReturn:
        raise ValueError(msg)


def _make_parser() -> OptionParser:
    """Knows the options that a line of such a file may have; they may be cut short, as pip's may be."""
    parser = _Parser(add_help_option=False)
    for names, place in (
        (("-r", "--requirement"), "required"),
        (("-c", "--constraint"), "limits"),
        (("-e", "--editable"), "editable"),
        (("-f", "--find-links"), "places"),
        (("-i", "--index-url", "--pypi-url"), "places"),
        (("--extra-index-url",), "places"),
        (("--no-binary",), "no_binary"),
        (("--only-binary",), "only_binary"),
        (("--trusted-host", "--use-feature", "--hash", "--global-option", "-C", "--config-settings"), "other"),
    ):
        parser.add_option(*names, dest=place, action="append")
    for flag in ("--no-index", "--prefer-binary", "--require-hashes", "--pre"):
        parser.add_option(flag, action="store_true")
    return parser


def _check_options(said: Mapping[str, list[str]], rest: list[str], written: str, name: str) -> None:
    if said["editable"]:
        _refuse(written, "would have pip build what is there, on this host", name, _BUILD_HINT)
    if said["no_binary"] or any(":none:" in each for each in said["only_binary"]):
        hint = "leave it out: what has no wheel cannot be installed so"
        _refuse(written, "would have pip take what is no wheel, and build it on this host", name, hint)
    if rest:
        _refuse(written, f"has {rest[0]!r} behind its options", name, "look at the spelling")
    for place in said["places"]:
        if not _WEB.match(place):
            hint = "tell your own pip where to look (PIP_FIND_LINKS, pip.conf), or name the wheels in the step"
            _refuse(written, "looks in a folder, of which the recipe knows nothing", name, hint)
    for below in (*said["required"], *said["limits"]):
        _check_not_foreign(below, name)
        if _HAS_SCHEME.search(below):
            hint = "fetch it into the recipe's folder and name it there"
            _refuse(written, "goes on with a file that is not in the recipe's folder", name, hint)


def _check_requirement(requirement: str, written: str, name: str) -> None:
    """Raises `ConfigError` unless it names a package, or where a wheel of it is."""
    # Behind it may stand extras, which pip takes off what it tries as a path.
    subject = requirement.partition(";")[0].strip()
    as_path = re.sub(r"\[[^\]]*\]$", "", subject).strip().lower()
    if _PACKAGE.fullmatch(subject) and not as_path.endswith(_ARCHIVES):
        return
    if (found := _ADDRESS.fullmatch(requirement)) and urlsplit(found[1]).path.endswith(WHEEL):
        return
    if as_path.endswith(WHEEL) and not _WEB.search(subject):
        hint = f"name it in the step itself: pip = [{PurePosixPath(as_path).name!r}]"
        _refuse(written, "is a wheel of this host that the recipe does not read", name, hint)
    if _HAS_SCHEME.search(subject):
        _refuse(written, "is no address of a wheel: pip would build it on this host", name, _BUILD_HINT)
    if "/" in subject or subject.startswith((".", "~")) or as_path.endswith(_ARCHIVES):
        _refuse(written, "is a folder or an archive: pip would build it on this host", name, _BUILD_HINT)
    _refuse(written, "is no requirement", name, "give a name and its versions, as in flask==3.1.*")


def _check_not_foreign(path: str, name: str) -> None:
    """Raises `ConfigError` for a file that another tool reads, and pip does not."""
    last = PurePosixPath(path).name
    if way := _FOREIGN.get(last) or (_EXPORT_BY_UV if _PYLOCK.fullmatch(last) else ""):
        _refuse(path, "is no file of requirements", name, f"make one of it: {way}")


def _refuse(written: str, why: str, name: str, hint: str) -> NoReturn:
    shown = _CREDENTIALS.sub("//***@", written)
    where = f" (in {name})" if name else ""
    raise ConfigError("pip", shown, f"{shown!r} {why}{where}", hint=hint)

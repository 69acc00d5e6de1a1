"""The one loader: defaults, then `vmfork.toml`, then the environment, then arguments; each value with its origin.

```
[vm]                       VMFORK_VM_CPUS, VMFORK_VM_MEMORY_MIB, ...
cpus = 2                   the fields of VMConfig
memory_mib = "1G"          a size, or a number of MiB
fork_timeout_s = "30s"     a duration, or a number of seconds
[factory]                  VMFORK_FACTORY_TEMPLATE, VMFORK_FACTORY_TEMPLATE_NAME
cache = {min = 1, max = 8} the fields cache_min and cache
[template.NAME]            how templates are made (template/recipe_file.py): nothing here
[image]                    VMFORK_IMAGE_SUITE, VMFORK_IMAGE_PACKAGES (separated by spaces or commas), VMFORK_IMAGE_BARE
[image.NAME]               what the image NAME is made of, made when it is first used: the same, or a container image
from = "oci:./layout"      paths are from the file's folder on
```
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmfork.config.source import absolute_source
from vmfork.config.values import FactoryConfig, ImageConfig, VMConfig, check_name
from vmfork.errors import ConfigError
from vmfork.hint import suggest
from vmfork.units import parse_duration_s, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE_NAME = "vmfork.toml"
RECIPES = "template"
DEFAULT, ARGUMENT = "default", "argument"
# What Kubernetes and Docker put into the environment of everything that runs beside a service called `vmfork-factory`.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?|ENV_\w+|NAME)")

# Section -> its fields. A factory's machine is [vm].
SECTIONS: dict[str, tuple[str, ...]] = {
    "vm": tuple(f.name for f in fields(VMConfig)),
    "factory": tuple(f.name for f in fields(FactoryConfig) if f.name != "vm"),
    "image": tuple(f.name for f in fields(ImageConfig) if f.name != "source"),
}
# Of an image with a name of its own, `from` is its `source`.
_FROM = "from"
_OF_IMAGE = (*SECTIONS["image"], _FROM)
# Fields that are lists; a variable separates their items by spaces or commas.
_LISTS = ("image.packages", "factory.templates")
# Fields that a file may give as a least and a most.
_RANGES = ("factory.cache",)
_NUMBERS = {
    **dict.fromkeys(("vm.cpus", "vm.max_cpus", "vm.cpu_weight", "factory.cache", "factory.cache_min"), int),
    **dict.fromkeys(("vm.overcommit", "vm.max_pressure"), float),
}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is in force. `origins` maps each dotted field to where its value came from; `file` is what was read.

    `image` is what the image `default` is made of, and `images` are others by their names.
    """

    vm: VMConfig
    factory: FactoryConfig
    image: ImageConfig
    images: Mapping[str, ImageConfig]
    origins: Mapping[str, str]
    file: Path | None

    @property
    def image_if_given(self) -> ImageConfig | None:
        """The image's configuration; `None` when no field of it was given, so that any image will do."""
        given = any(self.origins[f"image.{key}"] != DEFAULT for key in SECTIONS["image"])
        return self.image if given else None

    def find_made_of(self, image: str) -> ImageConfig | None:
        """What the image is made of, if the settings say that; else any will do."""
        return self.image_if_given if image == VMConfig().image else self.images.get(image)

    @property
    def vm_if_given(self) -> VMConfig | None:
        """What a machine is; `None` when no field of it was given."""
        return self.vm if any(self.origins[f"vm.{key}"] != DEFAULT for key in SECTIONS["vm"]) else None

    def values(self) -> dict[str, Any]:
        """Every dotted field and its value, in the order of the sections."""
        return {f"{name}.{key}": getattr(getattr(self, name), key) for name, keys in SECTIONS.items() for key in keys}


def load_settings(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    recipe_file: str | os.PathLike[str] | None = None,
) -> Settings:
    """The settings in force: those of the commands. A file named by `path` or `VMFORK_CONFIG` must exist.

    Without either, `./vmfork.toml` is read, else the user's, or the system's for root; none of them need be there.

    `overrides` maps dotted fields to values given as arguments; `None` there means not given. [vm] and [image.NAME] of
    `recipe_file` come before those of the first file. Raises `ConfigError`, naming the field or the file that is wrong.
    """
    env = os.environ if environ is None else environ
    file = find_file(None if path is None else Path(path), env)
    given: dict[str, tuple[Any, str]] = {}
    images: dict[str, ImageConfig] = {}
    if file is not None:
        body = read_toml(file, field="config")
        images = read_images(body, file)
        given |= {field: (value, str(file)) for field, value in _read_file(body, file).items()}
    if recipe_file is not None and (nearer := Path(recipe_file)).is_file():  # what comes by a pipe comes once
        body = read_toml(nearer, field="recipe")
        images |= read_images(body, nearer)
        said = _read_file(body, nearer)
        given |= {field: (value, str(nearer)) for field, value in said.items() if field.startswith("vm.")}
    given |= _read_environ(env)
    given |= {field: (value, ARGUMENT) for field, value in (overrides or {}).items() if value is not None}
    origins = {
        field: given[field][1] if field in given else DEFAULT
        for field in (f"{name}.{key}" for name, keys in SECTIONS.items() for key in keys)
    }
    with _naming(origins):
        ready = {field: _convert(field, *value_and_origin) for field, value_and_origin in given.items()}
        vm = VMConfig(**_section(ready, "vm"))
        return Settings(
            vm=vm,
            factory=FactoryConfig(vm=vm, **_section(ready, "factory")),
            image=ImageConfig(**_section(ready, "image")),
            images=images,
            origins=origins,
            file=file,
        )


@contextmanager
def _naming(origins: Mapping[str, str]) -> Iterator[None]:
    """A value that is refused in the block is told with the file or the variable that it came from."""
    try:
        yield
    except ConfigError as error:
        origin = origins.get(error.field, DEFAULT)
        if origin in (DEFAULT, ARGUMENT):
            raise
        raise ConfigError(error.field, error.value, f"{error.reason} (from {origin})", hint=error.hint) from None


def find_file(path: Path | None, environ: Mapping[str, str], *, uid: int | None = None) -> Path | None:
    """The file to read: the one demanded, else `./vmfork.toml`, else the user's (the system's as root), else none."""
    demanded = path or (Path(environ["VMFORK_CONFIG"]) if environ.get("VMFORK_CONFIG") else None)
    if demanded is not None:
        if not demanded.is_file():
            raise ConfigError(
                "config", str(demanded), f"no file is at {demanded}", hint="check --config and VMFORK_CONFIG"
            )
        return demanded
    if (os.getuid() if uid is None else uid) == 0:
        folder = Path("/etc/vmfork")
    else:
        home = environ.get("HOME") or os.path.expanduser("~")
        folder = Path(environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config"), "vmfork")
    found = next((file for file in (Path(FILE_NAME), folder / FILE_NAME) if file.is_file()), None)
    return found and found.absolute()  # only now: a working folder that was removed has no path, and no file


def read_toml(file: Path, *, field: str) -> dict[str, Any]:
    """What a file says. Raises `ConfigError` for `field` when it cannot be read, or is not TOML."""
    import tomllib  # noqa: PLC0415 - most runs have no file

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "give the path of a file that is here, and may be read"
        raise ConfigError(field, str(file), f"cannot read {file}: {error.strerror}", hint=hint) from error
    except ValueError as error:  # not TOML, not UTF-8
        raise ConfigError(field, str(file), f"{file} is not valid TOML: {error}") from error


def read_images(body: Mapping[str, Any], file: Path) -> dict[str, ImageConfig]:
    """The images of [image.NAME], by their names. Raises `ConfigError`, naming the file and the key that is wrong."""
    section = body.get("image", {})
    if not isinstance(section, dict):
        return {}  # which is told where sections are looked at
    found = {}
    for name, table in section.items():
        if isinstance(table, dict) and name not in _OF_IMAGE:
            check_name(name, field=f"image.{name}")
            try:
                found[name] = _read_image(name, table, file)
            except ConfigError as error:
                field = f"image.{name}.{error.field.removeprefix('image.').removeprefix(f'{name}.')}"
                reason = error.reason if str(file) in error.reason else f"{error.reason} (from {file})"
                raise ConfigError(field, error.value, reason, hint=error.hint) from None
    return found


def _read_image(name: str, table: Mapping[str, Any], file: Path) -> ImageConfig:
    for key in table:
        if key not in _OF_IMAGE:
            raise name_unknown(f"image.{name}.{key}", f"{file} has it", f"fields of [image.{name}]", _OF_IMAGE)
    source = table.get(_FROM, "")
    if _FROM in table and (not isinstance(source, str) or not source.strip()):
        raise ConfigError("image.from", source, "must be text that says where a container image is")
    config = ImageConfig(source=source, **{key: value for key, value in table.items() if key != _FROM})
    return replace(config, source=absolute_source(config.source, file.parent))


def _read_file(body: Mapping[str, Any], file: Path) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, section in body.items():
        check_section(name, file)
        if name == RECIPES:
            continue
        if not isinstance(section, dict):
            raise ConfigError(name, section, f"must be a section, [{name}]")
        for key, value in section.items():
            if name == "image" and isinstance(value, dict) and key not in _OF_IMAGE:
                continue  # an image of that name
            if name == "image" and key == _FROM:
                hint = "give that one a name: [image.NAME]"
                raise ConfigError("image.from", value, f"[image] is made of packages ({file} has it)", hint=hint)
            if key not in SECTIONS[name]:
                raise name_unknown(f"{name}.{key}", f"{file} has it", f"fields of [{name}]", SECTIONS[name])
            given |= _read_range(f"{name}.{key}", value) if isinstance(value, dict) else {f"{name}.{key}": value}
    return given


def check_section(name: str, file: Path) -> None:
    """Raises `ConfigError` for what is no section of `vmfork.toml`, with the one that may have been meant."""
    if name != RECIPES and name not in SECTIONS:
        raise name_unknown(name, f"{file} has it", "sections", (*SECTIONS, RECIPES))


def _read_range(field: str, value: dict[str, Any]) -> dict[str, Any]:
    """`{min, max}` as the two fields that it stands for."""
    if field not in _RANGES or value.keys() != {"min", "max"}:
        known = "a number, or {min = ..., max = ...}" if field in _RANGES else "a value"
        raise ConfigError(field, value, f"must be {known}")
    return {field: value["max"], f"{field}_min": value["min"]}


def _read_environ(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    given: dict[str, tuple[Any, str]] = {}
    for variable, value in environ.items():
        for name, keys in SECTIONS.items():
            prefix = f"VMFORK_{name.upper()}_"
            if not variable.startswith(prefix):
                continue
            rest = variable.removeprefix(prefix)
            key = rest.lower()
            if key not in keys and _SERVICE_LINK.fullmatch(rest):
                continue
            if key not in keys:
                raise name_unknown(f"{name}.{key}", f"{variable} is set", f"fields of [{name}]", keys)
            given[f"{name}.{key}"] = (value, variable)
    return given


def name_unknown(field: str, where: str, kind: str, known: Mapping[str, Any] | tuple[str, ...]) -> ConfigError:
    """The error for a name that is none of `known`, with the one that may have been meant."""
    meant = suggest(field.rpartition(".")[2], known)
    return ConfigError(field, None, f"unknown ({where})", hint=f"{meant}the {kind} are {', '.join(known)}")


def _from_text(field: str, text: str) -> Any:
    """A variable's text as the value that a file would hold."""
    if field in _LISTS:
        return text.replace(",", " ").split()
    if field in ("vm.nic", "factory.template", "factory.remote", "image.bare", "vm.persist"):
        truth = _TRUTH.get(text.strip().lower())
        if truth is None:
            raise ConfigError(field, text, f"{text!r} is neither true nor false", hint="write true or false")
        return truth
    if (number := _NUMBERS.get(field)) is not None:
        with suppress(ValueError):  # refused by VMConfig, which says why
            return number(text)
    return text


def _convert(field: str, value: Any, origin: str) -> Any:
    if origin.startswith("VMFORK_"):
        value = _from_text(field, value)
    if field.endswith("_mib") and isinstance(value, str):
        return parse_size_mib(value, field=field)
    if field.endswith("_s") and isinstance(value, str):
        return parse_duration_s(value, field=field)
    if field == "factory.recipe" and isinstance(value, str) and value and origin not in (DEFAULT, ARGUMENT):
        # Beside the file that names it, wherever a command runs.
        return str(Path(value).absolute() if origin.startswith("VMFORK_") else Path(origin).absolute().parent / value)
    if field in _LISTS and not isinstance(value, (list, tuple)):
        raise ConfigError(field, value, "must be a list of names")
    return value


def _section(ready: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    return {field.removeprefix(prefix): value for field, value in ready.items() if field.startswith(prefix)}

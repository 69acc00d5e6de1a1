"""What this host lets its user do to contain a program: tried with one that does nothing, and remembered."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host import facts
from vmfork.host.folders import make_private, read_file, write_whole
from vmfork.host.jail import NO_JAIL, Jail
from vmfork.host.keeper import KeptProcess, find_keeper
from vmfork.host.users import lease_user
from vmfork.records import read_record, write_record

if TYPE_CHECKING:
    from vmfork.config.isolation import UserRange

# In the runtime folder, which goes with the host's boot as what it says does.
RECORD = "isolation.json"
_LIMIT_S = 20.0
_PREFIX = "vmfork-keeper: "

FILTER, NAMESPACES, LANDLOCK, USER = "filter", "namespaces", "landlock", "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was tried on this host: each is empty where it worked, else why it did not.

    `key` names host, user and rights it holds for. `mapped`: namespaces inside of a user namespace.
    """

    key: str
    filter: str
    namespaces: str
    mapped: str
    landlock: str
    user: str

    @property
    def needs_mapping(self) -> bool:
        """Whether namespaces can be had inside of a user namespace alone."""
        return bool(self.namespaces)

    def reasons(self) -> dict[str, str]:
        """Each part, and why it does not apply; empty where it does. Landlock stands in for namespaces alone."""
        reasons = {FILTER: self.filter, NAMESPACES: self.namespaces and self.mapped, USER: self.user}
        return reasons | {LANDLOCK: self.landlock} if reasons[NAMESPACES] else reasons


_proofs: dict[tuple[Path, UserRange], Proof] = {}


async def prove(users: UserRange, *, runtime: Path, anew: bool = False) -> Proof:
    """What this host lets its user do. It takes about 30 ms the first time, and is then read from `runtime`.

    The rights and namespaces of our process, the keeper's file and `users` must be the same; `anew` tries again.
    """
    known, path = (runtime, users), runtime / RECORD
    if anew or known not in _proofs:
        key = _key_of(users)
        proof = None if anew else _read(path)
        if proof is None or proof.key != key:
            proof = await _try_all(key, users, make_private(runtime))
            with suppress(OSError):  # a full file system: it is tried again by the next process
                write_whole(path, write_record(proof))
        _proofs[known] = proof
    return _proofs[known]


def _read(path: Path) -> Proof | None:
    try:
        return read_record(Proof, read_file(path))
    except (OSError, ValueError):
        return None


def _key_of(users: UserRange) -> str:
    keeper = find_keeper().stat()
    namespaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("user", "mnt")]
    status = Path("/proc/self/status").read_text().splitlines()
    rights = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    parts = (facts.boot_id(), os.geteuid(), *namespaces, rights, keeper.st_ino, keeper.st_mtime_ns, users)
    return " ".join(map(str, parts))


async def _try_all(key: str, users: UserRange, runtime: Path) -> Proof:
    with ExitStack() as always:
        folder = runtime / f".trial-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        always.callback(shutil.rmtree, folder, ignore_errors=True)
        root = Jail(root=folder / "root", bound=(str(find_keeper()),))
        (folder / "root").mkdir()
        return Proof(
            key=key,
            filter=await _try(folder, NO_JAIL),
            namespaces=await _try(folder, root),
            mapped=await _try(folder, replace(root, mapped=True)),
            landlock=await _try(folder, replace(root, root=None)),
            user=await _try_user(folder, users),
        )


async def _try_user(folder: Path, users: UserRange) -> str:
    if os.geteuid() != 0 or not facts.has_ids(users.first, users.last):
        return f"only root who has the user ids {users.first} to {users.last} can give it"
    try:
        with lease_user(users) as lease:
            return await _try(folder, Jail(lease=lease))
    except HostError as error:
        return error.message


async def _try(folder: Path, jail: Jail) -> str:
    """Empty when a program starts in `jail`, else why it does not."""
    with (folder / "log").open("w+b") as log:
        process = KeptProcess.start(
            [str(find_keeper()), "nothing"],
            log_fd=log.fileno(),
            listen_at=folder / "keeper.sock",
            confined=True,
            jail=jail,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                status = await process.wait()
        except TimeoutError:
            return f"a trial did not end within {_LIMIT_S:g} s"
        finally:
            await process.aclose()
            (folder / "keeper.sock").unlink(missing_ok=True)
        log.seek(0)
        said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
    return "" if status == 0 else said.removeprefix(_PREFIX) or f"a trial ended with status {status}"

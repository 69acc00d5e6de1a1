"""PostgreSQL in one fork, the tests that need it in another: the suite of a project, beside its database."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.packages.acts import open_template
from vmfork.aio import Network
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.image, pytest.mark.limit_s(1200)]

LIMIT_S = 300.0
START = (
    "pg_createcluster 17 main -- --auth-host=trust && pg_ctlcluster 17 main start && "
    "su postgres -c \"psql -qc 'create table t (n integer primary key)'\""
)
# Each in a connection of its own, as the tests of a suite are.
SUITE = """
ask() { psql -h db -U postgres -XAtc "$1"; }
ask "insert into t select generate_series(1, 5000)" && test "$(ask 'select count(*) from t')" = 5000 &&
test "$(ask 'select sum(n) from t')" = 12502500 && ! ask "insert into t values (1)" &&
test "$(ask 'select inet_client_addr()')" = 127.0.0.1 && echo passed
"""


async def test_a_suite_in_one_fork_uses_the_database_in_another(instance) -> None:
    template = await open_template("database", ["postgresql"], instance)
    async with AsyncExitStack() as stack:
        stack.callback(ImageStore(instance.images).remove, "database")
        stack.push_async_callback(template.remove)
        db, suite = [await stack.enter_async_context(vm) for vm in await template.fork_many(2)]
        network = Network("job")
        for vm in (db, suite):
            await vm.join(network)
        await db.shell(START, check=True, timeout_s=LIMIT_S)
        await db.wait_for_port(5432, timeout_s=LIMIT_S)
        await db.expose(5432, "db")
        told = await suite.shell(SUITE, timeout_s=LIMIT_S)
        assert told.stdout.splitlines()[-1:] == ["passed"], told

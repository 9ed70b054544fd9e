from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters_registry import DatabaseError, migrate, open_database
from adapters_registry.database import MIGRATIONS, Base, create_engine
from adapters_registry.tables import AuditRow, RevisionRow
from tests.adapters_registry import victim
from tests.adapters_registry.processes import finish, start

SCRIPTS = ScriptDirectory(str(MIGRATIONS))
FIRST = SCRIPTS.get_base()
TABLES = ("training.casebank.tables", "training.dataset.tables", "training.jobs.tables", "training.routing.tables")
"""modules of other packages whose tables join the one history"""


def test_history_is_one_line() -> None:
    assert len(SCRIPTS.get_heads()) == 1
    assert FIRST is not None


def test_migrations_make_what_the_tables_say(database_url: str) -> None:
    for module in TABLES:
        importlib.import_module(module)
    database = open_database(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        wanted = {table for table in Base.metadata.tables if table in sa.inspect(connection).get_table_names()}
        ours = sa.MetaData()
        for table in wanted:
            Base.metadata.tables[table].to_metadata(ours)
        difference = [change for change in compare_metadata(context, ours) if change[0] != "remove_table"]
        assert difference == []
    database.close()


def test_every_version_migrates_to_the_next_with_its_rows(database_url: str) -> None:
    assert FIRST is not None
    migrate(database_url, FIRST)
    engine = create_engine(database_url)
    with engine.execution_options(loradock_writes=True).begin() as connection:
        connection.execute(sa.update(RevisionRow).values(revision=7))
    for script in reversed(list(SCRIPTS.walk_revisions())):
        migrate(database_url, script.revision)
    engine.dispose()
    database = open_database(database_url)
    assert database.scalar(sa.select(RevisionRow.revision)) == 7
    database.close()


def test_opening_again_changes_nothing(database_url: str) -> None:
    for _ in range(2):
        database = open_database(database_url)
        assert database.scalar(sa.select(sa.func.count()).select_from(RevisionRow)) == 1
        database.close()


def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    started = [start(victim.migrate, database_url) for _ in range(4)]
    for _, pipe in started:
        pipe.send("now")
    assert [finish(*each) for each in started] == [0, 0, 0, 0]


def test_sqlite_is_set_up_for_many(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000}
    database.close()


def test_a_write_is_all_or_nothing(database_url: str) -> None:
    database = open_database(database_url)

    def fail() -> None:
        with database.write() as session:
            session.execute(sa.update(RevisionRow).values(revision=9))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert database.scalar(sa.select(RevisionRow.revision)) == 0
    database.close()


def test_a_reader_sees_one_state(database_url: str) -> None:
    database = open_database(database_url)
    with database.read() as session:
        assert session.scalar(sa.select(RevisionRow.revision)) == 0
        with database.write() as other:
            other.execute(sa.update(RevisionRow).values(revision=1))
        assert session.scalar(sa.select(RevisionRow.revision)) == 0
    assert database.scalar(sa.select(RevisionRow.revision)) == 1
    database.close()


def test_a_database_that_is_gone_is_told_in_one_line(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(database_url)

    def refuse(*_: object, **__: object) -> None:
        raise database.engine.dialect.loaded_dbapi.OperationalError("no route\nto host")  # type: ignore[attr-defined]

    database.close()
    monkeypatch.setattr(database.engine.dialect, "connect", refuse)
    one = sa.select(RevisionRow.revision)
    with pytest.raises(DatabaseError, match="no route to host"):
        database.scalar(one)
    for session_of in (database.read, database.write):
        with pytest.raises(DatabaseError, match="no route to host"), session_of() as session:
            session.scalar(one)
    database.close()


def test_a_writer_that_waits_in_vain(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters_registry.database.BUSY_TIMEOUT_S", 0.05)
    database = open_database(sqlite_url)

    def wait_for_oneself() -> None:
        with database.write() as holder, database.write() as waiting:
            for session in (holder, waiting):
                session.execute(sa.update(RevisionRow).values(revision=1))

    with pytest.raises(DatabaseError, match="locked"):
        wait_for_oneself()
    with database.write() as session:
        session.execute(sa.update(RevisionRow).values(revision=1))
    database.close()


def test_a_mistake_of_ours_is_no_fault_of_the_database(database_url: str) -> None:
    database = open_database(database_url)
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        session.add(RevisionRow(id=1, revision=0))
    database.close()


def test_times_keep_their_meaning(database_url: str) -> None:
    database = open_database(database_url)
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone(timedelta(hours=5)))
    fields = {"actor": "a", "action": "b", "name": "c", "agent": "d", "detail": "e"}
    with database.write() as session:
        session.add(AuditRow(at=at, **fields))
    with database.read() as session:
        stored = session.scalars(sa.select(AuditRow.at)).one()
        assert stored == at
        assert stored.tzinfo is UTC
    with pytest.raises(sa.exc.StatementError, match="without a zone"), database.write() as session:
        session.add(AuditRow(at=datetime(2026, 1, 2), **fields))
    database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "malformed"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("mysql://host/db", "not supported"),
        ("sqlite:////proc/nowhere/a.db", "cannot create"),
        ("postgresql://me:hunter2@127.0.0.1:9/none", "cannot open database"),
    ],
)
def test_unusable_urls(url: str, words: str) -> None:
    with pytest.raises(DatabaseError, match=words) as caught:
        open_database(url)
    assert "hunter2" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_database_of_a_newer_version(sqlite_url: str) -> None:
    open_database(sqlite_url).close()
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(DatabaseError, match="another version"):
        open_database(sqlite_url)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("not a database at all, just text" * 100)
    with pytest.raises(DatabaseError, match="cannot open"):
        open_database(f"sqlite:///{tmp_path / 'a.db'}")

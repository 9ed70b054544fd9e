"""The one database of the project: SQLite (WAL) by default, PostgreSQL by URL; threads and processes may share it.

`open_database(url)` brings the schema up to date and returns a `Database`. Tables of every package derive from `Base`
and their migrations join the one Alembic history in `adapters_registry/migrations`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Session

from adapters_registry.errors import RegistryError

BUSY_TIMEOUT_S = 30.0
MIGRATION_LOCK = 0x6C6F7261646F636B
"""key of PostgreSQL's advisory lock ("loradock" in ASCII)"""
MIGRATIONS = Path(__file__).parent / "migrations"
_WRITES = "loradock_writes"


class DatabaseError(RegistryError):
    """The database cannot be opened, brought up to date, or reached."""

    code = "database_unavailable"


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar = {float: sa.Float}  # SQLAlchemy 2.0 and 2.1 differ in what they choose
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A point in time, always aware and in UTC (SQLite itself forgets the zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Store UTC; a naive time is a mistake of the caller."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """Sessions over one engine. Thread-safe; every session belongs to one thread.

    All methods raise DatabaseError when the database cannot be reached, is locked for too long or out of room.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        # SQLite: take the write lock at once, because a reader that turns writer later cannot wait for it
        self._writer = engine.execution_options(**{_WRITES: True})
        if engine.dialect.name == "sqlite":
            self._reader = engine
            self._single = engine
        else:
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one consistent state throughout."""
        with self._reached(), Session(self._reader) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes commit when the block ends, or not at all."""
        with self._reached(), Session(self._writer) as session, session.begin():
            yield session

    def scalar(self, statement: sa.Select[tuple[Any]]) -> Any:
        """The one value of a single statement, with as few round trips as the database allows."""
        with self._reached(), self._single.connect() as connection:
            return connection.scalar(statement)

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Tell faults of the database as such; those of a statement are mistakes of ours and stay what they are."""
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise DatabaseError(f"cannot use database {shown}: {_reason(error)}") from error


def open_database(url: str) -> Database:
    """Bring the schema up to date and return the database. Raises DatabaseError, in one line without the password."""
    engine = create_engine(url)
    try:
        _upgrade(engine, "head")
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the schema to `revision`. Several processes may do so at once: one works, the others wait."""
    engine = create_engine(url)
    try:
        _upgrade(engine, revision)
    finally:
        engine.dispose()


def create_engine(url: str) -> sa.Engine:
    """An engine as this project uses it; opens no connection. Raises DatabaseError for an unusable URL."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise DatabaseError("the database URL is malformed", param="database_url") from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(parsed)
    if backend != "postgresql":
        raise DatabaseError(f"database {backend!r} is not supported: use sqlite or postgresql", param="database_url")
    try:
        return sa.create_engine(parsed, pool_pre_ping=True)
    except ImportError as error:
        raise DatabaseError(
            f"{parsed.drivername} needs its driver: install loradock[postgres]", param="database_url"
        ) from error


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise DatabaseError("SQLite needs a file, because several threads and processes share it", param="database_url")
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"cannot create the folder of {url.database}: {error.strerror}") from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself; `_begin_sqlite` does
    _use_wal(connection)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, once in a database's life; two first users meet a lock that the busy timeout does not cover."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(engine: sa.Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    shown = engine.url.render_as_string(hide_password=True)
    try:
        with engine.execution_options(**{_WRITES: True}).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except CommandError as error:
        raise DatabaseError(f"{shown} was written by another version of loradock: {error}") from error
    except sa.exc.DBAPIError as error:
        raise DatabaseError(f"cannot open database {shown}: {_reason(error)}") from error


def _reason(error: sa.exc.SQLAlchemyError) -> str:
    """What the driver says, on one line, without the statement."""
    return " ".join(str(getattr(error, "orig", None) or error).split())

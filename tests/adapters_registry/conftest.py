from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters_registry import AdapterRegistry, BaseModelSpec, Database, open_database
from adapters_registry.database import create_engine
from tests.adapters_registry.build import write_base

POSTGRES = "LORADOCK_TEST_POSTGRES_URL"


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_args: Any) -> None:
        pass


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    """A web server on loopback, by URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of its own: a file, or a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    if POSTGRES not in os.environ:
        pytest.skip(f"{POSTGRES} is not set")
    server, schema = sa.make_url(os.environ[POSTGRES]), f"test_{uuid.uuid4().hex}"
    admin = create_engine(server.render_as_string(hide_password=False))
    with admin.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
    url = server.update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with admin.begin() as connection:
        connection.execute(sa.schema.DropSchema(schema, cascade=True))
    admin.dispose()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The test's folder over HTTP, by Python's own server, which serves no ranges."""
    with serving(partial(QuietFiles, directory=str(tmp_path))) as url:
        yield url


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is up to date, to start from: copying it takes a tenth of the time that migrating does."""
    file = tmp_path_factory.mktemp("migrated") / "registry.db"
    open_database(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def base(tmp_path: Path) -> BaseModelSpec:
    return BaseModelSpec.from_folder(write_base(tmp_path / "base"), "tiny-base", ["acme/Tiny-Base"], max_lora_rank=16)


@pytest.fixture
def any_database(database_url: str, migrated: Path, tmp_path: Path) -> Iterator[Database]:
    if database_url.startswith("sqlite"):
        shutil.copyfile(migrated, tmp_path / "registry.db")
    database = open_database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(sqlite_url: str, migrated: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copyfile(migrated, tmp_path / "registry.db")
    database = open_database(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def any_registry(any_database: Database, base: BaseModelSpec, tmp_path: Path) -> AdapterRegistry:
    """On SQLite and on PostgreSQL: for what depends on the database."""
    return AdapterRegistry(any_database, tmp_path / "home", bases={base.name: base})


@pytest.fixture
def registry(database: Database, base: BaseModelSpec, tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(database, tmp_path / "home", bases={base.name: base}, max_bytes=8 << 20)

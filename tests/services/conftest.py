"""Real services on the loopback: PostgreSQL in a folder of its own, and a server that speaks S3.

`make test-services` installs what is needed and runs these; `make test` leaves them out.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

WANTED = os.environ.get("LACONIC_SERVICES") == "1"
collect_ignore_glob = [] if WANTED else ["test_*.py"]
USER = "postgres"  # PostgreSQL refuses to run as root


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_postgres(*command):
    """Runs a command as the user of PostgreSQL."""
    program = max(Path("/usr/lib/postgresql").glob(f"*/bin/{command[0]}"))
    prefix = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
    subprocess.run(
        [*prefix, str(program), *map(str, command[1:])], check=True, cwd="/",
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="session")
def postgres():
    """The address of an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="laconic-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, pwd.getpwnam(USER).pw_uid)
    port, data = free_port(), folder / "data"
    as_postgres("initdb", "-D", data, "-A", "trust", "-U", "laconic")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    as_postgres("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql://laconic@127.0.0.1:{port}/postgres"
    finally:
        as_postgres("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3():
    """Options of a file system on a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "test", "secret": "test", "endpoint_url": f"http://{host}:{port}"}
    server.stop()

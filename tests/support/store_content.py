"""What a database holds on its disk."""

from pathlib import Path

import psycopg


def everything_in(store_url: str) -> bytes:
    """All that the database has on its disk, or would send."""
    if not store_url.startswith("postgres"):
        return b"".join(path.read_bytes() for path in Path(store_url).parent.iterdir() if "ledger.db" in path.name)
    with psycopg.connect(store_url) as connection:
        names = [row[0] for row in connection.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')")]
        own = [name for name in names if not name.startswith(("pg_", "sql_"))]
        rows = [connection.execute(f'SELECT t::text FROM "{name}" t').fetchall() for name in own]
    return str(rows).encode()

"""The brain that `overnight init` writes: small, commented and valid."""

from pathlib import Path

FILES = ("README.md", "routing.yaml", "prompts/triage.md")


def write_starter(folder: Path) -> list[Path]:
    """Write the starter brain to `folder`, which is created if missing. Returns the written files.

    Raises:
        FileExistsError: one of the files exists; nothing is written.
    """
    taken = [folder / name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if taken:
        names = ", ".join(map(str, taken))
        raise FileExistsError(
            f"{names}: already exists, so nothing was written. Move it away, or choose another folder"
        )
    written: list[Path] = []
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as new:  # "x" fails for a file created since the check above
            new.write(Path(__file__).parent.joinpath(name).read_bytes())
        written.append(path)
    return written

"""The brain that `overnight init` writes: small, commented, and correct as it stands."""

from pathlib import Path

FILES = ("README.md", "routing.yaml", "prompts/triage.md")


def write_starter(folder: Path) -> list[Path]:
    """Write the starter brain into `folder` (made if missing) and return the files written.

    Raises `FileExistsError`, and writes nothing, when one of its files is already there.
    """
    taken = [folder / name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if taken:
        names = ", ".join(map(str, taken))
        raise FileExistsError(f"{names}: already there, so nothing was written. Move it away, or choose another folder")
    written: list[Path] = []
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as new:  # x: also a file that appeared since the look above is left alone
            new.write(Path(__file__).parent.joinpath(name).read_bytes())
        written.append(path)
    return written

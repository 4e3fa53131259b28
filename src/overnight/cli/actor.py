"""The actor that a command records."""

import getpass

from overnight.domain import check_identifier


def operator(by: str | None = None) -> str:
    """The name from --by, else the user of this system. Raises BadInput."""
    if by is not None:
        return check_identifier(by, "--by")
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "operator"

"""The layers of jobs/: every file belongs to one, and the public names are pinned."""

import tomllib
from pathlib import Path

import overnight

ROOT = Path(__file__).parents[2]

PUBLIC = """CANNOT_TELL NOT_DONE Approval BadInput ChatAnswer Done EffectFailed HumanAnswer JobFailed JobParked ModelFailed
NotDone OvernightError Retry StepFailed about approval ask attach chat effect job now prompt random run sleep step timeout uuid"""


def test_every_file_of_jobs_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["overnight.jobs"]]
    listed = [name for layer in layers for name in layer.split(" | ")]
    folder = ROOT / "src" / "overnight" / "jobs"
    files = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py") if path.stem != "__init__"]
    assert sorted(listed) == sorted(".".join(path.parts) for path in files)


def test_public_surface_is_pinned() -> None:
    assert overnight.__all__ == sorted(PUBLIC.split())
    for name in overnight.__all__:
        assert getattr(overnight, name) is not None

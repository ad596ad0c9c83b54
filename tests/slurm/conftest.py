"""One cluster for all tests that do not break it, and a directory of runs for each test."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from slurm.box import Box, missing
from slurm.harness import SHORT, Cluster, Undisturbed, frozen_until_its_warning, variables


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a SLURM; where there is none, the reason says what is missing."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    lack = missing() if here else None
    for item in here:
        item.add_marker(pytest.mark.slurm)
        if lack:
            item.add_marker(pytest.mark.skip(reason=f"no SLURM here: {lack}"))
    # These wait for a run that is submitted at the start; others use the time.
    items.sort(key=lambda item: item.path.name == "test_interruptions.py")


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A cluster with eight CPUs that ends with the tests, however they end."""
    with Box(tmp_path_factory.mktemp("slurm") / "box") as started:
        yield started


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of all jobs; what one has compiled, the next finds."""
    return variables(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def undisturbed(
    box: Box, shared: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    """A run that nothing stops, and one that reaches its time limit, submitted before all others."""
    cluster = Cluster(box, tmp_path_factory.mktemp("undisturbed") / "runs", shared)
    apart = Cluster(box, tmp_path_factory.mktemp("limited") / "runs", shared)
    [run] = cluster.submit(*SHORT, "hardware=slurm_cpu")
    with ThreadPoolExecutor(1) as beside:
        yield Undisturbed(cluster, run, beside.submit(frozen_until_its_warning, apart))
        beside.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def cluster(box: Box, shared: dict[str, str], tmp_path: Path, undisturbed: Undisturbed) -> Iterator[Cluster]:
    """The shared cluster, and a directory of runs of this test's own."""
    made = Cluster(box, tmp_path / "runs", shared)
    yield made
    for path in made.runs.rglob("job.json"):
        box.ask("scancel", made.job_id(path.parent))

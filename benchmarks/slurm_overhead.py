"""What our way to SLURM costs over bare sbatch, on a throw-away cluster of this machine (needs slurm-wlm).

    python benchmarks/slurm_overhead.py [--jobs 100] [--submissions 10] [--rounds 1]

First the time from typing a command until its job script starts: `sbatch script` against `python launch.py
... wait=false`, in turns, medians. Then arrays of short runs: bare sbatch, whose tasks call
`python -m repro.tasks RUN_DIR` for directories that are prepared already, against the same runs submitted by
launch.py. Wall-clock time is from typing to the end of the last job; CPU time is that of all jobs, for
machines that are shared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from slurm.box import Box  # noqa: E402

from repro import config, tasks  # noqa: E402
from repro.run_directory import RunDirectory  # noqa: E402

# A second or two, most of it imports; W&B and figures would only hide what is looked for.
RUN = ["paper/induction_heads=toy_model", "analysis.iterations=20", "figures=null", "tracking=disabled"]
PROFILE = ["hardware=slurm_cpu", "hardware.cpus=1", "hardware.memory_gb=1"]
AT_A_TIME = os.cpu_count() or 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help="runs in an array")
    parser.add_argument("--submissions", type=int, default=10, help="of each kind, for the latency")
    parser.add_argument("--rounds", type=int, default=1, help="arrays of each kind, in turns")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-overhead-") as folder:
        with Box(Path(folder) / "box", cpus=AT_A_TIME) as box:
            latency(box, Path(folder), given.submissions)
            arrays(box, Path(folder), given.jobs, given.rounds)


def latency(box: Box, folder: Path, submissions: int) -> None:
    """Seconds until the first line of a job script runs."""
    took: dict[str, list[float]] = {"sbatch": [], "launch.py": []}
    for number in range(submissions):
        for kind in took:
            mark = folder / f"{kind}-{number}"
            note = f"date +%s.%N > {mark}"
            begin = time.time()
            if kind == "sbatch":
                box.ask("sbatch", "--output=/dev/null", "--wrap", note)
            else:
                launch(box, folder / "runs", f"seed={number}", f"hardware.setup=['{note}']")
            wait_until_idle(box)
            took[kind].append(float(mark.read_text()) - begin)
    for kind, times in took.items():
        print(f"{kind:10s} command to start of the job: median {statistics.median(times):.2f} s "
              f"({min(times):.2f} to {max(times):.2f}, {submissions} times)", flush=True)  # fmt: skip


def arrays(box: Box, folder: Path, jobs: int, rounds: int) -> None:
    """Wall-clock and CPU seconds of whole arrays, and what ours adds."""
    ways = {"sbatch": bare, "launch.py": ours}
    wall: dict[str, list[float]] = {kind: [] for kind in ways}
    cpu: dict[str, list[float]] = {kind: [] for kind in ways}
    for number in range(rounds):
        for kind, way in ways.items():
            runs = folder / f"{kind}-runs-{number}"
            seconds, used = way(box, runs, jobs)
            done = sum(RunDirectory(path.parent).is_done() for path in runs.rglob("status.json"))
            assert done == jobs, f"{kind}: {done} of {jobs} runs are done"
            wall[kind].append(seconds)
            cpu[kind].append(used)
    for kind in ways:
        print(f"{kind:10s} array of {jobs}, {AT_A_TIME} at a time: {statistics.median(wall[kind]):.1f} s, "
              f"CPU time {statistics.median(cpu[kind]) / jobs:.2f} s a job", flush=True)  # fmt: skip
    added = {name: statistics.median(times["launch.py"]) / statistics.median(times["sbatch"]) - 1
             for name, times in (("wall-clock", wall), ("CPU", cpu))}  # fmt: skip
    print("added:     " + ", ".join(f"{share:+.1%} {name} time" for name, share in added.items()))


def bare(box: Box, runs: Path, jobs: int) -> tuple[float, float]:
    """The same work without us: directories are made beforehand, and not part of the time."""
    words = [*RUN, *PROFILE, f"seed=range(0,{jobs})", f"runs_dir={runs}"]
    directories = []
    for task in tasks.tasks(config.compose_all(words, True, ROOT)):
        tasks.prepare(task)
        directories.append(str(task.directory))
    (runs / "list").write_text("\n".join(directories) + "\n")
    variables = "JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 NPROC=1"
    script = runs / "job.sh"
    script.write_text(
        f'#!/bin/bash\ncd {ROOT}\nexport {variables} CUDA_VISIBLE_DEVICES=""\n'
        f'exec {sys.executable} -u -m repro.tasks "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {runs}/list)"\n'
    )
    (runs / "logs").mkdir()
    limit = f"--array=0-{jobs - 1}"
    begin, used = time.time(), box.cpu_seconds()
    box.ask("sbatch", limit, "--mem=1024M", f"--output={runs}/logs/%a", str(script))
    wait_until_idle(box)
    return time.time() - begin, box.cpu_seconds() - used


def ours(box: Box, runs: Path, jobs: int) -> tuple[float, float]:
    """As a user does it."""
    begin, used = time.time(), box.cpu_seconds()
    launch(box, runs, "-m", f"seed=range(0,{jobs})", "hardware.array_parallelism=1000")
    print(f"launch.py  back with the prompt after {time.time() - begin:.1f} s", flush=True)
    wait_until_idle(box)
    return time.time() - begin, box.cpu_seconds() - used


def launch(box: Box, runs: Path, *words: str) -> None:
    """Submit and return."""
    command = [sys.executable, "launch.py", *RUN, *PROFILE, *words, f"runs_dir={runs}", "wait=false"]
    done = subprocess.run(command, cwd=ROOT, env=box.env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_until_idle(box: Box) -> None:
    """Until no job waits or runs."""
    while box.ask("squeue", "--noheader"):
        time.sleep(0.1)


if __name__ == "__main__":
    main()

"""`python -m actpatch.runs`: `show`, `work` and `plan` for a folder, with nothing to install or to start.

It only reads what is typed, and says errors in a sentence; the work is done elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

EXAMPLE = """in a SLURM array job, --array=1-16:

  python -m actpatch.runs work runs/ioi-edges --shard $SLURM_ARRAY_TASK_ID/16
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, 1 where units are lacking at the end, 2 for what was refused."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.command == "work" and not asked.ray and (asked.address, asked.workers) != (None, None):
        parser.error("--address and --workers are about --ray, which is not given")
    # What takes seconds to import is imported once it is known what for.
    from actpatch.runs.folder import LACK, RunFolder

    try:
        if asked.command == "work":
            from actpatch.runs.cluster import run_on_ray
            from actpatch.runs.units import Shard
            from actpatch.runs.worker import work_on

            share = None if asked.shard is None else Shard.from_text(asked.shard)
            folder = RunFolder(asked.folder)
            how = {"device": asked.device, "batch_size": asked.batch_size}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", f".*{LACK}")  # it is printed below, in a line of its own
                if asked.ray:
                    run_on_ray(asked.folder, address=asked.address, workers=asked.workers, **how)
                else:
                    work_on(asked.folder, shard=asked.shard, **how)
            spec = folder.read_spec()
            every = range(len(spec.units))
            wanted = {*(every if share is None else share.of_units(every))}
            if lacking := wanted - {*folder.done(spec)}:
                print(folder.told_of_lacking(len(spec.units), sorted(lacking)), file=sys.stderr)
            _show(asked.folder)
            return int(bool(lacking))
        if asked.command == "plan":
            from actpatch.runs.plan import plan_of_folder

            print(plan_of_folder(asked.folder, device=asked.device))
        else:
            _show(asked.folder)
    except (ValueError, OSError, ImportError) as error:
        print(f"python -m actpatch.runs {asked.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was finished is stored; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _show(folder: Path) -> None:
    from actpatch.runs.progress import progress_of

    print(progress_of(folder))


def _parser() -> argparse.ArgumentParser:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m actpatch.runs", description="Runs that are stored in a folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="how far it is: units, rate, time left, failures")
    work = commands.add_parser("work", help="go on with it", epilog=EXAMPLE, formatter_class=how)
    plan = commands.add_parser("plan", help="what is asked, and what it takes here")
    for command in (show, work, plan):
        command.add_argument("folder", type=Path, help="of a run that an experiment with store= has begun")
    for command in (work, plan):
        command.add_argument("--device", help="where to load the model; left out: CUDA where there is one")
    spread = work.add_mutually_exclusive_group()
    spread.add_argument("--shard", metavar="K/N", help="work on one of N shares alone, the Kth, counted from 1")
    spread.add_argument("--ray", action="store_true", help="work on all cores or GPUs, or on a cluster, with Ray")
    work.add_argument(
        "--address", metavar="HOST:PORT", help="of the Ray cluster, or auto; left out: one of this machine's own"
    )
    work.add_argument("--workers", type=int, metavar="N", help="Ray actors; left out: one per GPU, or else per core")
    work.add_argument("--batch-size", type=int, help="most rows run together; left out: by the free memory")
    return parser

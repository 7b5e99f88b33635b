"""`python -m tests.planted [name …]`: every planted bug, what caught it, and how long that took."""

from __future__ import annotations

import sys

from tests.planted.bugs import BUGS
from tests.planted.patching import DoesNotApply
from tests.planted.planting import copy_of_the_checkout, plant, run


def main(names: list[str]) -> int:
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    if not chosen:
        print(f"no such bug; there are {', '.join(bug.name for bug in BUGS)}")
        return 2
    tests = sorted({test for bug in chosen for test in bug.caught_by})
    with copy_of_the_checkout() as folder:
        sound = run(folder, tests)
    if sound.code:
        print(sound.output)
        print("these tests fail without any bug planted: nothing can be learnt from them")
        return 1
    width = max(len(bug.name) for bug in chosen)
    print(f"{'bug':<{width}}  {'seconds':>7}  caught by")
    missed = 0
    for bug in chosen:
        try:
            verdict = plant(bug)
        except DoesNotApply as error:
            print(f"{bug.name:<{width}}  {'':>7}  DOES NOT APPLY: {str(error).splitlines()[0]}")
            missed += 1
            continue
        told = (
            ", ".join(bug.caught_by) if verdict.caught else f"NOT CAUGHT (pytest ended with {verdict.code})"
        )
        print(f"{bug.name:<{width}}  {verdict.seconds:>7.1f}  {told}", flush=True)
        if verdict.caught:
            print(f"{'':<{width}}  {'':>7}  {verdict.said}", flush=True)
        missed += not verdict.caught
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed else 0


sys.exit(main(sys.argv[1:]))

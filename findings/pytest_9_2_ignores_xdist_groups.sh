#!/usr/bin/env bash
# pytest 9.2.0, pytest-xdist 3.8.0 (the newest of both on 2026-11-29).
# Expected: under `--dist loadgroup` the tests that carry one `xdist_group` mark run on one worker, as with pytest 9.1.1.
# Happens: they run on all workers, with no error or warning. pytest-xdist writes the group's name into the private `_nodeid` of a test, and in
#   pytest 9.2.0 `nodeid` is no longer read from it.
# Seen: six tests of one group, two workers: with 9.1.1 one worker ran all six, with 9.2.0 both ran some.
# Means: a fixture that takes a model half a minute to make is made once per worker, and tests that share a port, a GPU or a cache meet each
#   other. selfprune's own suite built its dear fixtures twice; it leaves out pytest 9.2.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > test_group.py <<'PY'
import os
from pathlib import Path

import pytest


@pytest.mark.parametrize("i", range(6))
@pytest.mark.xdist_group("together")
def test_together(i):
    with Path("workers.txt").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
workers_with() {
    "${PYTHON:-python3}" -m venv "$work/env-$1"
    "$work/env-$1/bin/pip" install --quiet "pytest==$1" pytest-xdist==3.8.0
    rm -f workers.txt
    "$work/env-$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py > /dev/null
    sort -u workers.txt | wc -l
}
before=$(workers_with 9.1.1)
after=$(workers_with 9.2.0)
echo "workers that ran the six tests of one group: $before with pytest 9.1.1, $after with pytest 9.2.0"
[ "$before" = 1 ] && [ "$after" = 2 ]

#!/usr/bin/env bash
# torch 2.13.0, CPU.
# Expected: logsumexp of a row, as all that works row by row, gives the same bits whether the row comes alone or in a batch, with any number of threads.
# Happens: with several threads torch shares the sum of a single row out among them, and the rows of a batch one by one; so the last bits of a single row are others.
#   From two rows on they are those of one thread. log_softmax of a row alone is the same in any company.
# Seen: 256 rows of 49,152 logits, each alone against the batch: with one thread 256 equal; with two threads 247, in pairs 256, and by log_softmax alone 256.
# Means: scores of one token, or of batches whose last is a single row, repeat only with the same number of threads; work on at least as many rows as there are
#   threads, or use log_softmax.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy
cd "$work"
"$work/env/bin/python" - <<'PY'
import torch

rows = 3 * torch.randn(256, 49_152, generator=torch.Generator().manual_seed(0))


def n_equal(reduce, n_rows):
    whole = reduce(rows)
    parts = torch.cat([reduce(part) for part in rows.split(n_rows)])
    return sum(torch.equal(a, b) for a, b in zip(whole, parts))


def logsumexp(part):
    return part.logsumexp(dim=-1)


def log_softmax(part):
    return part.log_softmax(dim=-1)


found = {}
for n_threads in (1, 2):
    torch.set_num_threads(n_threads)
    found[n_threads] = [n_equal(logsumexp, 1), n_equal(logsumexp, 2), n_equal(log_softmax, 1)]
    print(n_threads, "threads: rows equal alone, in pairs, by log_softmax alone:", found[n_threads])
assert found[1] == [256, 256, 256], found
assert found[2][0] < 256 and found[2][1:] == [256, 256], found
PY

#!/usr/bin/env bash
# hydra-submitit-launcher 1.2.0 with submitit 1.5.4 and hydra-core 1.3.8.
# Expected: where the function of one job of a sweep raises, submitit's own record of that job says that it failed: its result holds
# the error, and its log says so, as submitit does of a function that it calls directly.
# Happens: Hydra's run_job catches the error inside the job and returns it as the value of the job, so that submitit pickles a
# success and logs "completed successfully". The error appears when the launching process looks at the value, and nowhere if that
# process is gone, which must stay alive for the whole sweep.
# Seen on 2026-11-30: exit code of the launching process 1; of two jobs, one of which raises, both logs say "completed
# successfully", and the result file of the one that raised is ("success", JobReturn with status FAILED).
# Means: the state that a cluster's tools and submitit show of a sweep of prunings says nothing about which runs failed. selfprune
# writes a record of its own per job (`selfprune sweep FOLDER`), with the reason.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hydra-core==1.3.8 hydra-submitit-launcher==1.2.0 submitit==1.5.4
cd "$folder"
cat > app.py <<'PY'
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    if config.value == 1:
        raise ValueError("this job fails")


main()
PY
code=0
venv/bin/python app.py -m +value=0,1 hydra/launcher=submitit_local hydra.sweep.dir=sweep hydra.launcher.timeout_min=1 \
    > output.txt 2>&1 || code=$?
grep -h "completed successfully" sweep/.submitit/*/*_log.out || true
venv/bin/python - "$code" <<'PY'
import pickle
import sys
from pathlib import Path

code = int(sys.argv[1])
logs = [path.read_text() for path in Path("sweep/.submitit").glob("*/*_log.out")]
said = sum("completed successfully" in log for log in logs)
results = [pickle.loads(path.read_bytes()) for path in Path("sweep/.submitit").glob("*/*_result.pkl")]
failed = [outcome for outcome, value in results if value.status.name == "FAILED"]
print(f"exit code {code}; {said} of {len(logs)} logs say 'completed successfully'; outcome of the job that raised: {failed}")
sys.exit(0 if (code, said, len(logs), failed) == (1, 2, 2, ["success"]) else 1)
PY

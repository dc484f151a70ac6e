#!/usr/bin/env bash
# hydra-ray-launcher 1.2.2, hydra-joblib-launcher 1.2.0 and joblib 1.6.0 (the newest of each on 2026-11-30).
# Expected: Hydra's two launchers for one machine, each of which asks for any joblib or any Ray below 3, install side by side.
# Happens: hydra-ray-launcher asks for cloudpickle<3, joblib 1.6.0 for cloudpickle>=3.0, so that pip refuses both together; asked for the
#   launchers alone, it falls back to joblib 1.5.3 without a word, and where joblib 1.6.0 was there before, it takes it away.
# Seen: pip ends with ResolutionImpossible for the two pins, and would install joblib 1.5.3 and cloudpickle 2.2.1 for the launchers alone.
# Means: an environment that is pinned with joblib 1.6 (scikit-learn's and lm-eval's dependency) cannot get Ray sweeps. selfprune's
#   constraints name joblib 1.5.3 and cloudpickle 2.2.1, with which all launchers run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/env"
pip=("$work/env/bin/pip" --disable-pip-version-check install --dry-run)
code=0
"${pip[@]}" hydra-ray-launcher==1.2.2 joblib==1.6.0 > "$work/both.txt" 2>&1 || code=$?
refused=$(grep -c "ResolutionImpossible" "$work/both.txt" || true)
"${pip[@]}" hydra-ray-launcher==1.2.2 hydra-joblib-launcher==1.2.0 > "$work/launchers.txt" 2>&1
chosen=$(grep "Would install" "$work/launchers.txt" | grep -o -E "\b(joblib|cloudpickle)-[0-9.]+[0-9]" | sort | tr '\n' ' ')
echo "with joblib 1.6.0: exit code $code, ResolutionImpossible named $refused times; for the launchers alone: $chosen"
[ "$code" = 1 ] && [ "$refused" -ge 1 ] && [ "$chosen" = "cloudpickle-2.2.1 joblib-1.5.3 " ]

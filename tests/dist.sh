#!/usr/bin/env bash
# Builds a wheel and an sdist of this checkout, installs each into a folder of its own, and runs it:  tests/dist.sh PYTHON
# What they need besides is that of PYTHON's environment, so nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/dist"
git ls-files -z --cached | tar -c --null --files-from=- | tar -x -C "$work/source"
(
    cd "$work/source"
    build="from setuptools import build_meta as b; b.build_sdist('../dist'); b.build_wheel('../dist')"
    "$python" -c "$build" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
)
cd "$work"
for file in dist/*; do
    rm -rf site
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target site "$file"
    export PYTHONPATH=$work/site
    found=$("$python" -P -c "import cloudjob; print(cloudjob.__file__)")
    [[ "$found" == "$work/site/"* ]] || { echo "$file: $found was run instead"; exit 1; }
    missing=$(cd source && find cloudjob -type f ! -path "*.egg-info/*" -exec test ! -e ../site/{} \; -print)
    [[ -z "$missing" ]] || { echo "$file lacks:" $missing; exit 1; }
    echo "$file: $("$python" -P -m cloudjob --version)"
done

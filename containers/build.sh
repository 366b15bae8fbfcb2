#!/usr/bin/env bash
# Builds the image:  containers/build.sh [cloudjob.sif] [options of apptainer build]
#   --build-arg LOCK=cpu                                             CPU wheels of torch instead of GPU wheels
#   --build-arg BOOTSTRAP=localimage --build-arg FROM=$PWD/base      a base of one's own instead of a registry's
#   --remote                                                         on a build service instead of here
# What pip needs at this site is taken from PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS (a folder), PIP_CERT or
# SSL_CERT_FILE and the proxy variables; it reaches the build alone and is not kept in the image.
set -euo pipefail
if [[ "${1:-}" == --help ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
fi
image=cloudjob.sif
if [[ "${1:-}" == *.sif ]]; then
    image=$1
    shift
fi
image=$(realpath -m "$image")
cd "$(dirname "$0")/.."
if ! command -v apptainer >/dev/null; then
    echo "build.sh: no apptainer on the PATH. On a cluster: module load apptainer; on a machine of your own: install" \
        "the package apptainer; without either, build elsewhere and copy cloudjob.sif here." >&2
    exit 2
fi

how=(--force "--mksquashfs-args=-comp zstd -Xcompression-level 3")
if ((EUID != 0)) && [[ " $* " != *" --remote "* ]]; then
    how+=(--fakeroot)
    grep -qs "^$(id -un):" /etc/subuid || echo "build.sh: $(id -un) is not in /etc/subuid; if the build fails for that" \
        "reason, ask the site for fakeroot, or use --remote." >&2
fi
# APPTAINERENV_* and binds over /mnt and /media (which every Debian has) reach %post and %test, and leave no trace.
passed=$(mktemp -d)
trap 'rm -rf "$passed"' EXIT
if [[ -s "${PIP_CERT:-${SSL_CERT_FILE:-}}" ]]; then
    cp "${PIP_CERT:-$SSL_CERT_FILE}" "$passed/ca.crt"
    how+=(--bind "$passed:/mnt")
    export APPTAINERENV_PIP_CERT=/mnt/ca.crt
fi
if [[ -d "${PIP_FIND_LINKS:-}" ]]; then
    how+=(--bind "$PIP_FIND_LINKS:/media")
    export APPTAINERENV_PIP_FIND_LINKS=/media
fi
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_DEFAULT_TIMEOUT http_proxy https_proxy no_proxy; do
    if [[ -n "${!name:-}" ]]; then export "APPTAINERENV_$name=${!name}"; fi
done
export APPTAINERENV_PIP_DISABLE_PIP_VERSION_CHECK=1

commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
apptainer build "${how[@]}" --build-arg "COMMIT=$commit" "$@" "$image" Apptainer.def
echo "$image: $(du -h "$image" | cut -f1), packages:"
apptainer inspect "$image" | sed -n 's/^cloudjob.packages: //p' | tr ' ' '\n'

#!/usr/bin/env bash
# Installs what make cluster-test needs, on a disposable Debian machine and as root: SLURM, munge, and what builds and
# runs an image. Debian 12 has no apptainer, and sid's wants a newer libc: that one is put beside it, not under the system.
set -euo pipefail
((EUID == 0)) || { echo "not root: ask for the packages slurm-wlm, munge, debootstrap and apptainer" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
commands=(slurmctld slurmd munged debootstrap mksquashfs squashfuse patchelf shellcheck)
export PATH=$PATH:/usr/sbin
if ! command -v "${commands[@]}" >/dev/null || [[ $(command -v "${commands[@]}" | wc -l) -lt ${#commands[@]} ]]; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge debootstrap squashfs-tools squashfuse patchelf \
        shellcheck >/dev/null
fi
if command -v apptainer >/dev/null; then exit 0; fi
if apt-get install -y -qq --no-install-recommends apptainer >/dev/null 2>&1; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
mirror=${mirror:-$(awk '/^deb /{print $2; exit}' /etc/apt/sources.list)}
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs}
touch "$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "$work"; Dir::State::lists "$work/lists"; Dir::State::status "$work/status"; Dir::Cache "$work/cache";
Acquire::Languages "none"; APT::Sandbox::User "root";
CONF
export APT_CONFIG=$work/apt.conf
apt-get -qq update
(cd "$work/debs" && apt-get -qq download apptainer libc6 libseccomp2 libsqlite3-0)
unset APT_CONFIG

libraries=/opt/apptainer-libraries
for package in libc6 libseccomp2 libsqlite3-0; do dpkg -x "$work/debs/${package}"_*.deb "$work/libraries"; done
dpkg -x "$work"/debs/apptainer_*.deb "$work/app"
mkdir -p "$libraries"
find "$work/libraries" -name '*.so*' -exec cp -d {} "$libraries/" \;
loader=$(find "$work/libraries" -type f -name 'ld-linux*')
cp --remove-destination "$loader" "$libraries/"
for file in "$work"/app/usr/bin/apptainer "$work"/app/usr/lib/*/apptainer/bin/starter; do
    patchelf --set-interpreter "$libraries/$(basename "$loader")" --force-rpath --set-rpath "$libraries" "$file"
done
# Root inside a virtual machine may lack a capability that apptainer asks for, also in the calls that it makes of itself.
if ((!(0x$(sed -n 's/^CapBnd:\t//p' /proc/self/status) >> 24 & 1))); then
    mv "$work/app/usr/bin/apptainer" "$work/app/usr/bin/apptainer.real"
    cat >"$work/app/usr/bin/apptainer" <<'WRAPPER'
#!/bin/sh
export APPTAINER_DROP_CAPS="${APPTAINER_DROP_CAPS-CAP_SYS_RESOURCE}"
exec /usr/bin/apptainer.real "$@"
WRAPPER
    chmod 755 "$work/app/usr/bin/apptainer"
fi
rm -rf "$work/app/usr/share"
cp -a "$work/app/." /
apptainer --version

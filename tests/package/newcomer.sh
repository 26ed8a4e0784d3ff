#!/usr/bin/env bash
# What a newcomer sees: an empty Debian 12, a clone of HEAD, and the README's two commands.
#
#   newcomer.sh [demo | test]        default: both
#
# As root; needs debootstrap, git and about 6 GB in TMPDIR. Not part of CTest.
#
#   RINGATTN_MIRROR   Debian mirror; default: debootstrap's own
#   RINGATTN_KEEP=1   keeps the tree and says where it is
#
# How this machine reaches the network (apt's sources and options, proxies, certificates, the configuration of pip, cargo, Maven and Go)
# is copied into the tree where it differs from the default; nothing else is.
set -euo pipefail

commands=("${@:-demo}")
[[ $# -gt 0 ]] || commands=(demo test)
for command in "${commands[@]}"; do
  [[ $command == demo || $command == test ]] || { echo "newcomer.sh: demo or test, not $command" >&2; exit 1; }
done
[[ $(id -u) -eq 0 ]] || { echo "newcomer.sh: chroot and mount need root" >&2; exit 1; }
for tool in debootstrap git; do
  command -v "$tool" >/dev/null || { echo "newcomer.sh: needs $tool" >&2; exit 1; }
done

repository=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
tree=$(mktemp -d "${TMPDIR:-/tmp}/newcomer.XXXXXX")
mounts=()

clean_up() {
  local status=$? i
  trap - EXIT
  for ((i = ${#mounts[@]} - 1; i >= 0; --i)); do umount "${mounts[i]}" || umount --lazy "${mounts[i]}"; done
  if grep -q " $tree/" /proc/mounts; then
    echo "newcomer.sh: something is still mounted below $tree; it is left there" >&2
  elif [[ -n ${RINGATTN_KEEP-} ]]; then
    echo "newcomer.sh: the tree is $tree"
  else
    rm -rf --one-file-system "$tree"
  fi
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

copy() {
  local file
  for file; do
    [[ -f $file ]] || continue
    mkdir -p "$tree$(dirname "$file")"
    cp --dereference "$file" "$tree$file"
  done
}

mount_in() {
  local target=$tree/$1
  shift
  mkdir -p "$target"
  mount "$@" "$target"
  mounts+=("$target")
}

echo "== an empty Debian 12 in $tree"
debootstrap --variant=minbase bookworm "$tree" ${RINGATTN_MIRROR:+"$RINGATTN_MIRROR"}

if compgen -G '/etc/apt/sources.list.d/*.sources' >/dev/null || [[ -s /etc/apt/sources.list ]]; then
  if grep -qsE 'bookworm' /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; then
    rm -f "$tree/etc/apt/sources.list"
    copy /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources
  fi
fi
for file in /etc/apt/apt.conf.d/* /etc/apt/auth.conf.d/*; do
  if grep -qs -e '^Acquire::[hC]' -e '^machine' "$file"; then copy "$file"; fi
done
copy /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates/*.crt
copy /etc/pip.conf "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" "$HOME/.cargo/config.toml" "$HOME/.m2/settings.xml" "$HOME/.config/go/env"
environment=(HOME=/root LANG=C.UTF-8 TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL CARGO_HTTP_CAINFO GOPROXY GOSUMDB MAVEN_OPTS; do
  if [[ -n ${!name-} ]]; then environment+=("$name=${!name}"); fi
done

git clone --quiet "file://$repository" "$tree/root/libringattn"

mount_in proc -t proc proc
mount_in sys -t sysfs -o ro sysfs
mount_in dev --bind /dev
mount_in dev/shm -t tmpfs tmpfs

for command in "${commands[@]}"; do
  echo "== ./dev $command"
  SECONDS=0
  chroot "$tree" /usr/bin/env -i "${environment[@]}" /bin/bash -c "cd /root/libringattn && ./dev $command"
  echo "== ./dev $command: $((SECONDS / 60)) min $((SECONDS % 60)) s"
done

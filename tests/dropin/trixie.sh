#!/usr/bin/env bash
# Makes Debian 13 in a folder, for the tests of its Podman and its wireguard-go. Needs root, debootstrap and a Debian
# mirror; takes a minute or two.
#
#   tests/dropin/trixie.sh [DIR]        default: target/trixie
#
# It is not made again as long as the list of packages stays the same.
set -eu -o pipefail
cd "$(dirname "$0")/../.."

dir=${1:-target/trixie}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
packages=podman,passt,slirp4netns,netavark,aardvark-dns,crun,catatonit,uidmap,fuse-overlayfs,buildah,rootlesskit
packages+=,ca-certificates,dnsmasq-base,iproute2,iptables,iputils-ping,nftables,procps,wireguard-go
# Written last: it says that the folder is whole, and what is in it.
done=$dir/etc/usernet-packages

[ "$(cat "$done" 2>/dev/null)" != "$packages" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "$0: needs root, to make $dir" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "$0: debootstrap is not installed" >&2; exit 1; }
rm -rf --one-file-system "$dir"
mkdir -p "$(dirname "$dir")"
if ! debootstrap --variant=minbase --include="$packages" trixie "$dir" "$mirror" >"$dir.log" 2>&1; then
    tail -n 20 "$dir.log" >&2
    exit 1
fi
rm -rf "$dir.log" "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/*
echo "$packages" >"$done"

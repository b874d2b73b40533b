#!/bin/sh
# Run by vagrant as root in the new machine: a server, respaldo, and the server's data on the
# second disk. It may be run again.
set -eu
export DEBIAN_FRONTEND=noninteractive

# The newest package that make deb has left.
deb=$(ls -t /vagrant/dist/respaldo_*.deb 2>/dev/null | head -n 1)
if [ -z "$deb" ]; then
	echo "there is no package in dist: run make deb, then vagrant rsync and vagrant provision" >&2
	exit 1
fi
apt-get update -q
apt-get install -qy mariadb-server lvm2
apt-get install -qy --reinstall "$deb"

# The disk that nothing is mounted from, whatever this hypervisor calls it.
system=$(lsblk -nro PKNAME "$(findmnt -no SOURCE /)")
disk=$(lsblk -dnrpo NAME,TYPE | awk -v system="/dev/$system" '$2 == "disk" && $1 != system { print $1; exit }')
if ! respaldo check >/dev/null 2>&1; then
	respaldo prepare --device "$disk" --yes
fi
respaldo check
echo 'Ready: vagrant ssh -c "sudo sh /vagrant/packaging/vagrant/demo.sh"'

#!/bin/sh
# Makes a container behave as a PC whose power has just come on, and becomes its
# init. Docker starts it at each boot.
set -e

# Docker mounts the control groups read-only, and systemd lives from them. /sys
# itself stays read-only: in a container udev has no business with the devices of
# the computer, and does not start then.
for group in /sys/fs/cgroup /sys/fs/cgroup/*; do
	if mountpoint -q "$group"; then
		mount -o remount,rw,bind "$group"
	fi
done
mount --make-rshared / # as systemd has it on a PC: what the kubelet mounts, Pods see

# Docker keeps these three and writes them anew at each start; a PC keeps its own.
umount /etc/hosts /etc/hostname /etc/resolv.conf

address=$(hostname -I)
address=${address%% *}
last=${address##*.}
router=${address%.*}.1

if ! grep -qE '^[0-9a-f]{32}$' /etc/machine-id; then # the first boot
	tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
	hostname >/etc/hostname
	printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >/etc/hosts
	echo "nameserver $router" >/etc/resolv.conf
fi

# The address of the network card, which a machine keeps in whatever network.
# (Docker's --mac-address does not work between all of its versions.)
ip link set eth0 address "$(printf '02:4b:4d:00:00:%02d' $((last - 10)))"
# A way out that leads nowhere: a Service's address must have some route.
ip route replace default via "$router"

# What a PC has of its own, and a container shares with the computer.
cat /proc/sys/kernel/random/uuid >/run/boot-id
mount --bind /run/boot-id /proc/sys/kernel/random/boot_id
if [ -e /sys/class/dmi/id/product_uuid ]; then
	sed -E 's/(.{8})(.{4})(.{4})(.{4})/\1-\2-\3-\4-/' /etc/machine-id >/run/product-uuid
	mount --bind /run/product-uuid /sys/class/dmi/id/product_uuid
fi

# No machine sees the disks of the computer, so that none takes one for its own;
# but loop devices, for who wants to plug one in.
for list in /sys/block /sys/class/block; do
	mount -t tmpfs -o mode=755 loops-only "$list"
	for n in $(seq 0 31); do
		if [ -e "/sys/devices/virtual/block/loop$n" ]; then
			ln -s "/sys/devices/virtual/block/loop$n" "$list/loop$n"
		fi
	done
done
mknod -m 660 /dev/loop-control c 10 237
for n in $(seq 0 31); do
	mknod -m 660 "/dev/loop$n" b 7 "$n"
done

exec /sbin/init

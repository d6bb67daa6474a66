# LVM: a volume group on the disk of that name, with Debian's own settings but for what looks at other disks.
modprobe -a dm_mod dm_thin_pool dm_snapshot dm_zero virtio_blk
disk=/dev/disk/by-id/virtio-lvm
udevadm settle
cat >>/etc/lvm/lvmlocal.conf <<END
devices { filter = [ "a|^$(readlink -f $disk)\$|", "r|.*|" ] }
backup { backup = 0 archive = 0 }
activation { monitoring = 0 } # no dmeventd is here
END
vgcreate -q --yes lapilli-test "$disk"

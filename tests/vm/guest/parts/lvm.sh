# LVM: a volume group on the disk of that name, with a thin pool in its first half. udev has found the disks; what it
# does for each logical volume would take most of the time, so LVM makes its device nodes itself.
modprobe -a dm_mod dm_thin_pool dm_snapshot dm_zero virtio_blk
udevadm settle
disk=$(readlink -f /dev/disk/by-id/virtio-lvm) other=$(readlink -f /dev/disk/by-id/virtio-other)
udevadm control --exit
cat >>/etc/lvm/lvmlocal.conf <<END
devices {
    filter = [ "a|^$disk\$|", "a|^$other\$|", "r|.*|" ]
    obtain_device_list_from_udev = 0
    md_component_detection = 0
    multipath_component_detection = 0
}
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
backup { backup = 0 archive = 0 }
global { notify_dbus = 0 use_lvmpolld = 0 }
END
vgcreate -q --yes lapilli-test "$disk"
lvcreate -q --yes --size 200G --thinpool pool --zero y --errorwhenfull y lapilli-test

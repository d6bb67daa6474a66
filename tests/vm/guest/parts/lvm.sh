# LVM: volume groups on the disks of those names, with a thin pool in some. udev has found the disks; what it does
# for each logical volume would take most of the time, so LVM makes its device nodes itself.
modprobe -a dm_mod dm_thin_pool dm_snapshot dm_zero virtio_blk
udevadm settle
filter=
for name in lvm thin thick other service; do filter+="\"a|^$(readlink -f "/dev/disk/by-id/virtio-$name")\$|\", "; done
udevadm control --exit
cat >>/etc/lvm/lvmlocal.conf <<END
devices {
    filter = [ $filter "r|.*|" ]
    obtain_device_list_from_udev = 0
    md_component_detection = 0
    multipath_component_detection = 0
}
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 reserved_memory = 0 reserved_stack = 0 }
backup { backup = 0 archive = 0 }
global { notify_dbus = 0 use_lvmpolld = 0 }
END
vgcreate -q --yes lapilli-test "$(readlink -f /dev/disk/by-id/virtio-lvm)"
vgcreate -q --yes lapilli-thin "$(readlink -f /dev/disk/by-id/virtio-thin)"
vgcreate -q --yes lapilli-thick "$(readlink -f /dev/disk/by-id/virtio-thick)"
for group in lapilli-test lapilli-thin; do
    lvcreate -q --yes --extents 50%VG --thinpool pool --zero y --errorwhenfull y $group
done

# The kernel's targets, and its initiators.
modprobe -a loop sd_mod iscsi_tcp nvme-tcp dm_crypt
modprobe -a target_core_mod target_core_iblock target_core_file iscsi_target_mod nvmet nvmet-tcp
mkdir -p /etc/iscsi
printf 'InitiatorName=iqn.1994-05.com.redhat:contract\n' >/etc/iscsi/initiatorname.iscsi
cat >/etc/iscsi/iscsid.conf <<END
iscsid.startup = /bin/true
node.session.initial_login_retry_max = 1
END
iscsid

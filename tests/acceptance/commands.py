"""Every command of the clients `cinder` and `openstack` that is about block storage, and how it is tried.

A line is run as it stands, in this order; words in braces are looked up when their turn comes. What is not
tried is named with the reason.
"""

from __future__ import annotations

GROUPS = "not yet: groups are not served yet"
OLD_GROUPS = "not yet: consistency groups are not served yet"
BACKUPS = "not yet: backups are not served yet"
MIGRATION = "not yet: migration is not served yet"
REPLICATION = "not yet: replication is not served yet"
CLUSTER = "not tried: the service that was asked is in no cluster"

CINDER_LATER = {
    **dict.fromkeys(
        """group-create group-create-from-src group-delete group-disable-replication group-enable-replication
        group-failover-replication group-list group-list-replication-targets group-show group-snapshot-create
        group-snapshot-delete group-snapshot-list group-snapshot-show group-specs-list group-type-create
        group-type-default group-type-delete group-type-key group-type-list group-type-show group-type-update
        group-update""".split(),
        GROUPS,
    ),
    **dict.fromkeys(
        """cgsnapshot-create cgsnapshot-delete cgsnapshot-list cgsnapshot-show consisgroup-create
        consisgroup-create-from-src consisgroup-delete consisgroup-list consisgroup-show
        consisgroup-update""".split(),
        OLD_GROUPS,
    ),
    **dict.fromkeys(
        """backup-create backup-delete backup-export backup-import backup-list backup-reset-state
        backup-restore backup-show backup-update""".split(),
        BACKUPS,
    ),
    "migrate": MIGRATION,
    "failover-host": REPLICATION,
    "cluster-enable": CLUSTER,
    "cluster-disable": CLUSTER,
    "cluster-show": CLUSTER,
}

CINDER = """
version-list
api-version
help
list-extensions
list-filters
rate-limits
absolute-limits
availability-zone-list
service-list
get-pools --detail
get-capabilities {host}
cluster-list
work-cleanup
service-set-log INFO
service-get-log
freeze-host {host}
thaw-host {host}
service-disable {host} cinder-volume --reason because
service-enable {host} cinder-volume
type-create gold
type-list
type-show gold
type-update {type} --description words
type-key gold set a=b
extra-specs-list
type-default
type-create closed --is-public False
type-access-add --volume-type closed --project-id {project}
type-access-list --volume-type closed
type-access-remove --volume-type closed --project-id {project}
type-create locked
encryption-type-create --cipher aes-xts-plain64 --key-size 256 --control-location front-end locked luks
encryption-type-list
encryption-type-show locked
encryption-type-update --key-size 128 locked
encryption-type-delete locked
type-delete locked closed
default-type-set gold {project}
default-type-list
default-type-unset {project}
qos-create fast maxIOPS=1000
qos-list
qos-show {qos}
qos-key {qos} set minIOPS=1
qos-associate {qos} {type}
qos-get-association {qos}
qos-disassociate {qos} {type}
qos-disassociate-all {qos}
qos-delete {qos}
quota-show {project}
quota-defaults {project}
quota-usage {project}
quota-update {project} --volumes 50
quota-delete {project}
quota-class-show default
quota-class-update default --volumes 60
create 1 --name disk
list
show disk
summary
rename disk disc
metadata disc set a=b
metadata-show disc
metadata-update-all disc c=d
set-bootable disc true
readonly-mode-update disc true
readonly-mode-update disc false
image-metadata disc set k=v
image-metadata-show disc
extend disc 2
retype disc gold
upload-to-image --disk-format qcow2 disc picture
snapshot-create disc --name moment
snapshot-list
snapshot-show moment
snapshot-rename moment instant
snapshot-metadata instant set a=b
snapshot-metadata-show instant
snapshot-metadata-update-all instant c=d
snapshot-reset-state --state available instant
revert-to-snapshot instant
snapshot-manageable-list {pool}
snapshot-unmanage instant
snapshot-manage {volume} {left-snapshot} --name back
snapshot-delete back
reimage disc {image}
reset-state --state available disc
attachment-create {volume}
attachment-list
attachment-show {attachment}
attachment-update {attachment} --initiator iqn.1994-05.org.example:commands --ip 127.0.0.1 --host h
attachment-complete {attachment}
attachment-delete {attachment}
transfer-create disc --name offer
transfer-list
transfer-show {transfer}
transfer-delete {transfer}
transfer-create disc
transfer-accept {transfer} {key}
create 1 --name lost --volume-type {nowhere}
message-list
message-show {message}
message-delete {message}
force-delete lost
unmanage disc
manageable-list {pool}
manage {pool} {left-volume} --name found
delete found
type-delete gold
"""

OPENSTACK_LATER = {
    **dict.fromkeys(
        """volume group add volume|volume group create|volume group delete|volume group failover
        |volume group list|volume group remove volume|volume group set|volume group show
        |volume group snapshot create|volume group snapshot delete|volume group snapshot list
        |volume group snapshot show|volume group type create|volume group type delete|volume group type list
        |volume group type set|volume group type show""".replace("\n        ", "").split("|"),
        GROUPS,
    ),
    **dict.fromkeys(
        """consistency group add volume|consistency group create|consistency group delete
        |consistency group list|consistency group remove volume|consistency group set|consistency group show
        |consistency group snapshot create|consistency group snapshot delete|consistency group snapshot list
        |consistency group snapshot show""".replace("\n        ", "").split("|"),
        OLD_GROUPS,
    ),
    **dict.fromkeys(
        """volume backup create|volume backup delete|volume backup list|volume backup record export
        |volume backup record import|volume backup restore|volume backup set|volume backup show
        |volume backup unset""".replace("\n        ", "").split("|"),
        BACKUPS,
    ),
    "volume attachment create": "not alone: it asks the compute service for the server",
    "block storage cleanup": "not tried: it insists on a cluster, as `cinder work-cleanup` does not",
    "volume migrate": MIGRATION,
    "volume host failover": REPLICATION,
    "block storage cluster set": CLUSTER,
    "block storage cluster show": CLUSTER,
}

OPENSTACK = """
versions show
availability zone list --volume
extension list --volume
limits show --absolute
volume service list
volume service set --disable --disable-reason because {host} cinder-volume
volume service set --enable {host} cinder-volume
volume host set --disable {host}
volume host set --enable {host}
volume backend pool list --long
volume backend capability show {host}
block storage cluster list
block storage log level set INFO
block storage log level list
block storage resource filter list
block storage resource filter show volume
volume type create gold
volume type list --long
volume type set --property a=b gold
volume type unset --property a gold
volume type show gold
volume qos create fast --property maxIOPS=1000
volume qos list
volume qos set --property minIOPS=1 fast
volume qos unset --property minIOPS fast
volume qos associate fast gold
volume qos show fast
volume qos disassociate --all fast
volume qos delete fast
quota show --volume
quota list --volume
quota set --volumes 50 {project}
quota delete --volume {project}
volume create --size 1 disk
volume list --long
volume show disk
volume summary
volume set --name disc --property a=b --size 2 --image-property k=v disk
volume unset --property a disc
volume snapshot create --volume disc moment
volume snapshot list --long
volume snapshot show moment
volume snapshot set --name instant --property a=b moment
volume snapshot unset --property a instant
volume revert instant
block storage snapshot manageable list {pool}
volume snapshot delete instant
volume attachment list
volume attachment show {attachment}
volume attachment set {attachment} --initiator iqn.1994-05.org.example:commands --ip 127.0.0.1 --host h
volume attachment complete {attachment}
volume attachment delete {attachment}
volume transfer request create --name offer disc
volume transfer request list
volume transfer request show {transfer}
volume transfer request delete {transfer}
volume transfer request create disc
volume transfer request accept --auth-key {key} {transfer}
volume create --size 1 --type {nowhere} lost
volume message list
volume message show {message}
volume message delete {message}
volume delete --force lost
block storage volume manageable list {pool}
volume delete disc
volume type delete gold
"""


def lines(text: str) -> list[str]:
    """The lines of a script."""
    return text.strip().splitlines()


def command_of(line: str, known: set[str]) -> str:
    """The command that a line runs: the longest of the known ones that it begins with."""
    words = line.split()
    for length in range(len(words), 0, -1):
        if (name := " ".join(words[:length])) in known:
            return name
    raise LookupError(f"{line}: the client has no such command")

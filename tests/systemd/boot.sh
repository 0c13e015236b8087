# The init of a machine: lays out its root as an overlay, then becomes systemd.
# Usage: sh -e boot.sh DIRECTORY TREE INSTALLED [PYTHON-PREFIX]
#
# DIRECTORY is a tmpfs that outlives this boot. Called in namespaces of its own, by Machine.boot.
up=$1 tree=$2 installed=$3 python=${4:-}
mkdir -p "$up/root" "$up/upper" "$up/work"
mount -t overlay machine -o "lowerdir=$installed:$tree,upperdir=$up/upper,workdir=$up/work" "$up/root"
cd "$up/root"
chmod 0755 . root # DESTDIR's mode; the interpreter may be below /root
if [ "$python" ]; then
    mkdir -p ".$python"
    mount --bind "$python" ".$python"
    mount -o remount,bind,ro ".$python"
fi
mount -t proc proc proc
mount --bind proc/sys proc/sys # what systemd would set there is the whole kernel's
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t fusectl fusectl sys/fs/fuse/connections
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/shm
make_device() { mknod -m 0666 "dev/$1" c "$2" "$3"; }
make_device null 1 3
make_device zero 1 5
make_device full 1 7
make_device random 1 8
make_device urandom 1 9
make_device tty 5 0
make_device fuse 10 229
autofs=$(awk '$2 == "autofs" { print $1 }' proc/misc)
[ -z "$autofs" ] || make_device autofs 10 "$autofs"
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
if grep -q "^cgroup " proc/self/mounts; then # version 1: systemd needs its own hierarchy
    mount -t tmpfs -o mode=0755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mkdir -p old
pivot_root . old
cd /
umount -l old
mount --make-rshared / # as on any machine; in a container systemd leaves that to others
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --show-status=no --log-target=journal

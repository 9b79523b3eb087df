#!/bin/bash
# Boot a real systemd as PID 1 in a throw-away container, and keep it until this script's standard input ends.
#
#   systemd_lab.sh [-f SRC:DST]... [-b SRC:DST]... [-t SECONDS]
#
#   -f SRC:DST  copy a file or folder into the container first; its root is the host's, copy-on-write in memory
#   -b SRC:DST  show a folder of the host there, read-only: no copy, and whatever lies above it does not matter
#   -t SECONDS  how long the boot may take (30)
#
# Once the boot is over, the process id of that systemd is printed: nsenter takes commands there. Exit status 125, and
# why on stderr, where no such container can be made; 1 if one comes up and the start of a unit never ends. Nothing of
# it remains and nothing on the host is changed. It has only a loopback, and control groups v2, which may be without
# controllers. Needs root, systemd >= 247 and util-linux; no docker, no systemd-nspawn, no systemd on the host.
set -euo pipefail

boot() {  # inside the new namespaces: build the root, become systemd
    local work=$1 unit
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$work"
    mkdir "$work/upper" "$work/work" "$work/root"
    local r=$work/root
    mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$r"
    mount -t proc proc "$r/proc"
    for d in sys sys/net; do mount --bind "$r/proc/$d" "$r/proc/$d"; done
    mount -o remount,bind,ro "$r/proc/sys"                   # these settings are the host's as well
    mount -t sysfs -o ro sysfs "$r/sys"
    mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$r/run"
    mount -t tmpfs -o mode=1777 tmpfs "$r/tmp"
    mount -t tmpfs -o mode=755 tmpfs "$r/dev"
    mkdir "$r/dev/pts" "$r/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$r/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$r/dev/shm"
    for n in null zero full random urandom tty; do touch "$r/dev/$n"; mount --bind "/dev/$n" "$r/dev/$n"; done
    touch "$r/dev/console" && mount --bind "$CONSOLE" "$r/dev/console"
    ln -s pts/ptmx "$r/dev/ptmx"; ln -s /proc/self/fd "$r/dev/fd"
    for i in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${i%:*}" "$r/dev/${i#*:}"; done
    ip link set lo up
    echo systemd-lab > /proc/sys/kernel/hostname

    # a bare system: nothing that the host has enabled, no log-ins, no devices, no disks
    local etc=$r/etc/systemd/system
    rm -rf "$etc"/*.wants "$r"/etc/rc?.d "$r/etc/fstab" "$r/etc/machine-id" "$r/var/log/journal"
    : > "$r/etc/machine-id"
    echo systemd-lab > "$r/etc/hostname"
    rm -f "$r/etc/resolv.conf" && : > "$r/etc/resolv.conf"  # look-ups fail at once, not after 5 s
    for unit in console-getty getty@ systemd-logind systemd-udevd systemd-udev-trigger systemd-sysctl \
        systemd-modules-load systemd-remount-fs systemd-timesyncd systemd-networkd systemd-resolved; do
        ln -sf /dev/null "$etc/$unit.service"
    done
    # shellcheck disable=SC2086
    eval "set -- $SPEC"                                      # -f and -b, quoted
    while [ $# -gt 0 ]; do
        case $1 in
            copy) mkdir -p "$(dirname "$r$3")"; cp -aT "$2" "$r$3"; shift 3 ;;
            bind) mkdir -p "$r$3"; mount --bind "$2" "$r$3"; mount -o remount,bind,ro "$r$3"; shift 3 ;;
        esac
    done
    mkdir "$r/.old" && cd "$r" && pivot_root . .old && umount -l /.old && rmdir /.old
    mount --make-rshared /                                   # as on a real system; credentials need it
    exec setpriv --bounding-set=-sys_time,-sys_module env -i container=systemd-lab LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=multi-user.target --show-status=no --log-target=console \
        --default-standard-output=journal
}

if [ "${1:-}" = _boot ]; then shift; boot "$@"; fi

[ "$(id -u)" = 0 ] || { echo "systemd_lab: needs root" >&2; exit 125; }
patience=30 SPEC=
while getopts f:b:t: o; do
    case $o in
        f | b) src=${OPTARG%%:*}
               [ -e "$src" ] || { echo "systemd_lab: no file $src" >&2; exit 125; }
               [ "$o" = f ] && verb=copy || verb=bind
               SPEC+=" $(printf '%s %q %q' "$verb" "$(realpath "$src")" "${OPTARG#*:}")" ;;
        t) patience=$OPTARG ;;
        *) exit 125 ;;
    esac
done

# control groups of our own below the ones we are in, so that limits on us hold for the container
name=systemd-lab-$$ made=()
while read -r line; do
    left=${line%% - *} right=${line#* - }
    read -r _ _ _ mroot mpoint _ <<< "$left"
    read -r kind _ <<< "$right"
    case $kind in
        cgroup2) own=$(sed -n 's/^0:://p' /proc/self/cgroup) ;;
        *) continue ;;
    esac
    dir=$mpoint${own#"${mroot%/}"}/$name
    dir=${dir//\/\//\/}
    mkdir -p "$dir" 2>/dev/null && made+=("$dir")
done < /proc/self/mountinfo
[ ${#made[@]} -gt 0 ] || { echo "systemd_lab: no writable control-group file system" >&2; exit 125; }

for old in /tmp/systemd-lab.*; do                            # left by one that was killed
    old_pid=${old#*lab.} && old_pid=${old_pid%%.*}
    [ -e "/proc/$old_pid" ] || rm -rf "$old"
done
self=$(realpath "$0") work=$(mktemp -d /tmp/systemd-lab.$$.XXXXXX)
export SPEC CONSOLE="$work.console"
: > "$CONSOLE"
pid= outer=
clean() {
    local st=$?
    [ -z "$outer" ] || kill -9 "$outer" 2>/dev/null || true   # its --kill-child takes systemd along
    [ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true       # and with PID 1 all in the container go
    [ -z "$outer" ] || wait "$outer" 2>/dev/null || true
    for _ in $(seq 100); do
        find "${made[@]}" -depth -type d -exec rmdir {} + 2>/dev/null || true
        ls -d "${made[@]}" >/dev/null 2>&1 || break
        sleep 0.05
    done
    rm -rf "$work" "$CONSOLE"
    exit $st
}
trap clean EXIT
trap 'exit 143' TERM INT HUP

setpriv --pdeathsig KILL sh -c '
    for d in "$@"; do [ "$d" = -- ] && break; echo $$ > "$d/cgroup.procs"; shift; done; shift; exec "$@"' \
    sh "${made[@]}" -- unshare --fork --pid --mount --cgroup --uts --ipc --net --kill-child \
    bash "$self" _boot "$work" 2>>"$CONSOLE" >/dev/null </dev/null &
outer=$!
inside() { nsenter -t "$pid" --all --root --wd env -i container=systemd-lab TERM="${TERM:-dumb}" \
    LANG=C.UTF-8 HOME=/root SYSTEMD_PAGER= PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
end=$((SECONDS + patience)) state=
while :; do
    read -r pid _ 2>/dev/null < "/proc/$outer/task/$outer/children" || true
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = systemd ]; then
        state=$(inside systemctl is-system-running 2>/dev/null) || true
        case $state in running|degraded) break ;; esac
    fi
    if [ $SECONDS -ge $end ] || [ ! -e "/proc/$outer/exe" ]; then
        echo "systemd_lab: systemd did not come up (${state:-no answer}):" >&2; cat "$CONSOLE" >&2
        case $state in starting | initializing) exit 1 ;; *) exit 125 ;; esac
    fi
    sleep 0.05
done
echo "$pid"
cat > /dev/null

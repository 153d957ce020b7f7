#!/usr/bin/env bash
# Slurm 22.05.8 (Debian 12): sbatch has answered with a job's number before the controller has written
# that job down. Of two jobs submitted one after the other, the second is gone where the controller is
# killed and started again, without a word, and the next submission is given its number. A node that
# had begun with it runs on a job of which the controller knows nothing, or another one by that number.
# So a number does not tell a job; a name of one's own does, and the job itself has to say that it lives.
# Takes no root: the jobs are held, and no node is needed.
# Seen: submitted 1 and 2; after the kill known: 1; the next one is 2
set -euo pipefail
there=$(mktemp -d)
pid=
trap 'kill -9 $pid 2>/dev/null || true; rm -rf "$there"' EXIT
cd "$there"
version=22.05.8-4+deb12u3
chmod 755 "$there"
apt-get download -qq slurmctld=$version slurm-client=$version slurm-wlm-basic-plugins=$version
for package in *.deb; do dpkg -x "$package" root; done
lib=$(dirname "$(find root -name libslurmfull.so -print -quit)")
program() { find root/usr/bin root/usr/sbin \( -name "$1" -o -name "$1-wlm" \) -type f -print -quit; }
export LD_LIBRARY_PATH=$PWD/$lib SLURM_CONF=$PWD/slurm.conf
mkdir state spool
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=$(id -un)
AuthType=auth/none
CredType=cred/none
PluginDir=$PWD/$lib
SlurmctldPort=$port
StateSaveLocation=$PWD/state
SlurmdSpoolDir=$PWD/spool
SlurmctldPidFile=$PWD/pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
NodeName=node1 NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES State=UP
CONF
begin() {
    "$(program slurmctld)" -D >log 2>&1 &
    pid=$!
    for _ in $(seq 100); do
        [[ $("$(program scontrol)" ping 2>/dev/null) == *UP* ]] && return
        sleep 0.1
    done
    cat log >&2
    exit 2
}
submit() { "$(program sbatch)" --parsable --hold --wrap=true; }
begin
first=$(submit)
second=$(submit)
kill -9 $pid
wait $pid 2>/dev/null || true
begin
known=$("$(program squeue)" --noheader --format=%i | xargs)
next=$(submit)
echo "slurm $version: submitted $first and $second; after the kill known: $known; the next one is $next"
[ "$known" = "$first" ] && [ "$next" = "$second" ]

#!/usr/bin/env bash
# A Slurm cluster of this one machine for as long as a command runs:
#
#     tests/slurm/start.sh pytest -m slurm
#
# As root, on Debian or Ubuntu; installs slurm-wlm and munge where they are missing. Everything that the
# daemons write, the key and the configuration too, is in a folder of their own, which goes with them: a
# Slurm that is configured here already is not touched. The command finds CFSP_TEST_SLURM=1, or, where no
# cluster can be had, the reason.
set -euo pipefail

folder=$(mktemp -d /tmp/cfsp-slurm.XXXXXX)
daemons=()

stop() {
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do # slurmd, slurmctld, munged
        kill "${daemons[i]}" 2>/dev/null || true
        wait "${daemons[i]}" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap stop EXIT

without() { # REASON COMMAND...
    echo "start.sh: $1" >&2
    CFSP_TEST_SLURM="$1" "${@:2}"
    exit
}

[ "$(id -u)" = 0 ] || without "a Slurm cluster is started as root" "$@"
if ! (command -v slurmctld && command -v slurmd && command -v munged) >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes slurm-wlm munge; } \
        >"$folder/apt.log" 2>&1 ||
        without "slurm-wlm and munge cannot be installed: $(tail -n 1 "$folder/apt.log")" "$@"
fi

host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
port=$((20000 + $$ % 20000)) # not Slurm's own, and seldom another cluster's of this script

chmod 755 "$folder" # munged wants nobody else to be able to write in it, and all to reach its socket
mkdir -m 700 "$folder/munge" "$folder/state" "$folder/spool"
mkdir -m 755 "$folder/run"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<EOF
ClusterName=cfsp
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory
PartitionName=test Nodes=ALL Default=YES State=UP
EOF
export SLURM_CONF="$folder/slurm.conf"

# submitit asks sacct, which needs a database; squeue knows as much of jobs that ended just now.
mkdir "$folder/bin"
cat >"$folder/bin/sacct" <<'EOF'
#!/bin/sh
echo 'JobID|State|NodeList'
exec squeue --noheader --array --states=all --format='%i|%T|%N'
EOF
chmod 755 "$folder/bin/sacct"
export PATH="$folder/bin:$PATH"

munged --foreground --key-file="$folder/munge/key" --socket="$folder/run/munge" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --log-file="$folder/munge/log" \
    2>"$folder/munged.log" &
daemons+=($!)
slurmctld -D -i >/dev/null 2>&1 &
daemons+=($!)
slurmd -D >/dev/null 2>&1 &
daemons+=($!)

for _ in $(seq 60); do
    case "$(sinfo --noheader --format=%T 2>/dev/null)" in idle) ready=1 && break ;; esac
    sleep 0.5
done
if [ -z "${ready-}" ]; then
    tail -n 5 "$folder"/*.log "$folder/munge/log" >&2 || true
    without "Slurm did not come up in 30 seconds" "$@"
fi

CFSP_TEST_SLURM=1 "$@"

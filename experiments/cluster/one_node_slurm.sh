#!/bin/bash
# A Slurm of one node on this machine, and a sweep of two runs on it: one job is killed, and the sweep given again ends whole.
# Needs root on Debian or Ubuntu (installs slurm-wlm and munge), and selfprune with its extra `cluster`:
#     sudo -E bash experiments/cluster/one_node_slurm.sh FOLDER
set -euo pipefail
folder=$(realpath "${1:?give a folder for the sweep}")
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
mkdir -p "$folder" && cd "$folder"
command -v slurmctld >/dev/null || apt-get install -y --no-install-recommends slurm-wlm munge >/dev/null

state=$(mktemp -d) && chmod 755 "$state"
pkill -x slurmd || true; pkill -x slurmctld || true; pkill -x munged || true
install -d -o munge -g munge -m 755 /run/munge
[ -s /etc/munge/munge.key ] || { dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key status=none; }
chown munge:munge /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
setpriv --reuid=munge --regid=munge --clear-groups munged
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
NodeName=$(hostname -s) CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p "$state/ctld" "$state/d"
slurmctld && slurmd
trap 'scancel --user=root || true; pkill -x slurmd; pkill -x slurmctld; pkill -x munged' EXIT
for _ in $(seq 30); do sinfo -h -o %t | grep -q idle && break; sleep 1; done
sinfo

sweep=("$python" -m selfprune -m +experiment=smoke harness=none seed=0,1 hydra/launcher=slurm hydra.launcher.gpus_per_node=null
    hydra.launcher.mem_gb=null hydra.launcher.cpus_per_task=1 hydra.launcher.partition=all hydra.sweep.dir=sweep)
"${sweep[@]}" >first.txt 2>&1 &
# the first job is killed as soon as it has scored something
until ls sweep/seed=0-*/archive.jsonl >/dev/null 2>&1; do sleep 0.2; done
job=$(squeue -h -t R -o %i | sort | head -1)
scancel --signal=KILL --full "$job"
# without an accounting database submitit never learns of the killed job, and waits for it; so we wait for Slurm, and end the launcher
until [ -z "$(squeue -h)" ]; do sleep 1; done
kill -TERM $! 2>/dev/null || true
wait $! && code=0 || code=$?
echo "the sweep with a killed job: exit code $code"; tail -n 2 first.txt
"$python" -m selfprune sweep sweep || true
"${sweep[@]}" >second.txt 2>&1 && code=0 || code=$?
echo "given again: exit code $code"; tail -n 2 second.txt
"$python" -m selfprune sweep sweep
"$python" -m selfprune compare sweep --against uniform

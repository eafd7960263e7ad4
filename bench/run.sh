#!/usr/bin/env bash
# Measures Hedgerow and its peers side by side and prints the tables. Needs root and a quiet machine.
#
#   run.sh LAB [--peers LIST] [--rounds N] [--secs S] [--figures LIST] [--usegso on|off] [--quota PERCENT] [--out DIR]
#
# LAB       directory of the lab: overlay.sh, lab.sh, tables.py, peers/, netprobe/
# --peers   default: raw,wireguard-go,gotatun,boringtun,nebula,quincy,hedgerow
# --rounds  every peer once per round, one after the other, so that what disturbs the machine disturbs all (3)
# --usegso  off: the link cuts UDP super-packets, as a real card without that offload does (on)
# --quota   the daemons share one core and get so much of it: a small box (cgroup version 1)
# --out     where the JSON lines go, one file per peer (a fresh directory)
#
# HEDGEROW_BIN  release builds of hedgerow-agent, hedgerow-control, hedgerow (target/release)
# PEERS_BIN     directory put on PATH: peers that were built by cargo
# NEWER         directory of newer Debian builds: its wireguard-go and nebula are taken where they are
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
LAB=$(cd "${1:?directory of the lab; see the head of this file}" && pwd); shift
PEERS=raw,wireguard-go,gotatun,boringtun,nebula,quincy,hedgerow
ROUNDS=3; SECS=3; FIGURES=restart,first,rss,rtt,tcp1,tcp4,udp,load,rate; USEGSO=on; QUOTA=; OUT=
while [ $# -gt 0 ]; do
  case "$1" in
    --peers) PEERS=$2;; --rounds) ROUNDS=$2;; --secs) SECS=$2;; --figures) FIGURES=$2;;
    --usegso) USEGSO=$2;; --quota) QUOTA=$2;; --out) OUT=$2;;
    *) echo "unknown option $1" >&2; exit 2;;
  esac
  shift 2
done
OUT=${OUT:-$(mktemp -d /tmp/hedgerow-bench.XXXXXX)}; mkdir -p "$OUT"
export HEDGEROW_BIN=${HEDGEROW_BIN:-$HERE/../target/release}
[ -x "$HEDGEROW_BIN/hedgerow-agent" ] || { echo "no programs in $HEDGEROW_BIN: cargo build --release" >&2; exit 2; }
[ -z "${PEERS_BIN:-}" ] || export PATH="$PEERS_BIN:$PATH"
for n in wireguard-go nebula; do
  [ -x "${NEWER:-}/$n/usr/bin/$n" ] || continue
  v=$(basename "$(ls "$NEWER"/dl/${n}_*.deb | tail -1)" | cut -d_ -f2)
  case $n in
    wireguard-go) export WIREGUARD_GO_BIN=$NEWER/$n/usr/bin/$n WIREGUARD_GO_LABEL=$v;;
    nebula) export NEBULA_BIN=$NEWER/$n/usr/bin/$n NEBULA_CERT_BIN=$NEWER/$n/usr/bin/nebula-cert;;
  esac
done

# Every peer file once more, with what this run adds to it.
export PEER_DIR; PEER_DIR=$(mktemp -d); GROUP=
finish() {
  rm -rf "$PEER_DIR"
  [ -z "$GROUP" ] || rmdir "/sys/fs/cgroup/cpu/$GROUP" 2>/dev/null || true
  "$LAB/lab.sh" destroy
}
trap finish EXIT
if [ -n "$QUOTA" ]; then
  GROUP=hedgerow-quota.$$
  mkdir "/sys/fs/cgroup/cpu/$GROUP"
  echo 100000 >"/sys/fs/cgroup/cpu/$GROUP/cpu.cfs_period_us"
  echo $((QUOTA * 1000)) >"/sys/fs/cgroup/cpu/$GROUP/cpu.cfs_quota_us"
fi
for p in ${PEERS//,/ }; do
  if [ -f "$HERE/peers/$p.sh" ]; then f=$HERE/peers/$p.sh; else f=$LAB/peers/$p.sh; fi
  [ -f "$f" ] || { echo "no peer file for $p" >&2; exit 2; }
  echo ". $f" >"$PEER_DIR/$p.sh"
  [ -z "$GROUP" ] || cat >>"$PEER_DIR/$p.sh" <<P
spawn() { # one core, and of that a share
  local s=\$1; shift
  bash -c 'echo \$\$ >/sys/fs/cgroup/cpu/$GROUP/tasks; exec taskset -c 0 ip netns exec "\$@"' - "\$(ns "\$s")" "\$@" \\
    >>"\$RUN/log.\$s" 2>&1 </dev/null &
  echo \$! >>"\$RUN/pids.\$s"
}
P
done

"$LAB/lab.sh" destroy; "$LAB/lab.sh" create direct
[ "$USEGSO" = on ] || "$LAB/lab.sh" usegso "$USEGSO"
for round in $(seq "$ROUNDS"); do
  for p in ${PEERS//,/ }; do
    echo "[$(date +%T)] round $round of $ROUNDS: $p" >&2
    "$LAB/overlay.sh" "$p" --topo direct --repeats 1 --secs "$SECS" --figures "$FIGURES" >>"$OUT/$p.rounds" ||
      echo "[$(date +%T)] $p failed" >&2
  done
done

# One line per figure and peer, over all rounds.
python3 - "$OUT" ${PEERS//,/ } <<'P'
import json, os, statistics, sys
out, peers = sys.argv[1], sys.argv[2:]
short = lambda x: float('%.4g' % x)
for peer in peers:
    found = {}
    for line in open(f'{out}/{peer}.rounds'):
        one = json.loads(line)
        found.setdefault(one['figure'], []).append(one)
    with open(f'{out}/{peer}.jsonl', 'w') as file:
        for name, rounds in found.items():
            runs = [v for one in rounds for v in one.get('runs', [])]
            line = dict(rounds[-1], n=len(runs), runs=runs, others_cpu_pct=max(o.get('others_cpu_pct', 0) for o in rounds))
            if runs:
                line.update(median=short(statistics.median(runs)), min=min(runs), max=max(runs))
            print(json.dumps(line), file=file)
P
files=(); for p in ${PEERS//,/ }; do files+=("$OUT/$p.jsonl"); done
python3 "$LAB/tables.py" "${files[@]}"
python3 - "${files[@]}" <<'P'
import json, sys
most = max((json.loads(l).get('others_cpu_pct', 0) for f in sys.argv[1:] for l in open(f)), default=0)
print(f'Other work on the machine, at most: {most} % of a core. Versions:')
for f in sys.argv[1:]:
    first = next(open(f), None)
    if first: print('-', json.loads(first)['version'])
P
echo "JSON lines: $OUT" >&2

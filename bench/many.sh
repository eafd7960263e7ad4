#!/usr/bin/env bash
# One tunnel with N peers: memory when they are set and when all are live, and a storm of N handshakes.
#
#   many.sh LAB N
#
# LAB   directory of the bench lab; its probes/ are built into PROBES_TARGET (/tmp/probes/target). The storm's
#       client is the same that measures the other daemons (LAB/many.sh NAME N), the line printed has the same fields.
# HEDGEROW_BIN  where hedgerow-lab is (target/release)
set -euo pipefail
umask 077
LAB=$(cd "${1:?directory of the lab}" && pwd); N=${2:?how many peers}
HEDGEROW_BIN=${HEDGEROW_BIN:-$(cd "$(dirname "$0")/.." && pwd)/target/release}
PROBES=${PROBES_TARGET:-/tmp/probes/target}; STORM=$PROBES/release/wgstorm
[ -x "$STORM" ] || (cd "$LAB/probes" && cargo build -q --release --target-dir "$PROBES") >&2
RUN=$(mktemp -d /tmp/many.XXXXXX); P=
"$LAB/lab.sh" create direct
finish() {
  [ -z "$P" ] || kill "$P" 2>/dev/null || true
  rm -rf "$RUN"; "$LAB/lab.sh" destroy
}
trap finish EXIT
stat() { awk -v f="$1:" '$1==f{print $2}' "/proc/$P/status"; }
cpu() { awk '{print ($14+$15)/100}' "/proc/$P/stat"; }
settled() { # until its memory stands still
  local last=-1 now
  for _ in $(seq 60); do now=$(stat VmRSS); [ "$now" = "$last" ] && return; last=$now; sleep 0.5; done
}
tunnel() { # CROWD
  ip netns exec hgr sysctl -qw net.ipv6.conf.default.disable_ipv6=0
  ip netns exec hgr "$HEDGEROW_BIN/hedgerow-lab" tunnel --own 7 --port 51820 --address 10.99.0.2/8 --peer 1 \
    --peer-address 10.99.0.1 --crowd "$1" >"$RUN/log" 2>&1 </dev/null & P=$!
  for _ in $(seq 500); do ip -n hgr addr show dev hedgerow0 2>/dev/null | grep -q 10.99.0.2 && break; sleep 0.02; done
}
tunnel 0; settled; r0=$(stat VmRSS); kill "$P"; wait "$P" 2>/dev/null || true
t0=$(date +%s%N); tunnel "$N"; t1=$(date +%s%N)
settled; r1=$(stat VmRSS); a1=$(stat RssAnon); th=$(stat Threads)
c0=$(cpu); sleep 3; c1=$(cpu)
TIMEFORMAT='%U %S' # the client has one thread: near the whole time, it is what the storm waits for
{ time s=$("$STORM" run "$N" "$RUN" hgl 10.90.0.2 51820); } 2>"$RUN/client"; c2=$(cpu)
client=$(tail -1 "$RUN/client")
settled; r2=$(stat VmRSS); c3=$(cpu); sleep 5; c4=$(cpu)
calc() { python3 -c "print(round($1, 2))"; }
echo "{\"peer\":\"hedgerow\",\"figure\":\"many\",\"peers\":$N,\"config_ms\":$(((t1 - t0) / 1000000)),\"rss_empty_kib\":$r0,\"rss_configured_kib\":$r1,\"anon_configured_kib\":$a1,\"rss_live_kib\":$r2,\"threads\":$th,\"kib_per_live\":$(calc "($r2-$r0)/$N"),\"idle_cpu_pct\":$(calc "($c1-$c0)/3*100"),\"live_idle_cpu_pct\":$(calc "($c4-$c3)/5*100"),\"storm_daemon_cpu_s\":$(calc "$c2-$c1"),\"storm_client_cpu_s\":$(calc "${client/ /+}"),\"storm\":$s}"

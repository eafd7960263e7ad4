# Hedgerow, the whole product: a controller in a namespace of its own, a policy whose every entry stands in both
# devices' kernels, two enrolled devices. Sourced by overlay.sh; HEDGEROW_BIN says where the programs are.
#
# What is loaded: HEDGEROW_RULES rules (20) from role=bench to role=bench, each naming 250 ports of its own that do
# not touch. Both devices are source and destination of every rule, so each kernel holds 2 x 250 elements per rule,
# 10,000 in all, beside those for the ports that the bench itself uses. peer_prepare counts them in the kernel and
# fails when there are fewer.
HEDGEROW_BIN=${HEDGEROW_BIN:-$(cd "${PEER_DIR:-.}/../.." && pwd)/target/release}
HEDGEROW_RULES=${HEDGEROW_RULES:-20}
HEDGEROW_PORTS=250
CONTROL_NS=${NS_LEFT}-control
CONTROL_ADDRESS=10.92.0.1
CONTROL_PORT=7443

peer_version() { echo "$("$HEDGEROW_BIN/hedgerow-agent" --version | tr -d '\n'), $((2 * HEDGEROW_RULES * HEDGEROW_PORTS)) entries"; }

in_control() { ip netns exec "$CONTROL_NS" "$@"; }
operator() { in_control "$HEDGEROW_BIN/hedgerow" --config "$RUN/control/operator/cli.toml" "$@"; }
agent() { # SIDE WORDS...
  local s=$1; shift
  in_ns "$s" "$HEDGEROW_BIN/hedgerow-agent" --config "$RUN/$s/agent.toml" "$@"
}

# A namespace for the controller, one wire to each device.
hedgerow_wires() {
  local s i=0
  ip netns add "$CONTROL_NS"
  ip -n "$CONTROL_NS" link set lo up
  in_control sysctl -qw net.ipv4.ip_forward=0
  ip -n "$CONTROL_NS" addr add $CONTROL_ADDRESS/32 dev lo
  for s in left right; do
    i=$((i + 1))
    ip link add "c$i" netns "$CONTROL_NS" type veth peer name control0 netns "$(ns "$s")"
    ip -n "$CONTROL_NS" addr add 10.92.$i.1/24 dev "c$i"
    ip -n "$CONTROL_NS" link set "c$i" up
    ip -n "$(ns "$s")" addr add 10.92.$i.2/24 dev control0
    ip -n "$(ns "$s")" link set control0 up
    ip -n "$(ns "$s")" route add $CONTROL_ADDRESS/32 via 10.92.$i.1
    # lab.sh switches IPv6 off in its namespaces; the overlay has it (interfaces made from now on).
    in_ns "$s" sysctl -qw net.ipv6.conf.default.disable_ipv6=0
  done
}

hedgerow_policy() {
  local r p
  cat <<Y
apiVersion: hedgerow.policy/v1
kind: Policy
meta: { name: bench }
labels:
  role: { values: [ bench ] }
services:
  load: [ tcp/5201, udp/5201, udp/5301, udp/5302, icmp-echo ]
Y
  for r in $(seq 0 $((HEDGEROW_RULES - 1))); do
    printf '  s%s: [ ' "$r"
    for p in $(seq 0 $((HEDGEROW_PORTS - 1))); do
      [ "$p" = 0 ] || printf ', '
      printf 'tcp/%s' $((10000 + 2 * (r * HEDGEROW_PORTS + p)))
    done
    printf ' ]\n'
  done
  cat <<Y
segments:
  bench: { select: "role=bench", mode: enforce }
rules:
  - { id: r-load, from: "role=bench", to: "role=bench", service: load }
Y
  for r in $(seq 0 $((HEDGEROW_RULES - 1))); do
    echo "  - { id: r-$r, from: \"role=bench\", to: \"role=bench\", service: s$r }"
  done
}

hedgerow_enroll() { # SIDE
  local s=$1
  mkdir -p "$RUN/$s"
  cat >"$RUN/$s/agent.toml" <<T
version = 1

[paths]
state = "$RUN/$s/state"
run = "$RUN/$s/run"

[mesh]
endpoints = ["$(ulip "$s"):7117"]

[names]
hosts_file = ""
T
  operator --json token create --site bench --labels role=bench --name "$s" 2>/dev/null | jget token |
    agent "$s" enroll >&2
}

# The IPv4 address that the controller gave.
hedgerow_address() {
  operator --json device list | python3 -c '
import sys, json
d = json.load(sys.stdin)
for x in d.get("devices", d) if isinstance(d, dict) else d:
    if x["name"] == sys.argv[1]: print(x["addresses"]["v4"])' "$1"
}

hedgerow_elements() { # SIDE: entries of services in its kernel
  in_ns "$1" nft -j list table inet hedgerow | python3 -c '
import sys, json
n = 0
for x in json.load(sys.stdin)["nftables"]:
    m = x.get("map")
    if m and m["name"].startswith(("in_", "out_")) and "default" not in m["name"]: n += len(m.get("elem", []))
print(n)'
}

peer_prepare() {
  hedgerow_wires
  in_control "$HEDGEROW_BIN/hedgerow-control" init --trust-domain bench.example --endpoint $CONTROL_ADDRESS:$CONTROL_PORT \
    --listen $CONTROL_ADDRESS:$CONTROL_PORT --dir "$RUN/control" >"$RUN/log.control" 2>&1
  ip netns exec "$CONTROL_NS" "$HEDGEROW_BIN/hedgerow-control" run --config "$RUN/control/control.toml" \
    >>"$RUN/log.control" 2>&1 </dev/null &
  CONTROL_PID=$!
  wait_for 5000 operator status
  operator site create bench --tz UTC >&2
  hedgerow_enroll left; hedgerow_enroll right
  OV_LEFT=$(hedgerow_address left); OV_RIGHT=$(hedgerow_address right); OV_LEN=32
  TARGET=$OV_RIGHT
  hedgerow_policy >"$RUN/bench.yaml"
  operator policy apply "$RUN/bench.yaml" >&2
  # Once up, so that the programs are on both devices' disks and each knows the other; then what is loaded is counted.
  up
  local s n
  for s in left right; do
    n=$(hedgerow_elements $s)
    LOG "$s: $n entries in the kernel, overlay address $(ovip $s)"
    [ "$n" -ge $((2 * HEDGEROW_RULES * HEDGEROW_PORTS)) ] || { LOG "too few entries"; return 1; }
  done
  peer_stop left; peer_stop right
}

peer_start() { spawn "$1" "$HEDGEROW_BIN/hedgerow-agent" --config "$RUN/$1/agent.toml" run; }

# An agent that is killed leaves table and interface behind on purpose: nothing is cleaned up between starts.
peer_teardown() {
  local s
  for s in left right; do
    agent $s off >/dev/null 2>&1 || true
    ip -n "$(ns $s)" link del control0 2>/dev/null || true
    in_ns $s sysctl -qw net.ipv6.conf.default.disable_ipv6=1
  done
  [ -z "${CONTROL_PID:-}" ] || kill "$CONTROL_PID" 2>/dev/null || true
  [ -z "${CONTROL_PID:-}" ] || wait "$CONTROL_PID" 2>/dev/null || true
  ip netns del "$CONTROL_NS" 2>/dev/null || true
}

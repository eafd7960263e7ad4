# The tunnel alone, without agent, controller and kernel policy: what the data plane costs by itself.
# Sourced by overlay.sh; HEDGEROW_BIN says where hedgerow-lab is.
HEDGEROW_BIN=${HEDGEROW_BIN:-$(cd "${PEER_DIR:-.}/../.." && pwd)/target/release}
peer_version() { "$HEDGEROW_BIN/hedgerow-lab" --version; }
peer_prepare() { :; }
peer_start() {
  local s=$1 o own=1 peer=2
  o=$(other "$s")
  [ "$s" = left ] || { own=2; peer=1; }
  # shellcheck disable=SC2086
  spawn "$s" "$HEDGEROW_BIN/hedgerow-lab" tunnel --own $own --address "$(ovip "$s")/$OV_LEN" \
    --peer $peer --peer-address "$(ovip "$o")" --endpoint "$(ulip "$o"):7117" ${HEDGEROW_TUNNEL_OPTIONS:-}
}

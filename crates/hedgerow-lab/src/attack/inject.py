# Puts forged packets straight onto an interface: past the sending host's own firewall.
# Reads {"interface", "mac", "packets": [{"source", "destination", "protocol", "port"}]} on standard input.
import ipaddress, json, socket, struct, sys, time

PROTOCOLS = {"tcp": 6, "udp": 17, "ping": 1}


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def payload(source, destination, protocol, port, six):
    number = 58 if six and protocol == "ping" else PROTOCOLS[protocol]
    if protocol == "tcp":
        body = struct.pack("!HHIIBBHHH", 40000 + port % 9000, port, 12345, 0, 5 << 4, 2, 64240, 0, 0)
        at = 16
    elif protocol == "udp":
        text = b"<14>forged"
        body = struct.pack("!HHHH", 40000, port, 8 + len(text), 0) + text
        at = 6
    else:
        body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 777, 1) + b"forged.."
        at = 2
    if six:
        pseudo = source.packed + destination.packed + struct.pack("!II", len(body), number)
    elif protocol == "ping":
        pseudo = b""
    else:
        pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, number, len(body))
    body = body[:at] + struct.pack("!H", checksum(pseudo + body)) + body[at + 2:]
    return number, body


def packet(one):
    source, destination = (ipaddress.ip_address(one[k]) for k in ("source", "destination"))
    six = source.version == 6
    number, body = payload(source, destination, one["protocol"], one["port"], six)
    if six:
        head = struct.pack("!IHBB", 6 << 28, len(body), number, 64) + source.packed + destination.packed
        return 0x86DD, head + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, number, 0)
    head += source.packed + destination.packed
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return 0x0800, head + body


order = json.load(sys.stdin)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
mac = bytes.fromhex(order["mac"].replace(":", "")) if order.get("mac") else b""
for _ in range(order.get("times", 1)):
    for one in order["packets"]:
        kind, bytes_out = packet(one)
        wire.sendto(bytes_out, (order["interface"], kind, 0, 0, mac))
        time.sleep(0.002)

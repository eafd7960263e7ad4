"""Sits on a relay's wire and lies about the frames that the relay passes on.

    switch ── out ┤ this ├ in ── relay

Ethernet frames go through as they are, with their addresses. Of the UDP datagrams that carry a relay's
frame (first byte 0x84), so many of a thousand meet what the orders say. The orders are a JSON file that
is replaced while this runs; what was done is written beside it, with the number of the orders obeyed.
"""

import collections
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time

MESH_PORT = 7117
RELAY_FRAME = 0x84
SOL_PACKET, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE = 263, 23, 33
EVERYTHING = 3
# Frames that are remembered to be played again; numbers of sessions that are remembered of one place.
OLD_MAX = 256
NUMBERS_MAX = 64
# Frames that wait; a further one is sent at once.
HELD_MAX = 4096
# The longest that a frame is held back to come out of order, and the pause between two looks at the orders.
HOLD_SECONDS = 0.03
LOOK_SECONDS = 0.02


def plug(name):
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    port.bind((name, EVERYTHING))
    port.setblocking(False)
    return port


def datagram_at(frame):
    """Returns where the datagram of a relay's frame begins, if it is one."""
    if len(frame) < 14 + 20 + 8 + 8 or frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
        return None
    udp = 14 + (frame[14] & 15) * 4
    ports = struct.unpack_from("!HH", frame, udp)
    if MESH_PORT not in ports or frame[udp + 8] != RELAY_FRAME:
        return None
    return udp + 8


def summed(header):
    """Returns an IPv4 header with its checksum."""
    header = header[:10] + b"\0\0" + header[12:]
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]


class Liar:
    def __init__(self, orders, ports):
        self.path, self.ports = orders, ports
        self.orders, self.read_at = {}, None
        self.done = collections.Counter()
        self.dice = random.Random(1)
        self.old = [collections.deque(maxlen=OLD_MAX) for _ in ports]
        # Where a direction's frames go: (Ethernet addresses, IPv4 address, port) to numbers of sessions.
        self.places = [collections.defaultdict(list) for _ in ports]
        self.held, self.order = [], 0

    def obey(self):
        stamp = os.stat(self.path).st_mtime_ns
        if stamp != self.read_at:
            with open(self.path) as file:
                self.orders = json.load(file)
            self.read_at = stamp
            self.dice = random.Random(self.orders["seed"])
            self.done = collections.Counter()
        said = json.dumps({"number": self.orders["number"], "done": self.done})
        fresh = self.path + ".fresh"
        with open(fresh, "w") as file:
            file.write(said)
        os.rename(fresh, self.path + ".done")

    def falls(self, what):
        if self.dice.randrange(1000) >= self.orders.get(what, 0):
            return False
        self.done[what] += 1
        return True

    def send(self, side, frame, seconds=0.0):
        seconds += self.orders.get("delay_ms", 0) / 1000
        if seconds > 0 and len(self.held) < HELD_MAX:
            self.order += 1
            heapq.heappush(self.held, (time.monotonic() + seconds, self.order, side, frame))
            return
        try:
            self.ports[side].send(frame)
        except OSError as error:
            self.done[f"error {error.errno}"] += 1

    def release(self):
        while self.held and self.held[0][0] <= time.monotonic():
            _, _, side, frame = heapq.heappop(self.held)
            try:
                self.ports[side].send(frame)
            except OSError as error:
                self.done[f"error {error.errno}"] += 1

    def came(self, side, frame):
        """A frame came that goes out by `side`."""
        at = datagram_at(frame)
        if at is None:
            self.send(side, frame)
            return
        length, number = len(frame) - at, frame[at + 4 : at + 8]
        place = (frame[:12], frame[30:34], frame[at - 6 : at - 4])
        known = self.places[side][place]
        if number not in known:
            known.append(number)
            del known[:-NUMBERS_MAX]
        self.done["passed"] += 1
        low, high = self.orders.get("drop", [0, -1])
        if low <= length <= high:
            self.done["drop"] += 1
            return
        if self.falls("lose"):
            return
        self.old[side].append(frame)
        if self.falls("flip"):
            bit = self.dice.randrange(8, length) * 8 + self.dice.randrange(8)
            changed = bytearray(frame)
            changed[at + bit // 8] ^= 1 << bit % 8
            frame = bytes(changed)
        others = [other for other in known if other != number]
        if others and self.falls("renumber"):
            frame = frame[: at + 4] + self.dice.choice(others) + frame[at + 8 :]
        # A wrong sum would end the lie in the kernel; none is allowed over IPv4.
        frame = frame[: at - 2] + b"\0\0" + frame[at:]
        elsewhere = [other for other in self.places[side] if other[1:] != place[1:]]
        if elsewhere and self.falls("mislead"):
            ether, address, port = other = self.dice.choice(elsewhere)
            wrong = self.dice.choice(self.places[side][other])
            header = summed(frame[14:30] + address + frame[34 : at - 8])
            udp = frame[at - 8 : at - 6] + port + frame[at - 4 : at]
            self.send(side, ether + frame[12:14] + header + udp + frame[at : at + 4] + wrong + frame[at + 8 :])
        self.send(side, frame, self.dice.uniform(0, HOLD_SECONDS) if self.falls("hold") else 0.0)
        if self.falls("twice"):
            self.send(side, frame)
        if self.falls("again"):
            self.send(side, self.dice.choice(self.old[side]))


def main():
    ports = [plug("out"), plug("in")]
    liar, looked = Liar(sys.argv[1], ports), 0.0
    while True:
        wait = LOOK_SECONDS
        if liar.held:
            wait = min(wait, max(0.0, liar.held[0][0] - time.monotonic()))
        ready, _, _ = select.select(ports, [], [], wait)
        for port in ready:
            side = 1 - ports.index(port)
            for _ in range(64):
                try:
                    frame = port.recv(65536)
                except BlockingIOError:
                    break
                liar.came(side, frame)
        liar.release()
        if time.monotonic() - looked >= LOOK_SECONDS:
            liar.obey()
            looked = time.monotonic()


main()

#!/usr/bin/env python3
"""peer.py: two ends of a TCP connection, to try and to measure a lab's links.

    peer.py serve                    answers the others; prints "ready" first
    peer.py talk ADDRESS             sends each line of the input and prints the answer: "<host> saw <address>: <line>"
    peer.py ping ADDRESS COUNT       round trips of a byte; prints the least, the median and the longest, in seconds
    peer.py send ADDRESS BYTES       prints bits a second, from before the first byte until the last is acknowledged
"""

import socket
import sys
import threading
import time

PORT = 7777
BLOCK = 1 << 20


def answer(connection, address):
    """What to do with a connection is its first line: talk, ping, or the number of bytes to swallow."""
    lines = connection.makefile("rwb", buffering=0)
    order = lines.readline().strip()
    if order == b"talk":
        for line in lines:
            lines.write(f"{socket.gethostname()} saw {address[0]}: ".encode() + line)
    elif order == b"ping":
        while byte := connection.recv(1):
            connection.sendall(byte)
    else:
        left, block = int(order), bytearray(BLOCK)
        while left > 0 and (count := connection.recv_into(block)):
            left -= count
        connection.sendall(b"k")


def serve():
    with socket.create_server(("", PORT)) as server:
        print("ready", flush=True)
        while True:
            connection, address = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(connection, address), daemon=True).start()


def connect(address, order):
    connection = socket.create_connection((address, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(f"{order}\n".encode())
    return connection


def talk(address):
    lines = connect(address, "talk").makefile("rwb", buffering=0)
    for line in sys.stdin.buffer:
        lines.write(line)
        print(lines.readline().decode(), end="", flush=True)


def ping(address, count):
    connection, times = connect(address, "ping"), []
    for _ in range(int(count)):
        start = time.perf_counter()
        connection.sendall(b"p")
        connection.recv(1)
        times.append(time.perf_counter() - start)
    times.sort()
    print(times[0], times[len(times) // 2], times[-1])


def send(address, size):
    left, block = int(size), memoryview(bytes(BLOCK))
    connection = connect(address, left)
    start = time.perf_counter()
    while left > 0:
        left -= connection.send(block[:left])
    if connection.recv(1) != b"k":
        raise SystemExit("peer.py: the other end has gone")
    print(int(size) * 8 / (time.perf_counter() - start))


if __name__ == "__main__":
    {"serve": serve, "talk": talk, "ping": ping, "send": send}[sys.argv[1]](*sys.argv[2:])

"""What the load generator itself costs, against a server that does nothing: `python benchmarks/serving/load_cost.py`.

Every request is 16 kB long, as 784 numbers are in JSON, and every answer 400 bytes. The processor time holds the system
calls, and the kernel's work of carrying the bytes to the server over loopback.
"""

from __future__ import annotations

import multiprocessing
import select
import socket

from load import closed_loop, http_request, open_loop


def do_nothing(listener: socket.socket, request_bytes: int) -> None:
    """Answer every `request_bytes` bytes of a connection with 200 and 400 bytes, for as long as the process lives."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n" + b"x" * 400
    poller = select.epoll()
    clients: dict[int, socket.socket] = {}
    got: dict[int, int] = {}
    poller.register(listener.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                client = listener.accept()[0]
                clients[client.fileno()], got[client.fileno()] = client, 0
                poller.register(client.fileno(), select.EPOLLIN)
                continue
            received = len(clients[fd].recv(1 << 18))
            got[fd] += received
            if not received:
                clients.pop(fd).close()
            elif got[fd] >= request_bytes:
                got[fd] = 0
                clients[fd].sendall(answer)


def main() -> None:
    """Print what the generator itself costs."""
    request = http_request("/", b"x" * 16_000, {"content-type": "application/json"})
    print("| load | requests/s | generator, us a request |\n| --- | --- | --- |")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = multiprocessing.get_context("fork").Process(target=do_nothing, args=(listener, len(request)))
        server.start()
        try:
            for connections in (1, 16, 64):
                result = closed_loop(listener.getsockname(), request, connections, 2)
                print(f"| {connections} connections | {result.rate:.0f} | {result.cpu_us:.1f} |")
            for rate in (1000, 5000):
                result = open_loop(listener.getsockname(), request, rate, 2)
                print(f"| {rate} a second, p99 {result.percentile(0.99) * 1e6:.0f} us | {result.rate:.0f} ", end="")
                print(f"| {result.cpu_us:.1f} |")
        finally:
            server.kill()
            server.join()


if __name__ == "__main__":
    main()

"""Scaling settings: replicas are added while there is much to do."""

from __future__ import annotations

import contextlib
import threading

from scaling.endpoint import Endpoint


def test_replicas_are_added_under_load(checkpoint_folder, tmp_path):
    options = ("--replicas", "1", "--max-replicas", "2", "--max-num-seqs", "2")
    server = Endpoint(checkpoint_folder, tmp_path / "log", *options)
    is_enough = threading.Event()

    def ask(number):
        while not is_enough.is_set():
            with contextlib.closing(server.long_stream(f"conversation {number}")) as stream:
                for _ in stream:
                    if is_enough.is_set():
                        break

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    try:
        for client in clients:
            client.start()
        server.wait_for_replicas(2)
    finally:
        is_enough.set()
        for client in clients:
            client.join()
        server.stop()

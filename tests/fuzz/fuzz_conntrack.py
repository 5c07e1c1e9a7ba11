# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of answers over netlink: translations, sockets, interfaces. See README.md beside this file.

Run: python -m tests.fuzz.fuzz_conntrack [libFuzzer options] [corpus folders]
"""

from __future__ import annotations

import sys
from contextlib import suppress

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["rover_plugin.discovery"]):
        import rover_plugin.discovery.conntrack
        import rover_plugin.discovery.socket_diagnosis  # noqa: F401

from rover_plugin.discovery.conntrack import Tuple, dialled_to_real, seen_to_real

_CLIENT = Tuple(b"\x0a\0\0\1", 40000, b"\x0a\0\0\2", 80)


class _Netlink:
    """A socket that answers with what it was given, cut into datagrams; then it times out."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def send(self, request: bytes) -> int:
        return len(request)

    def recv(self, _size: int) -> bytes:
        if len(self._data) < 2:
            raise TimeoutError
        length = int.from_bytes(self._data[:2], "little")
        answer, self._data = self._data[2 : 2 + length], self._data[2 + length :]
        return answer


def test_one_input(data: bytes) -> None:
    """An answer is understood, or it is an OSError as every failure of the kernel's."""
    for question in (dialled_to_real, seen_to_real):
        with suppress(OSError):
            real = question(_Netlink(data), _CLIENT)  # type: ignore[arg-type]
            assert real is None or len(real.source) in {4, 16}


def main() -> None:
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

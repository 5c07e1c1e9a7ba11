# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 clients of Python libraries: `readers.py aiohttp | httpx | requests URL COUNT` prints the sizes they read.

Each asks again and again on one connection.
"""

from __future__ import annotations

import asyncio
import json
import sys


async def _aiohttp(url: str, count: int) -> list[int]:
    import aiohttp  # noqa: PLC0415 the one that is asked for

    async with aiohttp.ClientSession() as session:
        sizes = []
        for _ in range(count):
            async with session.get(url) as response:
                sizes.append(len(await response.read()))
        return sizes


def _httpx(url: str, count: int) -> list[int]:
    import httpx  # noqa: PLC0415

    with httpx.Client(timeout=30) as client:
        return [len(client.get(url).content) for _ in range(count)]


def _requests(url: str, count: int) -> list[int]:
    import requests  # noqa: PLC0415

    with requests.Session() as session:
        return [len(session.get(url, timeout=30).content) for _ in range(count)]


def main() -> None:
    """Prints the sizes."""
    library, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if library == "aiohttp":
        sizes = asyncio.run(_aiohttp(url, count))
    else:
        sizes = {"httpx": _httpx, "requests": _requests}[library](url, count)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()

"""The chat in a browser, by a real client: who has no token, another origin, or comes second, is refused."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable

import pytest

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("textual_serve")

from aiohttp import ClientSession, ClientWebSocketResponse, WSServerHandshakeError, web  # noqa: E402

from edgemoe.cli import web as chat_web  # noqa: E402
from edgemoe.cli.web import BUSY, NO_TOKEN, OTHER_ORIGIN, ChatServer, free_port  # noqa: E402

# What textual-serve expects of a Textual program: this line, then packets; it repeats what it gets.
PROGRAM = """
import sys
out = sys.stdout.buffer
out.write(b"__GANGLION__\\n"); out.flush()
while packet := sys.stdin.buffer.read(5):
    data = sys.stdin.buffer.read(int.from_bytes(packet[1:], "big"))
    if packet[:1] == b"M" and b"quit" in data: break
    if packet[:1] == b"D": out.write(b"D" + len(data).to_bytes(4, "big") + data); out.flush()
"""
Talk = Callable[[ChatServer, ClientSession], Awaitable[None]]


def with_server(talk: Talk) -> None:
    async def run() -> None:
        server = ChatServer(shlex.join([sys.executable, "-c", PROGRAM]), free_port())
        runner = web.AppRunner(await server._make_app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", server.port).start()
        server.public_url = f"http://127.0.0.1:{server.port}"
        try:
            async with ClientSession() as client:
                await talk(server, client)
        finally:
            await runner.cleanup()

    asyncio.run(asyncio.wait_for(run(), 60))


def origin(server: ChatServer) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{server.port}"}


async def echo(socket: ClientWebSocketResponse, text: str) -> None:
    await socket.send_json(["stdin", text])
    assert (await socket.receive_bytes()) == text.encode()


def test_the_page_and_a_session_at_the_printed_address() -> None:
    async def talk(server: ChatServer, client: ClientSession) -> None:
        page = await client.get(server.address)
        text = await page.text()
        assert page.status == 200 and page.headers["Referrer-Policy"] == "no-referrer"
        assert f"{server.address}static/" in text and f"{server.address}ws".replace("http", "ws", 1) in text
        assert (await client.get(f"{server.address}static/js/textual.js")).status == 200
        async with client.ws_connect(f"{server.address}ws", headers=origin(server)) as socket:
            await echo(socket, "hello")

    with_server(talk)


@pytest.mark.parametrize("path", ["", "ws", "static/js/textual.js", "download/1", "no-token/", "no-token/ws"])
def test_without_the_token_nothing_is_served(path: str) -> None:
    async def talk(server: ChatServer, client: ClientSession) -> None:
        answer = await client.get(f"{server.public_url}/{path}", headers=origin(server))
        assert answer.status == 403 and await answer.text() == NO_TOKEN
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect(f"{server.public_url}/{path}", headers=origin(server))

    with_server(talk)


@pytest.mark.parametrize(
    "other", ["http://example.com", "http://localhost:1", "null", "https://localhost:{port}", None]
)
def test_a_page_of_another_origin_gets_no_session(other: str | None) -> None:
    async def talk(server: ChatServer, client: ClientSession) -> None:
        headers = {} if other is None else {"Origin": other.format(port=server.port)}
        with pytest.raises(WSServerHandshakeError, match="403"):
            await client.ws_connect(f"{server.address}ws", headers=headers)
        answer = await client.get(f"{server.address}ws", headers=headers)
        assert await answer.text() == OTHER_ORIGIN

    with_server(talk)


def test_a_second_session_gets_a_sentence_and_the_first_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_web, "PATIENCE_S", 0.0)

    async def talk(server: ChatServer, client: ClientSession) -> None:
        async with client.ws_connect(f"{server.address}ws", headers=origin(server)) as socket:
            await echo(socket, "first")
            page = await client.get(server.address)
            assert page.status == 409 and await page.text() == BUSY
            with pytest.raises(WSServerHandshakeError, match="409"):
                await client.ws_connect(f"{server.address}ws", headers=origin(server))
            await echo(socket, "still there")

    with_server(talk)


def test_a_page_that_is_loaded_again_gets_the_next_session() -> None:
    async def talk(server: ChatServer, client: ClientSession) -> None:
        for text in ("one", "two", "three"):
            assert (await client.get(server.address)).status == 200
            async with client.ws_connect(f"{server.address}ws", headers=origin(server)) as socket:
                await echo(socket, text)

    with_server(talk)


def test_tokens_differ_and_are_long() -> None:
    async def addresses() -> list[str]:
        return [ChatServer("true", 8000).address for _ in range(2)]

    first, second = asyncio.run(addresses())
    assert first != second and len(first.split("/")[-2]) >= 32


def test_a_port_that_is_taken_is_not_chosen() -> None:
    async def talk(server: ChatServer, client: ClientSession) -> None:
        assert free_port() != server.port

    with_server(talk)

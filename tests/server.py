"""A function in mode `http` for the tests: HTTP/1.1 by hand, in which every answer waits for a signal and never for a time."""

import asyncio, base64, hashlib, json, os, signal, struct, sys

signals, said, asked = {}, asyncio.Queue(), []


def event(name):
    return signals.setdefault(name, asyncio.Event())


async def read_head(reader):
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text[:-4].split("\r\n")
    headers = {}
    for line in lines:
        name, value = line.split(":", 1)
        headers[name.lower()] = value.strip()
    return first.split()[1], headers


async def pieces(reader, headers, trailers):
    """The request's body as it comes; its trailers into `trailers`."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        while (line := await reader.readline()) != b"\r\n":
            name, value = line.decode().split(":", 1)
            trailers[name.lower()] = value.strip()
    else:
        left = int(headers.get("content-length", 0))
        while left and (piece := await reader.read(left)):
            left -= len(piece)
            yield piece


class Reply:
    def __init__(self, writer, kind="text/plain", more=""):
        self.writer = writer
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n{more}\r\n".encode())

    async def send(self, piece):
        self.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await self.writer.drain()

    async def end(self, trailers=""):
        self.writer.write(f"0\r\n{trailers}\r\n".encode())
        await self.writer.drain()


async def websocket(reader, writer, headers, name):
    digest = hashlib.sha1((headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    accept = base64.b64encode(digest).decode()
    writer.write(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
    end = "cut"
    try:
        while end == "cut":
            first, length = await reader.readexactly(2)
            length &= 127
            if length == 126:
                (length,) = struct.unpack(">H", await reader.readexactly(2))
            mask = await reader.readexactly(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(length)))
            size = bytes([length]) if length < 126 else b"\x7e" + struct.pack(">H", length)
            writer.write(bytes([first]) + size + data)
            await writer.drain()
            if first & 15 == 8:
                end = "closed"
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    event(f"{end}-{name}").set()
    writer.close()


async def answer(reader, writer, target, headers):
    """Answers one request. False when the connection is used up."""
    what, _, name = target.split("?")[0].strip("/").partition("/")
    asked.append(target)
    if what == "socket":
        await websocket(reader, writer, headers, name)
        return False
    trailers = {}
    body = pieces(reader, headers, trailers)
    if what == "echo":
        reply = Reply(writer)
        async for piece in body:
            await reply.send(piece)
        await reply.end()
        return True
    if what == "refuse":
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        writer.write_eof()
        await reader.read()
        return False
    got = b"".join([piece async for piece in body])
    if what == "trailers":
        reply = Reply(writer, more="Trailer: x-length, x-sent\r\n")
        await reply.send(b"body")
        await reply.end(f"x-length: {len(got)}\r\nx-sent: {trailers.get('x-sent')}\r\n")
    elif what in ("hold", "events"):
        kind = "text/event-stream" if what == "events" else "text/plain"
        reply = Reply(writer, kind)
        await reply.send(b"data: first\n\n")
        gone, signalled = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(event(name).wait())
        while True:
            saying = asyncio.ensure_future(said.get()) if what == "events" else asyncio.Future()
            done, _ = await asyncio.wait([gone, signalled, saying], return_when=asyncio.FIRST_COMPLETED)
            if saying in done:
                await reply.send(b"data: %s\n\n" % saying.result())
                continue
            saying.cancel()
            if gone in done:
                event(f"left-{name}").set()
                return False
            break
        gone.cancel()
        await asyncio.wait([gone])
        await reply.send(b"data: rest\n\n")
        await reply.end()
    else:
        if what == "go":
            event(name).set()
        elif what == "await":
            await event(name).wait()
        elif what == "say":
            said.put_nowait(got)
        elif what == "die":
            os._exit(7)
        text = {"headers": json.dumps(headers), "asked": json.dumps(asked)}.get(what, f"{what} {name} {os.environ['TAPER_INSTANCE']}")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
    return True


async def serve(reader, writer):
    try:
        while await answer(reader, writer, *await read_head(reader)):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    try:
        mood = open("/run/secrets/mood").read()
    except OSError:
        mood = "listen"
    if mood == "die":
        sys.exit("today is no day to listen")
    if mood == "wait":
        signal.pause()
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=256)
    await server.serve_forever()


asyncio.run(main())

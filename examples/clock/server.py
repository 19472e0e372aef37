"""Mode `http`: any server that listens on $PORT. This one answers with an event stream."""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Clock(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for tick in range(3):
            self.wfile.write(f"data: tick {tick}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.2)

    def log_message(self, format, *args):
        print(format % args, flush=True)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Clock).serve_forever()

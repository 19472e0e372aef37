"""Answers every POST with what it drew at its beginning, so that a test can tell one instance from the next."""
import http.server, os
MARK = os.urandom(8).hex().encode()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(MARK)))
        self.end_headers()
        self.wfile.write(MARK)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()

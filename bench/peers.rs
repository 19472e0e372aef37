//! What others provide for the same work: the function without anything before it, nginx, HAProxy, functions-framework,
//! and a bare call loop in Python. Each is started as its documentation says for production, with as many workers as it
//! has processors, no access log, and connections kept on both sides.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::Error,
    load::Target,
    machine::Cpus,
    process::{Running, find, run},
};

/// The hello function's source, built by itself.
const HELLO: &str = include_str!("hello.rs");

/// A call loop and nothing else: what a `handle` in Python costs when only the bytes are moved.
const LOOP: &str = r#"
import socket, sys

def handle(body):
    return body

listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()
while True:
    caller, _ = listener.accept()
    got = b""
    while True:
        while len(got) < 4 or len(got) < 4 + int.from_bytes(got[:4], "little"):
            more = caller.recv(65536)
            if not more:
                break
            got += more
        else:
            end = 4 + int.from_bytes(got[:4], "little")
            reply = handle(got[4:end])
            caller.sendall(len(reply).to_bytes(4, "little") + reply)
            got = got[end:]
            continue
        break
"#;

const PYTHON_ECHO: &str = "def echo(request):\n    return request.get_data()\n";
const NODE_ECHO: &str = "exports.echo = (req, res) => { res.send(req.rawBody); };\n";

/// A server of somebody else's that runs.
pub(crate) struct Peer {
    /// The process, its workers under it.
    pub(crate) running: Running,
    /// Where it is called.
    pub(crate) target: Target,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<SocketAddr, Error> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(Error::io("finding a free port"))
}

impl Peer {
    fn start(name: &str, command: &mut Command, dir: &Path, target: Target, cpus: &Cpus) -> Result<Self, Error> {
        let log = dir.join(format!("{name}.log"));
        let output = fs::File::create(dir.join(format!("{name}.out"))).map_err(Error::io("making a log"))?;
        let mut running = Running::start(name, command.stdout(output), &log, cpus)?;
        running.wait("it never listened", || target.listens().then_some(()))?;
        Ok(Self { running, target })
    }
}

/// Builds the hello function as a program that loads nothing when it starts.
pub(crate) fn build_hello(dir: &Path) -> Result<PathBuf, Error> {
    let (source, program) = (dir.join("hello.rs"), dir.join("hello"));
    fs::write(&source, HELLO).map_err(Error::io("writing hello.rs"))?;
    let rustc = find("rustc", "https://rustup.rs")?;
    let options =
        ["--edition=2024", "-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static", "-o"];
    run("building hello", Command::new(rustc).args(options).arg(&program).arg(&source))?;
    Ok(program)
}

/// The hello function itself, on a Unix socket or on a port.
pub(crate) fn hello(program: &Path, unix: bool, dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let mut command = Command::new(program);
    if unix {
        let socket = dir.join("hello.sock");
        command.arg("unix").env("TAPER_SOCKET", &socket);
        Peer::start("hello-unix", &mut command, dir, Target::Unix(socket), cpus)
    } else {
        let address = free_port()?;
        command.arg("tcp").env("PORT", address.port().to_string());
        Peer::start("hello-tcp", &mut command, dir, Target::Tcp(address), cpus)
    }
}

/// nginx before an upstream.
pub(crate) fn nginx(upstream: &Target, dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let nginx = find("nginx", "apt-get install nginx-light")?;
    let address = free_port()?;
    let (name, server) = match upstream {
        Target::Unix(path) => ("nginx-unix", format!("unix:{}", path.display())),
        Target::Tcp(address) => ("nginx-tcp", address.to_string()),
    };
    let home = dir.join(name);
    fs::create_dir_all(&home).map_err(Error::io("making nginx's folder"))?;
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let folders: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {kind};\n")).concat();
    let text = format!(
        "daemon off; {user} worker_processes {workers}; pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; {folders}\n\
         keepalive_requests 100000000; keepalive_timeout 600s;\n\
         upstream function {{ server {server}; keepalive 256; keepalive_requests 100000000; keepalive_timeout 600s; }}\n\
         server {{ listen {address} reuseport; location / {{\n\
         proxy_pass http://function; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; }} }} }}\n",
        workers = cpus.count(),
    );
    fs::write(home.join("nginx.conf"), text).map_err(Error::io("writing nginx.conf"))?;
    let mut command = Command::new(nginx);
    command.arg("-e").arg("stderr").arg("-p").arg(&home).arg("-c").arg(home.join("nginx.conf"));
    Peer::start(name, &mut command, dir, Target::Tcp(address), cpus)
}

/// HAProxy before an upstream.
pub(crate) fn haproxy(upstream: &Target, dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let haproxy = find("haproxy", "apt-get install haproxy")?;
    let address = free_port()?;
    let (name, server) = match upstream {
        Target::Unix(path) => ("haproxy-unix", format!("unix@{}", path.display())),
        Target::Tcp(address) => ("haproxy-tcp", address.to_string()),
    };
    let text = format!(
        "global\n  nbthread {threads}\n  maxconn 4096\n\
         defaults\n  mode http\n  http-reuse always\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  timeout http-keep-alive 600s\n\
         frontend in\n  bind {address}\n  default_backend function\n\
         backend function\n  server one {server}\n",
        threads = cpus.count(),
    );
    let config = dir.join(format!("{name}.cfg"));
    fs::write(&config, text).map_err(Error::io("writing haproxy.cfg"))?;
    Peer::start(name, Command::new(haproxy).arg("-db").arg("-f").arg(config), dir, Target::Tcp(address), cpus)
}

/// Python's functions-framework with an echo, one worker process.
pub(crate) fn framework_python(dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let python = find("python3", "apt-get install python3")?;
    let packages = dir.join("functions-framework-python");
    if !packages.exists() {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&packages)
            .arg("functions-framework==3.*");
        run("pip install functions-framework", &mut pip)?;
    }
    let source = dir.join("echo_framework.py");
    fs::write(&source, PYTHON_ECHO).map_err(Error::io("writing the echo"))?;
    let address = free_port()?;
    let mut command = Command::new(python);
    command.env("PYTHONPATH", &packages).current_dir(dir);
    command
        .args(["-m", "functions_framework", "--target", "echo", "--host", "127.0.0.1", "--port"])
        .arg(address.port().to_string());
    command.arg("--source").arg(&source);
    Peer::start("functions-framework-python", &mut command, dir, Target::Tcp(address), cpus)
}

/// Node's functions-framework with an echo.
pub(crate) fn framework_node(dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let node = find("node", "apt-get install nodejs")?;
    let home = npm_install(dir, "@google-cloud/functions-framework", "functions-framework-node")?;
    fs::write(home.join("index.js"), NODE_ECHO).map_err(Error::io("writing the echo"))?;
    let address = free_port()?;
    let mut command = Command::new(node);
    command.arg(home.join("node_modules/@google-cloud/functions-framework/build/src/main.js"));
    command
        .args(["--target=echo", "--source=."])
        .arg(format!("--port={}", address.port()))
        .current_dir(&home)
        .env("NODE_ENV", "production");
    Peer::start("functions-framework-node", &mut command, dir, Target::Tcp(address), cpus)
}

/// workerd with an echo: JavaScript in an isolate that is used again, in one process.
pub(crate) fn workerd(dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let home = npm_install(dir, "workerd", "workerd")?;
    let address = free_port()?;
    let worker = "export default { async fetch(request) { return new Response(await request.text()); } };\n";
    let config = format!(
        "using Workerd = import \"/workerd/workerd.capnp\";\n\
         const config :Workerd.Config = (\n\
         services = [(name = \"echo\", worker = (modules = [(name = \"echo\", esModule = embed \"echo.mjs\")], compatibilityDate = \"2025-01-01\"))],\n\
         sockets = [(name = \"http\", address = \"{address}\", http = (), service = \"echo\")]);\n"
    );
    let written = fs::write(home.join("echo.mjs"), worker).and_then(|()| fs::write(home.join("config.capnp"), config));
    written.map_err(Error::io("writing the worker"))?;
    let mut command = Command::new(home.join("node_modules/workerd/bin/workerd"));
    command.args(["serve", "config.capnp"]).current_dir(&home);
    Peer::start("workerd", &mut command, dir, Target::Tcp(address), cpus)
}

/// A package of npm's, installed once into a folder of this run.
fn npm_install(dir: &Path, package: &str, folder: &str) -> Result<PathBuf, Error> {
    let npm = find("npm", "apt-get install npm")?;
    let home = dir.join(folder);
    if !home.exists() {
        fs::create_dir_all(&home).map_err(Error::io("making a folder"))?;
        let mut install = Command::new(npm);
        install.args(["install", "--silent", "--no-audit", "--no-fund", "--no-update-notifier", "--cache"]);
        run(&format!("npm install {package}"), install.arg(dir.join("npm-cache")).arg(package).current_dir(&home))?;
    }
    Ok(home)
}

/// The floor of Python: a call loop over a Unix socket, one caller at a time.
pub(crate) fn python_loop(dir: &Path, cpus: &Cpus) -> Result<Peer, Error> {
    let python = find("python3", "apt-get install python3")?;
    let (source, socket) = (dir.join("loop.py"), dir.join("loop.sock"));
    fs::write(&source, LOOP).map_err(Error::io("writing the call loop"))?;
    let mut command = Command::new(python);
    command.arg("-I").arg(source).arg(&socket);
    Peer::start("python-loop", &mut command, dir, Target::Unix(socket), cpus)
}

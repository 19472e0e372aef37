//! A real `nats-server` on a free port, with a folder of its own; ended with its value.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::Error,
    machine::Cpus,
    process::{Running, find},
};

/// `nats-server`, running.
pub(crate) struct Nats {
    running: Running,
    dir: PathBuf,
    port: u16,
    cpus: Cpus,
}

impl Nats {
    /// Starts one that keeps what it has in this folder.
    pub(crate) fn start(dir: &Path, cpus: &Cpus) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("making a folder"))?;
        // Free now, and kept by the server from its start on; a restart takes the same one again.
        let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = listener.map_err(Error::io("looking for a port"))?.port();
        Ok(Self { running: run(dir, port, cpus)?, dir: dir.to_owned(), port, cpus: cpus.clone() })
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`, and the next one in its place.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        self.running.kill()?;
        self.running = run(&self.dir, self.port, &self.cpus)?;
        Ok(())
    }
}

fn run(dir: &Path, port: u16, cpus: &Cpus) -> Result<Running, Error> {
    let mut command = Command::new(find("nats-server", "apt-get install nats-server")?);
    command.args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"]).arg(dir.join("store"));
    let mut running = Running::start("nats-server", &mut command, &dir.join("log"), cpus)?;
    running.wait("it does not listen", || TcpStream::connect(("127.0.0.1", port)).ok())?;
    Ok(running)
}

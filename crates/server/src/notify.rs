//! What a supervisor that listens is told of the platform (systemd's `sd_notify(3)`: a datagram of assignments). Nothing when none listens.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

/// The platform serves, in this process. After an upgrade that is another process than the one that was started.
pub(crate) fn serving(socket: Option<&str>) {
    tell(socket, &format!("READY=1\nMAINPID={}", std::process::id()));
}

/// The platform ends.
pub(crate) fn stopping(socket: Option<&str>) {
    tell(socket, "STOPPING=1");
}

fn tell(socket: Option<&str>, what: &str) {
    let Some(socket) = socket else { return };
    // A name that begins with `@` is in the abstract namespace.
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(Path::new(socket)),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &address));
    if let Err(error) = told {
        tracing::warn!(%error, "the supervisor at NOTIFY_SOCKET could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_which_process_serves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let heard = || {
            let mut buffer = [0; 128];
            let n = supervisor.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        };
        serving(path.to_str());
        assert_eq!(heard(), format!("READY=1\nMAINPID={}", std::process::id()));
        stopping(path.to_str());
        assert_eq!(heard(), "STOPPING=1");
        serving(None);
        serving(Some("/no/such/socket"));
    }
}

//! TLS for the blocking client: what it sends and reads goes through rustls, over the connection that it has made. Whom to believe is
//! decided elsewhere.

use std::{
    fmt,
    io::{Read, Write},
    sync::Arc,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};
use ureq::{
    Error,
    unversioned::transport::{
        Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport, TransportAdapter,
    },
};

/// Puts TLS around every connection.
pub(crate) struct Tls(pub(crate) Arc<ClientConfig>);

impl<Plain: Transport> Connector<Plain> for Tls {
    type Out = Secure;

    fn connect(&self, details: &ConnectionDetails<'_>, plain: Option<Plain>) -> Result<Option<Secure>, Error> {
        let Some(plain) = plain else { return Ok(None) };
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|_| Error::BadUri(details.uri.to_string()))?;
        let mut tls = ClientConnection::new(Arc::clone(&self.0), name).map_err(std::io::Error::other)?;
        let mut plain = TransportAdapter::new(plain.boxed(), details.current_time.clone());
        plain.set_timeout(details.timeout);
        // Here, so that a certificate which is not believed is the reason that is told.
        tls.complete_io(&mut plain)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Secure { buffers, stream: StreamOwned::new(tls, plain) }))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// A connection inside of TLS.
pub(crate) struct Secure {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl Transport for Secure {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(self.stream.flush()?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secure")
    }
}

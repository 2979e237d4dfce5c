//! Whom to trust, and who we are.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// What the URL says of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Tls {
    trusted: Option<PathBuf>,
    /// Our certificate and its key.
    ours: Option<(PathBuf, PathBuf)>,
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// # Errors
    /// The parameter, and what is wrong with it or its file.
    pub(super) fn of(parameters: &[(String, String)]) -> Result<Self, String> {
        let value =
            |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let file = |name: &str| value(name).map(PathBuf::from);
        let ours = match (file("ssl_certfile"), file("ssl_keyfile")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            _ => return Err("a Redis URL whose ssl_certfile and ssl_keyfile go together".to_owned()),
        };
        let name = value("ssl_host").map(|host| ServerName::try_from(host.to_owned()));
        let name =
            name.transpose().map_err(|_no_name| "a Redis URL with ssl_host: no name of a host".to_owned())?;
        let tls = Self { trusted: file("ssl_ca_certs"), ours, name };
        if tls.trusted.is_some() || tls.ours.is_some() {
            tls.config().map_err(|error| format!("a Redis URL with {error}"))?;
        }
        Ok(tls)
    }

    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        TlsConnector::from(Arc::new(self.config()?)).connect(name, stream).await
    }

    /// Read anew each time: certificates are replaced while we run.
    fn config(&self) -> io::Result<ClientConfig> {
        let roots = match &self.trusted {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                let certificates = certificates("ssl_ca_certs", file)?;
                roots.add_parsable_certificates(certificates);
                roots
            }
            None => of_the_machine()?,
        };
        // By name: which one is meant can't be told where an application has brought another one.
        let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.ours else { return Ok(config.with_no_client_auth()) };
        let certificates = certificates("ssl_certfile", certificate)?;
        let pem = read("ssl_keyfile", key)?;
        let private = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_no_key| wrong("ssl_keyfile", key, "no private key in it, or one with a password"))?;
        config
            .with_client_auth_cert(certificates, private)
            .map_err(|error| wrong("ssl_keyfile", key, &error.to_string()))
    }
}

fn of_the_machine() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    match native.errors.into_iter().next() {
        Some(error) if roots.is_empty() => Err(io::Error::other(error)),
        _ => Ok(roots),
    }
}

fn certificates(parameter: &str, file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = read(parameter, file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong(parameter, file, "no certificate in it")),
    }
}

fn read(parameter: &str, file: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| wrong(parameter, file, &error.to_string()))
}

fn wrong(parameter: &str, file: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{parameter}: {}: {why}", file.display()))
}

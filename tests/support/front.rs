//! TLS in front of Redis or Postgres, with certificates that are made for the test.

use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
use tokio_util::task::TaskTracker;

use crate::support::engines::unique_name;
use crate::support::servers::Pair;

/// Of certificates that are good for long, and of ones that are not any more.
pub(crate) const VALID: i32 = 2_999;
pub(crate) const EXPIRED: i32 = 2_020;

/// Whom clients and servers trust.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, unique_name());
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Valid until the end of that year.
    pub(crate) fn certify(&self, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2_000, 1, 1);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }
}

/// What a client must say before TLS begins.
#[derive(Clone, Copy)]
pub(crate) enum Before {
    Nothing,
    /// Postgres's request for it.
    Request,
}

/// Ends TLS and passes on what was said. It shows the certificate that it was given last.
pub(crate) struct Front {
    pub(crate) port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    cut: watch::Sender<u64>,
    _tasks: TaskTracker,
}

impl Front {
    /// In front of `server`. With `clients` it lets nobody in who is not certified by them.
    pub(crate) async fn start(
        server: String,
        shown: &Pair,
        clients: Option<&Authority>,
        before: Before,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(Mutex::new(config(shown, clients)));
        let (cut, seen) = watch::channel(0);
        let tasks = TaskTracker::new();
        let (passing, shown) = (tasks.clone(), Arc::clone(&config));
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (server, config, mut seen) = (server.clone(), Arc::clone(&shown.lock()), seen.clone());
                seen.mark_unchanged();
                passing.spawn(async move {
                    if matches!(before, Before::Request) {
                        let mut request = [0; 8];
                        client.read_exact(&mut request).await.ok()?;
                        client.write_all(b"S").await.ok()?;
                    }
                    let mut client = TlsAcceptor::from(config).accept(client).await.ok()?;
                    let mut server = TcpStream::connect(server).await.ok()?;
                    tokio::select! {
                        _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _cut = seen.changed() => {}
                    }
                    Some(())
                });
            }
        });
        Self { port, config, cut, _tasks: tasks }
    }

    /// From now on, to whoever comes: those who are there are cut off.
    pub(crate) fn show(&self, shown: &Pair, clients: Option<&Authority>) {
        *self.config.lock() = config(shown, clients);
        self.cut.send_modify(|times| *times += 1);
    }
}

fn config(shown: &Pair, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(clients.roots(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let certificate = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
}

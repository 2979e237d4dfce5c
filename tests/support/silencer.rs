//! A route that is lost: connections stay open and nothing comes, while new ones work.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// Passes connections on to Postgres until they are silenced: then they stay open and nothing comes, while new ones work.
pub(crate) struct Silencer {
    pub(crate) address: String,
    silenced: watch::Sender<u64>,
    opened: watch::Receiver<u64>,
    _tasks: TaskTracker,
}

impl Silencer {
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (silenced, seen) = watch::channel(0);
        let (open, opened) = watch::channel(0);
        let tasks = TaskTracker::new();
        let passing = tasks.clone();
        tasks.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (server, mut seen) = (server.clone(), seen.clone());
                seen.mark_unchanged();
                open.send_modify(|opened| *opened += 1);
                passing.spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
                        _silenced = seen.changed() => {}
                    }
                    // Both ends stay open.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, silenced, opened, _tasks: tasks }
    }

    pub(crate) fn silence(&self) {
        self.silenced.send_modify(|times| *times += 1);
    }

    /// Connections that there have been.
    pub(crate) fn opened(&self) -> u64 {
        *self.opened.borrow()
    }
}

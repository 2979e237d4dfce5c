//! Private servers, for tests that kill them: programs, users, ports and folders.
//!
//! Processes are ended one by one, by the id of a process that was started here.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal};

/// A folder of one server, removed with it.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("perto-faults-{what}-{}-{count}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A certificate and its key, as PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Files, as somebody lays them down beside a service.
pub(crate) struct Files(Folder);

impl Files {
    /// With whom to trust.
    pub(crate) fn of(authority: &str) -> Self {
        let files = Self(Folder::new("tls"));
        files.put("ca.pem", authority);
        files
    }

    pub(crate) fn put(&self, name: &str, pem: &str) {
        fs::write(self.0.0.join(name), pem).unwrap();
    }

    pub(crate) fn put_ours(&self, ours: &Pair) {
        self.put_pair("our", ours);
    }

    pub(crate) fn put_pair(&self, name: &str, pair: &Pair) {
        self.put(&format!("{name}.pem"), &pair.certificate);
        self.put(&format!("{name}.key"), &pair.key);
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.0.join(name).to_str().unwrap().to_owned()
    }

    /// Whom to trust, and who we are, in a URL.
    pub(crate) fn parameters(&self) -> String {
        let [ca, certificate, key] = ["ca.pem", "our.pem", "our.key"].map(|name| self.path(name));
        format!("ssl_ca_certs={ca}&ssl_certfile={certificate}&ssl_keyfile={key}")
    }
}

/// A running server. Killed on drop.
pub(crate) struct Process(Option<Child>);

impl Process {
    /// Not started yet.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(Some(
            command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")),
        ))
    }

    pub(crate) fn id(&self) -> Option<u32> {
        self.0.as_ref().map(Child::id)
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Lets it do nothing more, while its connections stay open and the kernel takes new ones.
    pub(crate) fn hold(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn let_go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.0.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).unwrap()));
        rustix::process::kill_process(id.expect("it runs"), signal).unwrap();
    }

    /// `SIGKILL`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A program on `PATH`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|program| program.is_file())
}

/// Who runs Postgres, which refuses root.
#[derive(Clone)]
pub(crate) enum RunAs {
    Ourselves,
    /// By a program that changes the user: `PERTO_PG_AS`.
    Prefix(Vec<String>),
    User {
        uid: u32,
        gid: u32,
    },
}

impl RunAs {
    pub(crate) fn find() -> Self {
        let prefix: Vec<String> =
            std::env::var("PERTO_PG_AS").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        if !prefix.is_empty() {
            return Self::Prefix(prefix);
        }
        if !rustix::process::geteuid().is_root() {
            return Self::Ourselves;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let user = |name: &str| {
            let fields: Vec<&str> =
                users.lines().map(|line| line.split(':').collect()).find(|f: &Vec<&str>| f[0] == name)?;
            Some(Self::User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
        };
        user("postgres")
            .or_else(|| user("nobody"))
            .expect("Postgres refuses root, and there is no other user")
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        match self {
            Self::Ourselves => Command::new(program),
            Self::Prefix(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).arg(program);
                command
            }
            Self::User { uid, gid } => {
                let mut command = Command::new(program);
                command.uid(*uid).gid(*gid);
                command
            }
        }
    }

    /// Gives a folder and all in it to that user.
    pub(crate) fn own(&self, path: &Path) {
        match self {
            Self::Ourselves => {}
            // Where the prefix maps users, what is ours is theirs; where it changes the user, its name is in it.
            Self::Prefix(words) => {
                if let Some(at) = words.iter().position(|word| word == "-u") {
                    let owned = Command::new("chown").arg("-R").arg(&words[at + 1]).arg(path).status();
                    assert!(owned.unwrap().success());
                }
            }
            Self::User { uid, gid } => own_tree(path, *uid, *gid).unwrap(),
        }
    }
}

fn own_tree(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    chown(path, Some(uid), Some(gid))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            own_tree(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

/// Copies a folder; its folders are for their owner alone.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(from)? {
        let (from, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() { copy_tree(&from, &to)? } else { fs::copy(&from, &to).map(drop)? }
    }
    Ok(())
}

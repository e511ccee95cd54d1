//! A throwaway PostgreSQL instance: private folder, free port, gone when dropped or when this process dies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::postmaster::{self, Postmaster};
use super::template::{self, Binaries, Owner};

/// The superuser of every instance; logs in without a password over the Unix socket only.
pub const SUPERUSER: &str = "postgres";

/// From launch to ready, recovery after a kill included.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a restart waits for its port when somebody else has taken it meanwhile.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// Longest path of a Unix socket: `sun_path` holds 108 bytes with the final zero (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// A file system in memory that every Linux has.
const MEMORY: &str = "/dev/shm";
/// Containers often have 64 MB there, one instance takes 40.
const ENOUGH_MEMORY: u64 = 2 << 30;
const FOLDER_PREFIX: &str = "pgtenant-pg-";

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "PostgreSQL is not installed: no postgres and initdb in /usr/lib/postgresql/*/bin or on PATH; \
         on Debian and Ubuntu: apt-get install postgresql"
    )]
    NotInstalled,
    #[error("{dir} does not hold postgres and initdb: give the bin folder of a PostgreSQL installation", dir = dir.display())]
    NotThere { dir: PathBuf },
    #[error(
        "PostgreSQL does not run as root and /etc/passwd has neither postgres nor nobody: add one, or run as another user"
    )]
    NoUnprivilegedUser,
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} failed: {output}", program = program.display())]
    Failed { program: PathBuf, output: String },
    #[error("{path} is not in a format known here: give no template folder for this PostgreSQL version", path = path.display())]
    UnknownFormat { path: PathBuf },
    #[error("the system gives no random numbers")]
    NoRandomness,
    #[error("PostgreSQL on port {port} did not start; its log ends:\n{log}")]
    NotReady { port: u16, log: String },
    #[error("port {port} is taken")]
    PortTaken { port: u16 },
    #[error("SQL in database {database} failed: {message}")]
    Sql { database: String, message: String, source: tokio_postgres::Error },
}

impl PostgresError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
        move |source| PostgresError::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn temporary(source: io::Error) -> PostgresError {
        PostgresError::Io { action: "create a folder in", path: std::env::temp_dir(), source }
    }

    fn sql(database: &str) -> impl FnOnce(tokio_postgres::Error) -> PostgresError {
        move |source| {
            let message = source.as_db_error().map_or_else(|| source.to_string(), ToString::to_string);
            PostgresError::Sql { database: database.to_owned(), message, source }
        }
    }
}

/// What an instance shall be like. `Options::default()` suits most.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of PostgreSQL's programs; default: the newest of Debian's, else the one on `PATH`. The account that
    /// PostgreSQL runs as must be able to read it.
    pub bin_dir: Option<PathBuf>,
    /// Folder for data directories to copy from; made and kept there by the first user, also across processes. None:
    /// initdb for every instance, and nothing is kept.
    pub templates: Option<PathBuf>,
    /// Keep the data in memory (`/dev/shm`) where that has 2 GiB free; default: in the system's temporary folder.
    /// For many short-lived instances: ext4 is slow to make files for some seconds after it deleted many, and a start
    /// copies about 1,000.
    pub in_memory: bool,
    /// PostgreSQL's `max_connections`.
    pub max_connections: u32,
    /// Certificate chain and key (PEM): switches TLS on.
    pub tls: Option<(String, String)>,
    /// Lines of `pg_hba.conf` that go before the default ones, which ask for SCRAM everywhere.
    pub hba: Vec<String>,
    /// Further lines of `postgresql.conf`, such as `("log_statement", "all")`.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            bin_dir: None,
            templates: None,
            in_memory: false,
            max_connections: 100,
            tls: None,
            hba: vec![],
            settings: vec![],
        }
    }
}

/// A running (or stopped) instance. All methods take `&self`: tests share one between tasks.
pub struct Postgres {
    cluster: Arc<Cluster>,
}

impl Postgres {
    /// Makes and starts an instance; returns when it accepts connections.
    pub async fn start(options: Options) -> Result<Postgres, PostgresError> {
        blocking(move || Cluster::start(&options)).await.map(|cluster| Postgres { cluster: Arc::new(cluster) })
    }

    /// TCP port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.cluster.port
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.cluster.port).into()
    }

    /// Folder that holds the Unix socket; only root and the account that PostgreSQL runs as can enter.
    pub fn socket_dir(&self) -> &Path {
        self.cluster.folder.path()
    }

    /// The `system_identifier` of `pg_control_system()`.
    pub fn system_identifier(&self) -> Result<u64, PostgresError> {
        template::system_identifier(&self.cluster.data())
    }

    /// Folder of `psql`, `pgbench` and the other programs.
    pub fn bin_dir(&self) -> &Path {
        self.cluster.binaries.dir()
    }

    /// The postmaster's process id; none when it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.cluster.running().as_ref().filter(|postmaster| !postmaster.has_exited()).map(Postmaster::pid)
    }

    /// Everything PostgreSQL has logged so far.
    pub fn log(&self) -> String {
        self.cluster.log()
    }

    /// Connection string for the superuser over the Unix socket, as libpq and tokio-postgres understand it.
    pub fn superuser(&self, database: &str) -> String {
        let dir = self.socket_dir().display();
        format!("host={dir} port={port} user={SUPERUSER} dbname={database}", port = self.cluster.port)
    }

    /// A superuser's connection; ends when the client is dropped.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, PostgresError> {
        let connected = tokio_postgres::connect(&self.superuser(database), NoTls).await;
        let (client, connection) = connected.map_err(PostgresError::sql(database))?;
        // An error of the connection reaches whoever uses the client.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(client)
    }

    /// Runs SQL as the superuser, several statements if need be, and returns the rows as text.
    pub async fn sql(&self, database: &str, text: &str) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        let client = self.connect(database).await?;
        let messages = client.simple_query(text).await.map_err(PostgresError::sql(database))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Fast shutdown: sessions are ended, a checkpoint is written.
    pub async fn stop(&self) {
        let cluster = Arc::clone(&self.cluster);
        blocking(move || cluster.end(Postmaster::stop)).await;
    }

    /// SIGKILL for the postmaster and all its processes; returns when they are gone.
    pub async fn kill(&self) {
        let cluster = Arc::clone(&self.cluster);
        blocking(move || {
            cluster.end(Postmaster::kill);
            postmaster::remove_shared_memory(&cluster.data().join("postmaster.pid"));
        })
        .await;
    }

    /// Starts again on the same port, after a stop if it still runs.
    pub async fn restart(&self) -> Result<(), PostgresError> {
        let cluster = Arc::clone(&self.cluster);
        blocking(move || {
            cluster.end(Postmaster::stop);
            let deadline = Instant::now() + PORT_TIMEOUT;
            loop {
                match cluster.launch() {
                    Err(PostgresError::PortTaken { .. }) if Instant::now() < deadline => thread::sleep(POLL),
                    result => return result,
                }
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("the work neither panics nor is cancelled")
}

/// The instance itself; blocking. Fields are dropped after [`Cluster::drop`], the folder with them.
struct Cluster {
    folder: Folder,
    binaries: Binaries,
    owner: Option<Owner>,
    port: u16,
    running: Mutex<Option<Postmaster>>,
}

impl Cluster {
    fn start(options: &Options) -> Result<Cluster, PostgresError> {
        let binaries = Binaries::find(options.bin_dir.as_deref())?;
        let owner = Owner::unprivileged()?;
        let folder = Folder::create(owner, options.in_memory)?;
        let mut cluster = Cluster { folder, binaries, owner, port: 0, running: Mutex::new(None) };
        template::fill(&cluster.data(), &cluster.binaries, owner, options.templates.as_deref())?;
        cluster.configure(options)?;
        let mut attempts = 0;
        loop {
            // Between the look and PostgreSQL's own bind somebody else may take the port.
            cluster.port = free_port().map_err(PostgresError::io("find a free port on", Path::new("127.0.0.1")))?;
            attempts += 1;
            match cluster.launch() {
                Err(PostgresError::PortTaken { .. }) if attempts < 10 => {}
                result => return result.map(|()| cluster),
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read(self.log_file()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    fn configure(&self, options: &Options) -> Result<(), PostgresError> {
        let mut settings = format!(
            "max_connections = {max_connections}\n\
             shared_buffers = 16MB\n\
             fsync = off\n\
             full_page_writes = off\n\
             password_encryption = 'scram-sha-256'\n\
             # Files in the data directory, so that a killed instance leaves nothing in /dev/shm.\n\
             dynamic_shared_memory_type = mmap\n\
             log_line_prefix = '%m [%p] %q%u@%d '\n",
            max_connections = options.max_connections
        );
        if let Some((certificate, key)) = &options.tls {
            let path = |name: &str| self.folder.path().join(name);
            template::write_private(&path("server.crt"), certificate, self.owner)?;
            template::write_private(&path("server.key"), key, self.owner)?;
            let folder = self.folder.path().display();
            settings +=
                &format!("ssl = on\nssl_cert_file = '{folder}/server.crt'\nssl_key_file = '{folder}/server.key'\n");
        }
        for (name, value) in &options.settings {
            settings += &format!("{name} = '{value}'\n", value = value.replace('\'', "''"));
        }
        let path = self.data().join("postgresql.conf");
        let shipped = fs::read_to_string(&path).map_err(PostgresError::io("read", &path))?;
        fs::write(&path, shipped + &settings).map_err(PostgresError::io("write", &path))?;

        let mut hba = options.hba.join("\n");
        hba += &format!(
            "\nlocal all {SUPERUSER} trust\n\
             local all all scram-sha-256\n\
             host all all 127.0.0.1/32 scram-sha-256\n"
        );
        let path = self.data().join("pg_hba.conf");
        fs::write(&path, hba).map_err(PostgresError::io("write", &path))
    }

    fn running(&self) -> MutexGuard<'_, Option<Postmaster>> {
        self.running.lock().expect("no code panics while it holds this lock")
    }

    /// Ends the postmaster, if there is one, by `how`.
    fn end(&self, how: impl FnOnce(Postmaster)) {
        let postmaster = self.running().take();
        if let Some(postmaster) = postmaster {
            how(postmaster);
        }
    }

    fn launch(&self) -> Result<(), PostgresError> {
        let path = self.log_file();
        let log = File::options().create(true).append(true).open(&path).map_err(PostgresError::io("open", &path))?;
        let log_start = self.log().len();
        let mut command = self.binaries.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.stdin(Stdio::null()).stderr(log.try_clone().map_err(PostgresError::io("open", &path))?).stdout(log);
        let program = self.binaries.dir().join("postgres");
        let postmaster = Postmaster::launch(command, self.owner).map_err(PostgresError::io("run", &program))?;
        if self.becomes_ready(&postmaster) {
            *self.running() = Some(postmaster);
            return Ok(());
        }
        postmaster.abort();
        let log = self.log().split_off(log_start);
        if log.contains("Address already in use") {
            return Err(PostgresError::PortTaken { port: self.port });
        }
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        Err(PostgresError::NotReady { port: self.port, log: tail.into_iter().rev().collect::<Vec<_>>().join("\n") })
    }

    /// Waits as `pg_ctl` does: `postmaster.pid` holds the process id in line 1 and the status in line 8. A file from
    /// before a kill has another process id.
    fn becomes_ready(&self, postmaster: &Postmaster) -> bool {
        let path = self.data().join("postmaster.pid");
        let pid = postmaster.pid().to_string();
        let deadline = Instant::now() + START_TIMEOUT;
        while !postmaster.has_exited() && Instant::now() < deadline {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            if lines.first() == Some(&pid.as_str()) && lines.get(7) == Some(&"ready") {
                return true;
            }
            thread::sleep(POLL);
        }
        false
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end(Postmaster::abort);
    }
}

/// The private folder of an instance, removed on drop. A lock on its file `lock` says that its maker lives: what a
/// killed process could not remove, the next one that starts an instance does.
struct Folder {
    dir: TempDir,
    _lock: File,
}

impl Folder {
    fn create(owner: Option<Owner>, in_memory: bool) -> Result<Folder, PostgresError> {
        let parent =
            if in_memory && has_room(MEMORY) { PathBuf::from(MEMORY) } else { parent_of_socket(FOLDER_PREFIX) };
        Folder::sweep(&parent);
        let dir = tempfile::Builder::new().prefix(FOLDER_PREFIX).tempdir_in(&parent);
        let dir = dir.map_err(PostgresError::io("create a folder in", &parent))?;
        // Locked before it gets its name: nobody else finds it unlocked.
        let (unnamed, named) = (dir.path().join("lock.new"), dir.path().join("lock"));
        let lock = File::create(&unnamed).map_err(PostgresError::io("create", &unnamed))?;
        lock.lock().map_err(PostgresError::io("lock", &unnamed))?;
        fs::rename(&unnamed, &named).map_err(PostgresError::io("rename", &unnamed))?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(dir.path(), private).map_err(PostgresError::io("chmod", dir.path()))?;
        Owner::take(owner, dir.path())?;
        Ok(Folder { dir, _lock: lock })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Removes folders whose maker is gone; one that cannot be removed (somebody else's) stays.
    fn sweep(parent: &Path) {
        let Ok(entries) = fs::read_dir(parent) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX)) {
            let path = entry.path();
            let Ok(lock) = File::open(path.join("lock")) else { continue };
            if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) || Folder::in_use(&path) {
                continue;
            }
            // Two processes may do this at a time: what one has removed the other does not find.
            fs::remove_dir_all(&path).unwrap_or_default();
        }
    }

    /// Whether the postmaster is still about to end: it got its signal when its parent died.
    fn in_use(path: &Path) -> bool {
        let text = fs::read_to_string(path.join("data/postmaster.pid")).unwrap_or_default();
        text.lines().next().and_then(|pid| pid.trim().parse().ok()).is_some_and(postmaster::runs)
    }
}

/// Where to make a folder `<prefix>XXXXXX` that will hold a Unix socket: the system's temporary folder, or `/tmp` where
/// the socket's path would become too long.
pub(super) fn parent_of_socket(prefix: &str) -> PathBuf {
    let parent = std::env::temp_dir();
    let socket = parent.as_os_str().len() + "/XXXXXX/.s.PGSQL.65535".len() + prefix.len();
    if socket <= MAX_SOCKET_PATH { parent } else { PathBuf::from("/tmp") }
}

fn has_room(dir: &str) -> bool {
    let Ok(path) = std::ffi::CString::new(dir) else { return false };
    // SAFETY: statvfs is plain numbers, for which zeros are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type.
    let done = unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } == 0;
    done && stat.f_bavail.saturating_mul(stat.f_frsize) >= ENOUGH_MEMORY
}

/// A TCP port on 127.0.0.1 that nobody listens on. Taken from below the range of outgoing connections (32,768 and up
/// by default): such a connection cannot take the port while an instance restarts.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 17_000;
    let mut last = None;
    for _ in 0..100 {
        let random = getrandom::u32().map_err(|error| io::Error::other(error.to_string()))?;
        let port = FIRST + u16::try_from(random % u32::from(COUNT)).expect("a remainder below 17,000");
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_path_fits() {
        let path = parent_of_socket(FOLDER_PREFIX).join(format!("{FOLDER_PREFIX}XXXXXX/.s.PGSQL.65535"));
        assert!(path.as_os_str().len() <= MAX_SOCKET_PATH);
    }

    #[test]
    fn sweeps_what_a_dead_process_left_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name: &str| parent.path().join(format!("{FOLDER_PREFIX}{name}"));
        for name in ["dead", "alive", "unfinished"] {
            fs::create_dir(folder(name)).unwrap();
        }
        File::create(folder("dead").join("lock")).unwrap();
        let alive = File::create(folder("alive").join("lock")).unwrap();
        alive.lock().unwrap();
        Folder::sweep(parent.path());
        assert!(!folder("dead").exists());
        assert!(folder("alive").exists());
        assert!(folder("unfinished").exists());
    }
}
